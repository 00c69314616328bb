"""The small JSON files beside the weights: one table says what every key of them means to boostr.

A key is obeyed (then its types are checked), inert (it cannot change a result here) or refused
unless it has a value that changes nothing. Keys that a table does not have are what its last entry
says, under `ANY`: inert where files are full of remarks, refused where every key changes a vector.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boostr.errors import BoostrError, ModelFileError

ANY = "*"
_MAX_FILE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Key:
    """What a key means: `use` is "obeyed", "inert" or "refused".

    `kinds` are the types of an obeyed value; null always counts as a key that is not there. Of a
    refused key `neutral` are the values that change nothing.
    """

    use: str
    kinds: tuple[type, ...] = ()
    neutral: tuple[Any, ...] = ()


Table = Mapping[str, Key]
INERT = Key("inert")
_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number",
          dict: "an object", list: "a list"}  # fmt: skip


def obeyed(*kinds: type) -> Key:
    return Key("obeyed", kinds)


def unless(*neutral: Any) -> Key:
    return Key("refused", neutral=(None, *neutral))


def _inert(*names: str) -> dict[str, Key]:
    return dict.fromkeys(names, INERT)


_TOKEN = obeyed(str, dict)
TABLES: dict[str, Table] = {
    "tokenizer_config.json": {
        **dict.fromkeys(
            ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
             "mask_token"), _TOKEN),
        "additional_special_tokens": obeyed(list),
        "extra_special_tokens": obeyed(list, dict),
        "added_tokens_decoder": obeyed(dict),
        "add_bos_token": obeyed(bool),
        "add_eos_token": obeyed(bool),
        "chat_template": obeyed(str, list),
        "model_max_length": obeyed(int, float),
        "truncation_side": obeyed(str),
        # of a folder without tokenizer.json, which holds what comes of them
        "tokenizer_class": obeyed(str),
        "legacy": obeyed(bool),
        "add_prefix_space": obeyed(bool),
        "extra_ids": obeyed(int),
        # of BERT's normalizer, where tokenizer.json has one
        "do_lower_case": obeyed(bool),
        "strip_accents": obeyed(bool),
        "tokenize_chinese_chars": obeyed(bool),
        "split_special_tokens": unless(False),
        # how the Python class was made
        **_inert("auto_map", "name_or_path", "tokenizer_file", "vocab_file",
                 "merges_file", "special_tokens_map_file", "use_fast", "from_slow", "backend",
                 "is_local", "processor_class", "transformers_version", "model_type",
                 "sp_model_kwargs", "add_dummy_prefix_space",
                 "do_basic_tokenize", "never_split", "remove_space", "keep_accents", "errors",
                 "trim_offsets"),
        # padding: there is none; truncation: of whole texts, to the length that the files say
        **_inert("padding_side", "truncation", "padding", "max_length", "stride",
                 "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id",
                 "padding_strategy", "model_input_names", "return_token_type_ids"),
        # of decoding: no spaces are "cleaned up", as `Tokenizer.decode` says
        **_inert("clean_up_tokenization_spaces", "spaces_between_special_tokens"),
        ANY: INERT,
    },
    "generation_config.json": {
        "eos_token_id": obeyed(int, list),
        # sampling: boostr takes the likeliest token unless it is told otherwise
        **_inert("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams",
                 "repetition_penalty", "max_new_tokens", "max_length", "bos_token_id",
                 "pad_token_id", "transformers_version", "_from_model_config", "use_cache",
                 "cache_implementation"),
        ANY: INERT,
    },
    # What families read they check themselves, with types and defaults of their own; what is inert
    # or refused in some of them alone they say in `keys`.
    "config.json": {
        **dict.fromkeys(
            ("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"), unless(False)),
        "pruned_heads": unless({}),
        "cross_attention_hidden_size": unless(),
        # of training: dropout, first values, what is kept for gradients
        **_inert("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "classifier_dropout",
                 "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop",
                 "residual_dropout", "embedding_dropout", "resid_dropout", "embed_dropout",
                 "emb_pdrop", "dropout", "layerdrop", "init_std", "initializer_range", "use_cache",
                 "gradient_checkpointing", "pretraining_tp", "chunk_size_feed_forward"),
        # of classifiers
        "architectures": obeyed(list),
        "id2label": obeyed(dict),
        "num_labels": obeyed(int),
        "problem_type": obeyed(str),
        "sentence_transformers": obeyed(dict),
        "sbert_ce_default_activation_function": obeyed(str),
        # of outputs and files
        **_inert("auto_map", "dtype", "torch_dtype", "transformers_version",
                 "_name_or_path", "return_dict", "output_hidden_states", "output_attentions",
                 "label2id"),
        "pad_token_id": obeyed(int),
        # of what is beside a text model: towers for images, and the tokens that stand for these
        **_inert("vision_config", "image_token_id", "image_token_index", "video_token_id",
                 "vision_start_token_id", "vision_end_token_id", "boi_token_index",
                 "eoi_token_index", "mm_tokens_per_image", "multimodal_projector_bias",
                 "projector_hidden_act", "spatial_merge_size", "vision_feature_layer",
                 "scale_factor"),
        ANY: INERT,
    },
    "config_sentence_transformers.json": {
        "prompts": obeyed(dict),
        "default_prompt_name": obeyed(str),
        "truncate_dim": obeyed(int),
        "model_type": obeyed(str),
        "activation_fn": obeyed(str),
        "keep_in_fp32_modules": INERT,  # nothing is computed in less
        **_inert("__version__", "similarity_fn_name"),  # vectors are the same for every similarity
        ANY: INERT,
    },
    "sentence_bert_config.json": {
        "max_seq_length": obeyed(int),
        "do_lower_case": obeyed(bool),
        "transformer_task": unless("feature-extraction", "fill-mask"),
        "module_output_name": unless("token_embeddings"),
        **dict.fromkeys(
            ("processing_kwargs", "model_args", "model_kwargs", "config_args", "config_kwargs",
             "tokenizer_args", "processor_kwargs"),
            unless({}, {"trust_remote_code": False}, {"trust_remote_code": True})),
        "tokenizer_name_or_path": unless(),
        "modality_config": obeyed(dict),
        # lengths and padding of ColBERT's queries, which are no `embed`
        **_inert("unpad_inputs", "query_length", "document_length", "query_expansion"),
        ANY: INERT,
    },
    "CrossEncoder/sentence_bert_config.json": {
        "max_seq_length": obeyed(int),
        "do_lower_case": obeyed(bool),
        "modality_config": obeyed(dict),
        "processing_kwargs": obeyed(dict),
        "transformer_task": unless("sequence-classification", "text-generation"),
        "module_output_name": unless("scores", "causal_logits"),
        **_inert("unpad_inputs"),
        ANY: unless({}, {"trust_remote_code": False}, {"trust_remote_code": True}),
    },
    "LogitScore/config.json": {
        "true_token_id": obeyed(int),
        "false_token_id": obeyed(int),
        "module_input_name": unless("causal_logits"),
        ANY: unless(),
    },
    "modules.json": {
        "path": obeyed(str),
        "type": obeyed(str),
        "kwargs": unless([]),  # arguments that `encode` hands on to a module
        **_inert("idx", "name"),
        ANY: unless(),
    },
    "Pooling/config.json": {
        "pooling_mode": obeyed(str, list),
        **dict.fromkeys(
            ("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens",
             "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens",
             "pooling_mode_lasttoken"), obeyed(bool)),
        "include_prompt": obeyed(bool),
        **_inert("word_embedding_dimension", "embedding_dimension"),  # the model says it
        ANY: unless(False),
    },
    "Dense/config.json": {
        "in_features": obeyed(int),
        "out_features": obeyed(int),
        "bias": obeyed(bool),
        "activation_function": obeyed(str),
        "use_residual": obeyed(bool),
        **dict.fromkeys(("module_input_name", "module_output_name"), unless("sentence_embedding")),
        ANY: unless(),
    },
    "LayerNorm/config.json": {"dimension": obeyed(int), ANY: unless()},
    "Normalize/config.json": {
        **dict.fromkeys(("module_input_name", "module_output_name"), unless("sentence_embedding")),
        ANY: unless(),
    },
    "Dropout/config.json": {"dropout": INERT, ANY: INERT},
}  # fmt: skip


class Settings:
    """A JSON object whose keys were checked against a table; `get` gives those that are obeyed.

    Raises:
        BoostrError (of type `error`): a key that is refused, or a value of a wrong type.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        source: str,
        table: Table,
        error: type[BoostrError] = ModelFileError,
    ) -> None:
        self.source, self._raw, self._table = source, raw, table
        for name, value in raw.items():
            key = table.get(name, table[ANY])
            if key.use == "refused" and value not in key.neutral:
                raise error(f"{source}: {name} = {value!r:.80} is not supported")
            if key.use == "obeyed" and value is not None and not _is(value, key.kinds):
                kinds = " or ".join(_NAMES[kind] for kind in key.kinds)
                raise error(f"{source}: {name} must be {kinds}, got {value!r:.80}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an obeyed key; the default where it is absent or null."""
        if self._table[name].use != "obeyed":
            raise KeyError(f"{name} is not an obeyed key")
        value = self._raw.get(name)
        return default if value is None else value

    def __contains__(self, name: str) -> bool:
        return name in self._raw


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def read_json_file(path: Path, error: type[BoostrError] = ModelFileError) -> Any:
    """The value of a JSON file; None where there is no file, or an empty one.

    Raises:
        BoostrError (of type `error`): not to be read, or not JSON.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise error(f"{path}: over the limit of {_MAX_FILE} bytes")
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"{path}: cannot be read: {failure}") from None
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: not JSON: {failure}") from None


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for json that refuses a key that is there twice."""
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r:.200} is there twice")
    return keys


def read_object(
    path: Path, required: bool = False, error: type[BoostrError] = ModelFileError
) -> dict[str, Any]:
    """The object of a JSON file; {} where there is no file, or an empty one, and none need be.

    Raises:
        BoostrError (of type `error`): as `read_json_file`; not an object; not there, but required.
    """
    value = read_json_file(path, error)
    if value is None and required:
        what = "an empty" if path.exists() else "no"
        raise error(f"{path.parent}: {what} {path.name} in this folder")
    if value is not None and not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value or {}


def read_settings(
    path: Path, kind: str | None = None, error: type[BoostrError] = ModelFileError
) -> Settings:
    """The settings of a file; without the file, or with an empty one, all are absent.

    `kind` names the table; by default the file's name does.

    Raises:
        BoostrError (of type `error`): a file that is no JSON object; see `Settings`.
    """
    raw = read_object(path, error=error)
    return Settings(raw, str(path), TABLES[kind or path.name], error)
