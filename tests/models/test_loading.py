"""Strict loading: every parameter exactly once, one error with all, the four cases of tying."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
from cases import named
from packed import draw

from boostr import backends
from boostr.engine.load import load_module
from boostr.errors import DTypeError, ModelFileError, OptionError
from boostr.io.safetensors import open_safetensors, save
from boostr.models.weights import _join
from boostr.ops.quant import dequantize


@pytest.fixture
def edit(tmp_path):
    """edit(case, change(tensors, config)) -> folder of the changed checkpoint."""

    def make(name, change):
        folder = cases.checkpoint(named(name), tmp_path)
        with open_safetensors(folder) as files:
            tensors = {n: np.array(files.tensor(n)) for n in files.names}
        config = json.loads((folder / "config.json").read_text())
        change(tensors, config)
        (folder / "config.json").write_text(json.dumps(config))
        save(folder / "model.safetensors", tensors)
        return folder

    return make


def arrays(module):
    return {name: np.array(weight.numpy()) for name, weight in module.weights().items()}


def assert_same(got, want):
    assert list(got) == list(want)
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_one_error_lists_missing_unexpected_and_misshapen(edit):
    def change(tensors, config):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.extra.weight"] = np.zeros(3, np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 5), np.float32)

    with pytest.raises(ModelFileError) as error:
        load_module(edit("llama/untied", change))
    text = str(error.value)
    for part in (
        "missing (1)", "model.norm.weight", "unexpected (1)", "model.layers.0.extra.weight",
        "misshapen (1)", "model.layers.0.mlp.up_proj.weight: expected", "got [3, 5]",
    ):  # fmt: skip
        assert part in text


def test_tied_and_absent(edit):
    module = load_module(edit("llama/tied", lambda t, c: t.pop("lm_head.weight", None)))
    assert module.lm_head is None


def test_tied_and_only_the_head_is_present(edit):
    """Of two names for one tensor a file may have kept either."""

    def change(tensors, config):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    want = arrays(load_module(edit("llama/tied", lambda t, c: None)))
    assert_same(arrays(load_module(edit("llama/tied", change))), want)


def test_a_parameter_under_two_names_is_refused(edit):
    def change(tensors, config):
        name = "bert.embeddings.LayerNorm.weight"
        name = name if name in tensors else name.removeprefix("bert.")
        tensors[name.replace("weight", "gamma")] = tensors[name]

    with pytest.raises(ModelFileError, match=r"conflicting \(1\):\n.*LayerNorm.*given twice, by"):
        load_module(edit("bert/mlm", change))


def test_tied_and_present_must_be_the_same_numbers(edit):
    def same(tensors, config):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    load_module(edit("llama/tied", same))

    def other(tensors, config):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    with pytest.raises(ModelFileError, match="different numbers"):
        load_module(edit("llama/tied", other))


def test_untied_and_present(edit):
    module = load_module(edit("llama/untied", lambda t, c: None))
    assert module.lm_head is not None


def test_untied_and_absent_says_what_to_do(edit):
    with pytest.raises(ModelFileError, match="set tie_word_embeddings"):
        load_module(edit("llama/untied", lambda t, c: t.pop("lm_head.weight")))


def test_inert_buffers_of_old_checkpoints_are_ignored(edit):
    def change(tensors, config):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    load_module(edit("llama/untied", change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "lama", "nearest: 'llama'"),
        ("hidden_act", "swiglu_oai", "unknown activation"),
        ("rope_parameters", {"rope_type": "ntk2"}, "unknown scaling type 'ntk2'"),
        ("rope_parameters", {"rope_type": "llama3"}, "needs the parameter"),
        ("num_hidden_layers", "two", "must be int"),
        ("num_hidden_layers", 0, "1 or more"),
        ("num_key_value_heads", 4, "multiple"),
        ("hidden_size", None, "lacks 'hidden_size'"),
    ],
)
def test_bad_configs_name_the_key(edit, key, value, message):
    def change(tensors, config):
        config[key] = value

    folder = edit("llama/untied", change)
    with pytest.raises((ModelFileError, OptionError), match=message):
        from boostr.engine.runner import Runner

        module = load_module(folder)
        Runner(module, module.lm_head.weight.backend).logits([1, 2])


def test_keys_that_name_code_are_inert(edit):
    def change(tensors, config):
        config["auto_map"] = {"AutoModel": "evil.Model"}
        config["model_file"] = "evil.py"
        config["trust_remote_code"] = True

    folder = edit("llama/untied", change)
    (folder / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    load_module(folder)


def test_stored_form_is_kept_without_a_copy(tmp_path):
    folder = cases.checkpoint(named("llama/bf16"), tmp_path)
    module = load_module(folder, backend="numpy")
    weight = module.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == "bfloat16"
    assert not weight.data.flags.writeable  # the mapped file itself
    assert module.model.norm.weight.dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_converts_matrices(tmp_path, dtype):
    module = load_module(cases.checkpoint(named("llama/untied"), tmp_path), dtype=dtype)
    assert module.model.layers[0].mlp.up_proj.weight.dtype == dtype
    assert module.model.norm.weight.dtype == np.float32


def test_bad_dtype_and_scheme_are_named(tmp_path):
    folder = cases.checkpoint(named("llama/untied"), tmp_path)
    with pytest.raises(DTypeError, match="int8"):
        load_module(folder, dtype="int8")
    with pytest.raises(OptionError, match="did you mean 'int8-g128'"):
        load_module(folder, quantize="int8-g12")


@pytest.mark.parametrize("name", ["llama/tied", "qwen3/tied"])
def test_a_base_model_without_the_prefix_loads(edit, name):
    def change(tensors, config):
        for old in [n for n in tensors if n.startswith("model.")]:
            tensors[old.removeprefix("model.")] = tensors.pop(old)

    want = arrays(load_module(edit(name, lambda t, c: None)))
    assert_same(arrays(load_module(edit(name, change))), want)


def test_layer_norms_of_the_first_years(edit):
    """gamma and beta, as bert-base-uncased has them."""

    def change(tensors, config):
        for old in [n for n in tensors if "LayerNorm" in n]:
            new = old.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[new] = tensors.pop(old)

    want = arrays(load_module(edit("bert/mlm", lambda t, c: None)))
    assert_same(arrays(load_module(edit("bert/mlm", change))), want)


def test_packed_embeddings_keep_the_activations_of_the_file(tmp_path, monkeypatch):
    """They were float32 then, and on a GPU all products ran on its slow units."""
    backend = backends.get("numpy")
    monkeypatch.setattr(type(backend), "activation_dtype", lambda self, stored: stored)
    folder = cases.checkpoint(named("llama/bf16"), tmp_path)
    for embeddings in (False, True):
        module = load_module(
            folder, backend=backend, quantize="int8", quantize_embeddings=embeddings
        )
        assert module.activation_dtype == "bfloat16"


def test_weights_of_one_input_lie_end_to_end_as_far_as_they_are_stored_alike(rng):
    """q and k of a file whose v is of another type, such as a Q4_K_M."""
    drawn = [draw("numpy", rng, form, N, 64) for form, N in
             (("q4_0", 8), ("q4_0", 4), ("q8_0", 4))]  # fmt: skip
    layers: Any = [SimpleNamespace(weight=w) for w, _ in drawn]
    _join(layers)
    q, k, v = (layer.weight for layer in layers)
    for name, part in q.parts.items():
        assert part.data.ctypes.data + part.data.nbytes == k.parts[name].data.ctypes.data
    assert v is drawn[2][0]
    for w, (_, truth) in zip((q, k, v), drawn, strict=True):
        np.testing.assert_array_equal(dequantize(w).numpy(), truth.astype(np.float32))
