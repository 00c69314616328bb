"""fuse: the merged folder is the model with its adapter, and what cannot be merged is refused."""

from __future__ import annotations

import json

import cases
import numpy as np
import packed_files
import pytest
from cases import close, named
from tiny_model import make_tiny

import boostr
from boostr.errors import ModelFileError, OptionError
from boostr.io.peft import Adapter, Factors, write_adapter
from boostr.models import adapters

DATA = cases.DATA / "peft"


def drawn(folder, module):
    """A folder with an adapter of random numbers over all of a model's products in layers."""
    rng, layers = np.random.default_rng(3), {}
    weights, modules = module.weights(), adapters.modules_of(module)
    for name, parts in modules.items():
        if ".layers." in name:
            N, K = sum(weights[p].shape[0] for p in parts), weights[parts[0]].shape[1]
            shapes = (2, K), (N, 2)
            layers[name] = Factors(*(rng.standard_normal(s).astype("f4") / 8 for s in shapes), 0.5)
    write_adapter(folder, Adapter("", layers), modules)
    return folder


def test_whole_weights_tokenizer_and_settings(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    adapter = drawn(tmp_path / "adapter", boostr.load(folder, backend="numpy").module)
    out = boostr.fuse(folder, adapter, tmp_path / "out")
    beside, merged = boostr.load(folder, backend="numpy", adapter=adapter), boostr.load(out)
    close(merged.logits(range(5, 25)), beside.logits(range(5, 25)), 1e-5)
    assert merged.generate("hi", max_tokens=5).text == beside.generate("hi", max_tokens=5).text
    assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}


def test_sums_are_rounded_once(tmp_path):
    """bf16 weights stay bf16: each is the nearest to the sum in float32."""
    folder = cases.checkpoint(named("llama/bf16"), tmp_path)
    model = boostr.load(folder, backend="numpy")
    adapter = drawn(tmp_path / "adapter", model.module)
    out = boostr.load(boostr.fuse(folder, adapter, tmp_path / "out"), backend="numpy")
    beside = boostr.load(folder, backend="numpy", adapter=adapter).module.weights()
    for name, weight in out.module.weights().items():
        own, base = beside[name], model.module.weights()[name]
        assert weight.dtype == base.dtype
        if hasattr(own, "down"):
            added = own.up.numpy().astype("f8") @ own.down.numpy().astype("f8") * own.scale
            want = base.to("float32").numpy().astype("f8") + added
            error = np.abs(weight.to("float32").numpy() - want)
            assert (error <= 2.0**-8 * np.abs(want) + 1e-6).all()  # half a step


def test_a_packed_base_asks(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    table = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    packed_files.make(folder, packed_files.gptq(), {"quantization_config": table})
    adapter = drawn(tmp_path / "adapter", boostr.load(folder, backend="numpy").module)
    with pytest.raises(OptionError, match="--dequantize"):
        boostr.fuse(folder, adapter, tmp_path / "out")
    out = boostr.fuse(folder, adapter, tmp_path / "out", dequantize=True, dtype="float32")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ids = [*range(5, 25)]
    beside = boostr.load(folder, backend="numpy", adapter=adapter)
    close(boostr.load(out, backend="numpy").logits(ids), beside.logits(ids), 1e-4)


def test_refuses(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    with pytest.raises(OptionError, match="exists already"):
        boostr.fuse(folder, DATA / "patterns", folder)
    with pytest.raises(ModelFileError, match="does not fit"):
        boostr.fuse(folder, DATA / "packed", tmp_path / "out")
    with pytest.raises(ModelFileError, match=r"no adapter_config.json"):
        boostr.fuse(folder, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_model(tmp_path):
    model = boostr.load(make_tiny(tmp_path / "tiny"), backend="numpy")
    adapter = drawn(tmp_path / "adapter", model.module)
    with pytest.raises(ModelFileError, match="adapter: an adapter, which is no model"):
        boostr.load(adapter, backend="numpy")
