"""What the families of 2021 to 2023 do that their cases do not show."""

from __future__ import annotations

import re

import cases
import gguf_files
import numpy as np
import pytest
from cases import named
from test_families import read

from boostr import dtypes
from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.models import family_of
from boostr.models.config import RawConfig, alibi_slopes

MPT = named("mpt/clipped").config
FALCON = named("falcon/alibi").config


def test_slopes_of_alibi():
    """Those of the paper for 8 heads; for others the next power of 2 has more than there are."""
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(1) == (2.0**-8,)
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert alibi_slopes(3, 4.0) == (2**-2, 2**-4, 2**-1)
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_mpts_bias_is_as_large_as_its_config_says():
    """transformers takes 8 whatever it says; MPT's own code and llama.cpp obey."""
    raw = {**MPT, "attn_config": {**MPT["attn_config"], "alibi_bias_max": 4}}
    assert read(raw).layers[0].mixer.alibi == (2**-1, 2**-2, 2**-3, 2**-4)
    assert read({**MPT, "expansion_ratio": 2}).layers[0].mlp.hidden == 64  # 4 in transformers


@pytest.mark.parametrize(
    ("key", "value"),
    [("alibi", False), ("qk_ln", True), ("prefix_lm", True), ("kv_n_heads", 1),
     ("attn_type", "multiquery_attention"), ("attn_uses_sequence_id", True)],
)  # fmt: skip
def test_what_mpts_attention_is_not(key, value):
    with pytest.raises(ModelFileError, match=f"attn_config: {key} = {value!r} is not supported"):
        read({**MPT, "attn_config": {**MPT["attn_config"], key: value}})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("mpt/clipped", "no_bias", False), ("mpt/clipped", "logit_scale", "inv_sqrt_d_model"),
     ("mpt/clipped", "norm_type", "rmsnorm"),
     ("bloom/plain", "apply_residual_connection_post_layernorm", True),
     ("minicpm/odd", "sparse_config", {"topk": 64})],
)  # fmt: skip
def test_what_is_refused(name, key, value):
    with pytest.raises(ModelFileError, match=re.escape(f"{key} = {value!r} is not")):
        family_of(RawConfig({**named(name).config, key: value}, "config.json"))


def test_blooms_names_of_old():
    raw = dict(named("bloom/odd").config)
    want, heads, width = read(raw), raw.pop("n_head"), raw.pop("hidden_size")
    assert read({**raw, "num_attention_heads": heads, "n_embed": width}) == want


def test_falcons_slopes_are_bfloat16_and_divided_with_the_scores():
    raw = {**FALCON, "num_attention_heads": 16, "hidden_size": 64, "num_kv_heads": 16}
    wide = np.float32(alibi_slopes(16)).astype(dtypes.bfloat16).astype(np.float32)
    assert np.abs(wide - alibi_slopes(16)).max() > 5e-5
    np.testing.assert_allclose(read(raw).layers[0].mixer.alibi, wide / 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("falcon/shared", "num_ln_in_parallel_attn", 2, "must be 1, or 2 with new_decoder_arch"),
        ("gpt_neo/odd", "attention_types", [[["local"], 2]], "for 3 layers, got [[['local'], 2]]"),
        ("gpt_neo/odd", "attention_types", [["near", 3]], "lists of 'global' and 'local'"),
        ("gpt_neo/odd", "attention_types", ["global"], "how often each is repeated"),
        ("gptj/partial", "rotary_dim", 18, "even and at most the 16 of a head, got 18"),
        ("gptj/partial", "rotary_dim", None, "config lacks 'rotary_dim'"),
    ],
)
def test_what_no_such_model_has(name, key, value, message):
    with pytest.raises(ModelFileError, match=re.escape(message)):
        read({**named(name).config, key: value})


def test_minicpms_first_files_of_gguf_say_no_factors(tmp_path):
    """They are of checkpoints that had the same."""
    case, keys = named("minicpm/odd"), ("embedding_scale", "residual_scale", "logit_scale")
    want = read({**case.config, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256})
    made = gguf_files.convert(
        cases.checkpoint(case, tmp_path), tmp_path / "m.gguf", metadata=dict.fromkeys(keys)
    )
    got = load_module(made, backend="numpy").config
    assert got.embedding == want.embedding and got.head.factor == want.head.factor
    assert got.layers[0].residual_factor == want.layers[0].residual_factor
