"""Every family: configs in three spellings, hidden states, gradients, and what its parts are."""

from __future__ import annotations

import importlib
import json
import weakref
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import close, each, named
from families import bare

from boostr import Tensor, backends, ops
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import SINGLE, save
from boostr.models import FAMILIES, family_of, mpnet
from boostr.models.config import RawConfig
from boostr.ops.rope_tables import frequencies

NUMPY = backends.get("numpy")


def read(raw):
    config = RawConfig(raw, "config.json")
    return family_of(config).read_config(config)


def outcome(raw):
    """The config, or why there is none."""
    try:
        return read(raw)
    except ModelFileError as error:
        return str(error)


def defaults(case):
    """What the class of its config in transformers has without arguments."""
    return json.loads((cases.DATA / f"{case.family}.json").read_text())["defaults"]


@each(cases.CASES)
def test_three_spellings_read_the_same(case):
    """transformers 5, transformers 4, and without the keys that say what is the default."""
    want = read(case.config)
    assert read(case.data.v4(json.loads(json.dumps(case.config)))) == want
    assert read(bare(case.config, defaults(case))) == want


@each(case for case in cases.CASES if case.first)
def test_keys_that_are_left_out_have_the_familys_defaults(case):
    """Sizes alone are what transformers' class has without arguments; or both are refused alike."""
    whole = defaults(case)
    assert outcome(bare(whole, whole)) == outcome(whole)


def test_gemmas_layers_are_five_local_ones_to_a_full_one():
    config = read({"model_type": "gemma3_text"})
    assert [spec.mixer.window for spec in config.layers[:7]] == [4096] * 5 + [None, 4096]
    assert [spec.mixer.rope for spec in config.layers[:6]] == ["local"] * 5 + ["full"]
    assert config.ropes["full"].theta == 1e6 and config.embedding.factor == 48
    assert len({id(spec) for spec in config.layers}) == 2


def test_mpnets_buckets():
    """From 8 tokens away on a bucket ends at each power of the eighth root of 16."""
    ends = [12, 16, 23, 32, 46, 64, 91]
    want = [n if n < 8 else 8 + sum(n >= end for end in ends) for n in range(129)]
    table = mpnet.buckets()
    assert table[128::-1].tolist() == want
    assert table[129:].tolist() == [16 + bucket for bucket in want[1:]]
    with pytest.raises(ModelFileError, match="relative_attention_num_buckets must be 32 or more"):
        read({**named("mpnet/mlm").config, "relative_attention_num_buckets": 16})


def test_nomic_berts_first_config():
    """That of the code beside its checkpoints."""
    raw = {
        "model_type": "nomic_bert", "n_embd": 64, "n_head": 4, "n_inner": 96, "n_layer": 3,
        "n_positions": 128, "layer_norm_epsilon": 1e-5, "rotary_emb_base": 500, "vocab_size": 199,
        "activation_function": "geglu", "type_vocab_size": 2,
    }  # fmt: skip
    want = {
        "model_type": "nomic_bert", "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5, "rope_theta": 500.0, "vocab_size": 199, "hidden_act": "gelu",
    }  # fmt: skip
    assert read(raw) == read(want) and read(want).ropes["full"].theta == 500
    for name, value in (("prenorm", True), ("rotary_emb_fraction", 0.5), ("qkv_proj_bias", True)):
        with pytest.raises(ModelFileError, match=f"{name} = {value} is not supported"):
            family_of(RawConfig({**raw, name: value}, "config.json"))
    with pytest.raises(ModelFileError, match=r"activation_function must be of .* got 'relu'"):
        read({**raw, "activation_function": "relu"})


def test_gtes_first_config_and_names(tmp_path):
    """`new` of the code beside its checkpoints: its prefix, and rope scaled by a fixed factor."""
    case = named("gte/types")
    folder = cases.checkpoint(case, tmp_path)
    want = load_module(folder, backend=NUMPY)
    scaling = {"rope_theta": 20000.0, "rope_scaling": {"type": "ntk", "factor": 8.0}}
    raw = {k: v for k, v in case.config.items() if k != "rope_parameters"} | scaling
    (folder / "config.json").write_text(json.dumps({**raw, "model_type": "new"}))
    save(folder / SINGLE, {f"new.{n}": array for n, array in cases.weights(case).items()})
    got = load_module(folder, backend=NUMPY)
    for name, weight in want.weights().items():
        assert np.array_equal(got.weights()[name].numpy(), weight.numpy()), name
    rope = got.ropes["full"]
    pairs = np.arange(0, 8, 2) / 8
    np.testing.assert_allclose(
        frequencies(rope, 5)[0], (20000.0 * 8) ** -pairs / 8 ** (2 / 8), rtol=1e-12
    )
    mixed = {**scaling["rope_scaling"], "mixed_b": 1.0}
    with pytest.raises(OptionError, match="mixed_b"):
        frequencies(read({**raw, "rope_scaling": mixed}).ropes["full"], 5)


def test_a_softcap_of_0_is_none():
    """As llama.cpp reads it; 0 · tanh(x / 0) would make all logits 0, and every token 0."""
    raw = named("gemma3_text/odd").config
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
def test_what_no_such_model_has_is_refused_by_name(name, key, value):
    with pytest.raises(ModelFileError, match=key):
        read({**named(name).config, key: value})


@each(cases.CASES)
def test_hidden_states_equal_transformers(case, plain_backend, tmp_path):
    """After the embedding and after each layer, the last after the final norm."""
    options = {} if case.spec.dtype == "float32" else {"dtype": "float32"}
    module = load_module(cases.checkpoint(case, tmp_path), backend=plain_backend, **options)
    runner = Runner(module, plain_backend)
    runs = [runner.hidden_states(ids) for ids in cases.sequences(case)]
    truth = cases.hidden_states(case)
    for layer, want in zip(zip(*runs, strict=True), truth, strict=True):
        close(cases.kept([states.numpy() for states in layer]), want)


@each(cases.CASES)
def test_gradients_reach_every_parameter(case, tmp_path):
    module = load_module(cases.checkpoint(case, tmp_path), backend=NUMPY, dtype="float32")
    weights = {}
    for name, owner, attribute in module.places():
        array = np.array(getattr(owner, attribute).numpy())
        weights[name] = Tensor(array, backend=NUMPY, requires_grad=True)
        setattr(owner, attribute, weights[name])
    batch = Runner(module, NUMPY).packed(cases.sequences(case))
    out = module.head(module.hidden(batch)) if case.generates else module.hidden(batch)
    noise = np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)
    ops.core.sum(out * Tensor(noise, backend=NUMPY)).backward()
    for name, weight in weights.items():
        assert weight.grad is not None and np.isfinite(weight.grad.numpy()).all(), name
        assert weight.grad.numpy().any(), name


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_a_short_file(name):
    """Config reading, a load plan, and a block only where it differs: no copies of parts."""
    source = Path(importlib.import_module(f"boostr.models.{FAMILIES[name][0]}").__file__)
    assert len(source.read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["llama/tied", "bert/mlm"])
def test_a_forward_pass_keeps_no_hidden_states_but_the_last(name, tmp_path, monkeypatch):
    """Those of all layers took memory, and a GPU's cache (3.6 % of SmolLM2's prefill)."""
    module = load_module(cases.checkpoint(named(name), tmp_path), backend=NUMPY)
    layers = module.model.layers
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
