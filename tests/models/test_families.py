"""Families beyond Llama's: configs in three spellings, hidden states, and what their parts are."""

from __future__ import annotations

import importlib
import json
import weakref
from pathlib import Path

import cases
import numpy as np
import pytest

from boostr import backends
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.errors import ModelFileError
from boostr.models import FAMILIES, family
from boostr.models.config import RawConfig

BY_NAME = {case["name"]: case for case in cases.CASES}
DECODERS = [c for c in cases.CASES if c["family"] != "bert"]
NUMPY = backends.get("numpy")


def config_of(name):
    return json.loads((cases.DATA / name / "config.json").read_text())


def read(raw):
    return family(raw["model_type"], "test").read_config(RawConfig(raw, "config.json"))


def v4_gemma(raw):
    """transformers 4: two thetas by name, scaling of the full layers alone."""
    ropes = raw.pop("rope_parameters")
    full = dict(ropes["full_attention"])
    raw["rope_theta"] = full.pop("rope_theta")
    raw["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    raw["rope_scaling"] = None if full["rope_type"] == "default" else full
    return raw


def v4_neox(raw):
    rope = raw.pop("rope_parameters")
    return raw | {
        "rotary_pct": rope["partial_rotary_factor"],
        "rotary_emb_base": rope["rope_theta"],
    }


def v4_olmo(raw):
    return raw | {"rope_theta": raw.pop("rope_parameters")["rope_theta"]}


V4 = {"gemma3_text": v4_gemma, "gpt_neox": v4_neox, "olmo2": v4_olmo}


@pytest.mark.parametrize(
    "name", [c["name"] for c in DECODERS if c["family"] in V4 and c["name"] == c["expected"]]
)
def test_the_spelling_of_transformers_4_reads_the_same(name):
    raw = config_of(name)
    old = V4[raw["model_type"]](dict(raw))
    assert read(old) == read(raw)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_neox", "olmo2"])
def test_keys_that_are_left_out_have_the_familys_defaults(name):
    """A config with no key but its type is the family's own (transformers' defaults)."""
    config = read({"model_type": name})
    mixer, mlp = config.layers[0].mixer, config.layers[0].mlp
    want = {
        "gemma3_text": (2304, 26, 8, 4, 256, 9216, 1 / 16, 1e4, 256),
        "gpt_neox": (6144, 44, 64, 64, 96, 24576, None, 1e4, 24),
        "olmo2": (4096, 32, 32, 32, 128, 11008, None, 1e4, 128),
    }[name]
    rope = config.ropes[mixer.rope]
    assert want == (
        config.hidden_size, config.num_hidden_layers, mixer.heads, mixer.kv_heads, mixer.head_dim,
        mlp.hidden, mixer.scale, rope.theta, rope.rotary_dim,
    )  # fmt: skip


def test_gemmas_layers_are_five_local_ones_to_a_full_one():
    config = read({"model_type": "gemma3_text"})
    assert [spec.mixer.window for spec in config.layers[:7]] == [4096] * 5 + [None, 4096]
    assert [spec.mixer.rope for spec in config.layers[:6]] == ["local"] * 5 + ["full"]
    assert config.ropes["full"].theta == 1e6 and config.embedding.factor == 48
    assert len({id(spec) for spec in config.layers}) == 2


def test_a_softcap_of_0_is_none():
    """As llama.cpp reads it; 0 · tanh(x / 0) would make all logits 0, and every token 0."""
    raw = config_of("gemma3_text/odd")
    assert read({**raw, "final_logit_softcapping": 12.0}).head.softcap == 12
    assert read({**raw, "final_logit_softcapping": 0.0}).head.softcap is None


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama/odd", "rms_norm_eps", -1.0), ("llama/odd", "partial_rotary_factor", np.nan),
        ("olmo2/odd", "partial_rotary_factor", np.inf), ("gpt_neox/serial", "layer_norm_eps", -1),
        ("gemma3_text/odd", "query_pre_attn_scalar", 0), ("gemma3_text/odd", "rope_parameters", 1),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has_are_refused_by_name(name, key, value):
    with pytest.raises(ModelFileError, match=key):
        read({**config_of(name), key: value})


def test_what_gemma_does_not_do_is_refused():
    raw = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    with pytest.raises(ModelFileError, match="use_bidirectional_attention"):
        read(raw)


@pytest.mark.parametrize("name", ["gemma3_text/odd", "gpt_neox/serial", "olmo2/odd", "llama/odd"])
def test_hidden_states(name, tmp_path):
    """One after the embedding, one after each layer; the head of the last gives the logits."""
    module = load_module(cases.checkpoint(BY_NAME[name], tmp_path), backend=NUMPY)
    runner = Runner(module, NUMPY)
    ids = [5, 9, 100, 7]
    states = [h.numpy() for h in runner.hidden_states(ids)]
    assert len(states) == module.config.num_hidden_layers + 1
    owner = module.lm_head or module.model.embed_tokens
    logits = states[-1].astype(np.float64) @ owner.weight.numpy().astype(np.float64).T
    cap = module.config.head.softcap
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    np.testing.assert_allclose(runner.logits(ids).numpy(), logits, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_a_short_file(name):
    """Config reading, a load plan, and a block only where it differs: no copies of parts."""
    source = Path(importlib.import_module(f"boostr.models.{FAMILIES[name][0]}").__file__)
    assert len(source.read_text().splitlines()) <= (210 if name == "bert" else 150)


@pytest.mark.parametrize("name", ["llama/tied", "bert/mlm"])
def test_a_forward_pass_keeps_no_hidden_states_but_the_last(name, tmp_path, monkeypatch):
    """Those of all layers took memory, and a GPU's cache (3.6 % of SmolLM2's prefill)."""
    module = load_module(cases.checkpoint(BY_NAME[name], tmp_path), backend=NUMPY)
    layers = module.encoder.layer if name.startswith("bert") else module.model.layers
    layers *= 3  # in place: six of them
    kind, alive, most = type(layers[0]), weakref.WeakSet(), []
    original = kind.__call__

    def watched(self, x, batch):
        made = original(self, x, batch)
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(kind, "__call__", watched)
    module.hidden(Runner(module, NUMPY).packed([[1, 2, 3]]))
    assert len(most) == 6 and max(most) <= 2
