"""The table of keys: every key of real files is in it, and means there what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import make_tiny

import boostr
from boostr.errors import ModelFileError
from boostr.io.settings import ANY, TABLES, Settings, read_json_file, read_object, read_settings

# Keys of the files of checkpoints that people load, as they are on the hub.
REAL = {
    "tokenizer_config.json": """
        add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens
        auto_map bos_token chat_template clean_up_tokenization_spaces cls_token do_basic_tokenize
        do_lower_case eos_token errors extra_special_tokens from_slow legacy mask_token max_length
        model_input_names model_max_length name_or_path never_split pad_to_multiple_of pad_token
        pad_token_type_id padding_side processor_class sep_token sp_model_kwargs
        spaces_between_special_tokens special_tokens_map_file split_special_tokens stride
        strip_accents tokenize_chinese_chars tokenizer_class tokenizer_file trim_offsets
        truncation_side truncation_strategy unk_token use_fast backend is_local""",
    "generation_config.json": """
        _from_model_config bos_token_id cache_implementation do_sample eos_token_id max_length
        max_new_tokens pad_token_id repetition_penalty temperature top_k top_p
        transformers_version""",
    "config_sentence_transformers.json": """
        __version__ prompts default_prompt_name similarity_fn_name model_type truncate_dim""",
    "sentence_bert_config.json": """
        max_seq_length do_lower_case transformer_task modality_config module_output_name
        processing_kwargs unpad_inputs query_length document_length query_expansion""",
    "modules.json": "idx name path type kwargs",
    "Pooling/config.json": """
        word_embedding_dimension embedding_dimension pooling_mode include_prompt
        pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens
        pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken
        """,
    "Dense/config.json": """
        in_features out_features bias activation_function module_input_name module_output_name
        use_residual""",
    "LayerNorm/config.json": "dimension",
    "Normalize/config.json": "module_input_name module_output_name",
    "Dropout/config.json": "dropout",
    "CrossEncoder/sentence_bert_config.json": """
        max_seq_length do_lower_case transformer_task modality_config module_output_name
        processing_kwargs unpad_inputs""",
    "LogitScore/config.json": "true_token_id false_token_id module_input_name",
}


@pytest.mark.parametrize(
    "file", sorted(TABLES.keys() - {"config.json"})
)  # see tests/models/test_keys.py
def test_every_key_of_real_files_has_a_meaning(file: str) -> None:
    unknown = [key for key in REAL[file].split() if key not in TABLES[file]]
    assert not unknown and ANY in TABLES[file]


def test_every_obeyed_key_is_read_somewhere() -> None:
    """Obeyed is more than a word: the library's code asks for it."""
    files = [p for p in Path(boostr.__file__).parent.rglob("*.py") if p.stem != "settings"]
    source = "".join(path.read_text("utf-8") for path in files)
    built = {"add_bos_token", "add_eos_token"}  # asked for as add_{name}
    for file, table in TABLES.items():
        for name, key in table.items():
            if key.use == "obeyed" and name not in built:
                assert f'"{name}"' in source, (file, name)


TABLE = TABLES["sentence_bert_config.json"]


def test_null_is_absent() -> None:
    settings = Settings({"max_seq_length": None, "processing_kwargs": None}, "f", TABLE)
    assert settings.get("max_seq_length", 7) == 7 and "max_seq_length" in settings


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"max_seq_length": True}, "f: max_seq_length must be a whole number, got True"),
        ({"max_seq_length": 1.5}, "must be a whole number"),
        ({"do_lower_case": 1}, "must be true or false, got 1"),
        ({"tokenizer_name_or_path": "x"}, "f: tokenizer_name_or_path = 'x' is not supported"),
        ({"processing_kwargs": {"text": {}}}, "is not supported"),
    ],
)
def test_values_that_are_refused(raw: dict, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Settings(raw, "f", TABLE)


def test_what_changes_nothing_is_not_refused() -> None:
    raw = {"processing_kwargs": {}, "model_args": {"trust_remote_code": True}, "a new key": 1,
           "transformer_task": "feature-extraction", "unpad_inputs": True}  # fmt: skip
    settings = Settings(raw, "f", TABLE)
    with pytest.raises(KeyError, match="not an obeyed key"):
        settings.get("unpad_inputs")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "generation_config.json"
    assert read_json_file(path) is None
    path.write_text(text)
    assert read_json_file(path) is None and read_settings(path).get("eos_token_id") is None


def test_a_file_that_is_required(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert read_object(path) == {}
    with pytest.raises(ModelFileError, match=r"no config\.json in this folder"):
        read_object(path, required=True)
    path.write_text("")
    with pytest.raises(ModelFileError, match=r"an empty config\.json in this folder"):
        read_object(path, required=True)


def test_an_empty_generation_config_beside_a_model(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m")
    for text, ends in (("", {257}), ("{}", {257}), ('{"eos_token_id": [5, 6]}', {5, 6, 257})):
        (folder / "generation_config.json").write_text(text)
        assert boostr.load(folder, backend="numpy").eos_ids == ends


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"{", "not JSON"), (b"\xff", "cannot be read"), (b"[1]", "expected a JSON object, got list"),
     (b"[" * 100_000, "not JSON")],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        read_settings(path)
    path.write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert read_settings(path).get("eos_token_id") == [1, 2]
