"""config.json: every key of transformers' classes is read by the family, inert or refused."""

from __future__ import annotations

import json

import pytest
from tiny_model import CONFIG, make_tiny, make_tiny_encoder

import boostr
from boostr.errors import ModelFileError
from boostr.io.settings import ANY, TABLES
from boostr.models import config, family, family_of
from boostr.models.config import RawConfig

# The fields of the config classes of transformers 5.24, and what all of them have (also of 4).
KEYS = {
    "llama": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads hidden_act max_position_embeddings initializer_range rms_norm_eps
        use_cache pad_token_id bos_token_id eos_token_id pretraining_tp tie_word_embeddings
        rope_parameters attention_bias attention_dropout mlp_bias head_dim""",
    "mistral": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range
        rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id tie_word_embeddings
        rope_parameters sliding_window attention_dropout""",
    "qwen2": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads hidden_act max_position_embeddings initializer_range rms_norm_eps
        use_cache tie_word_embeddings rope_parameters use_sliding_window sliding_window
        max_window_layers layer_types attention_dropout pad_token_id bos_token_id eos_token_id""",
    "qwen3": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range
        rms_norm_eps use_cache tie_word_embeddings rope_parameters attention_bias
        use_sliding_window sliding_window max_window_layers layer_types attention_dropout
        pad_token_id bos_token_id eos_token_id""",
    "bert": """
        vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size
        hidden_act hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings
        type_vocab_size initializer_range layer_norm_eps pad_token_id use_cache
        classifier_dropout is_decoder add_cross_attention bos_token_id eos_token_id
        tie_word_embeddings""",
    "gemma3_text": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim hidden_activation max_position_embeddings initializer_range
        rms_norm_eps use_cache pad_token_id eos_token_id bos_token_id tie_word_embeddings
        rope_parameters attention_bias attention_dropout query_pre_attn_scalar sliding_window
        layer_types final_logit_softcapping attn_logit_softcapping use_bidirectional_attention""",
    "gpt_neox": """
        vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size
        hidden_act attention_dropout hidden_dropout classifier_dropout max_position_embeddings
        initializer_range layer_norm_eps use_cache bos_token_id eos_token_id pad_token_id
        tie_word_embeddings use_parallel_residual rope_parameters attention_bias is_decoder""",
    "olmo2": """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads hidden_act max_position_embeddings initializer_range use_cache
        pad_token_id bos_token_id eos_token_id tie_word_embeddings rope_parameters
        attention_bias attention_dropout rms_norm_eps""",
}
COMMON = """
    transformers_version architectures output_hidden_states return_dict dtype
    chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type torch_dtype
    _name_or_path output_attentions pruned_heads tie_encoder_decoder add_cross_attention
    cross_attention_hidden_size"""
OF_TEXT = {"bos_token_id", "eos_token_id", "tie_word_embeddings"}  # nothing to an encoder
SIZES = {
    **CONFIG, "num_hidden_layers": 2, "type_vocab_size": 2, "head_dim": 8, "sliding_window": 8,
    "use_sliding_window": True, "query_pre_attn_scalar": 8,
}  # fmt: skip


class Watched(dict):
    """A config that notes which of its keys somebody asks for."""

    asked: set[str]

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.fixture
def asked(monkeypatch) -> set[str]:
    """The keys that are asked for while a config is read."""
    keys: set[str] = set()
    original = RawConfig.__init__

    def init(self, raw, source) -> None:
        original(self, raw, source)
        self.raw = Watched(self.raw)
        self.raw.asked = keys

    monkeypatch.setattr(config.RawConfig, "__init__", init)
    return keys


@pytest.mark.parametrize("model_type", KEYS)
def test_every_key_is_read_inert_or_refused(model_type: str, asked: set[str]) -> None:
    raw = RawConfig({**SIZES, "model_type": model_type}, "config.json")
    family_of(raw).read_config(raw)  # type: ignore[attr-defined]
    assert "hidden_size" in asked  # the watch works
    table = TABLES["config.json"].keys() - {ANY}
    known = (
        asked | table | (set() if "generate" in family(model_type, "").capabilities else OF_TEXT)
    )
    assert [key for key in (KEYS[model_type] + COMMON).split() if key not in known] == []


@pytest.mark.parametrize(
    ("key", "value", "fine"),
    [("is_encoder_decoder", True, False), ("add_cross_attention", True, False),
     ("pruned_heads", {"0": [1]}, {}), ("tie_encoder_decoder", True, None)],
)  # fmt: skip
def test_what_is_refused(tmp_path, key: str, value, fine) -> None:
    assert boostr.load(make_tiny(tmp_path / "a", **{key: fine}), backend="numpy")
    with pytest.raises(ModelFileError, match=f"config.json: {key} = .* is not supported"):
        boostr.load(make_tiny(tmp_path / "b", **{key: value}), backend="numpy")


def test_an_encoder_that_is_a_decoder_is_refused(tmp_path) -> None:
    folder = make_tiny_encoder(tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"is_decoder": True}))
    with pytest.raises(ModelFileError, match="is_decoder must be False, got True"):
        boostr.load(folder, backend="numpy")
