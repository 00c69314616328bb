"""Smoothing: the same model as floats, and a better one as w8a8."""

from __future__ import annotations

import shutil
from pathlib import Path

import cases
import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr import backends, dtypes, nn
from boostr.engine import smooth as smoothing
from boostr.engine.calibrate import CHUNK, Calibration
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.engine.smooth import Sample, smooth
from boostr.errors import OptionError
from boostr.io.safetensors import open_safetensors, save
from boostr.models.lazy import Held, Scaled, whole
from boostr.models.weights import stored_weights
from boostr.quant.scheme import SCHEMES
from boostr.tensor import Tensor

TEXT = (Path(__file__).parents[1] / "data" / "lcet10.txt").read_bytes().decode()


def feeds(layer: nn.LayerSpec) -> int:
    """What reads a norm with weights, v unless it is clamped, and up where it is gated."""
    before = [layer.norms.before_mixer, layer.norms.before_mlp]
    norms = sum(norm is not None and norm.weight for norm in before)
    return norms + (layer.mixer.clip is None) + layer.mlp.gated


@cases.each(cases.PLAIN)
def test_any_factors_leave_the_model_as_it_is(case, tmp_path, rng, monkeypatch):
    host, seen = backends.get("numpy"), []

    def drawn(feed, sample, scheme):
        seen.append(feed)
        return np.exp(rng.uniform(-2, 2, int(feed.outputs.max()) + 1)).astype(np.float32)

    monkeypatch.setattr(smoothing, "_chosen", drawn)
    (tmp_path / "old").mkdir()
    folder = cases.checkpoint(case, tmp_path / "old")
    module = load_module(folder, backend=host)
    ids = rng.integers(0, module.config.vocab_size, CHUNK)
    want = Runner(module, host).logits(ids[:40]).numpy()
    plan = module.load_plan(module.config)
    with open_safetensors(folder) as files:
        weights = plan.load(stored_weights(files, "old")).weights
        calibration = Calibration(module, host, ids.tolist(), 1)
        made = plan.save(smooth(weights, calibration, SCHEMES["w8a8"]))
        arrays = {name: np.array(w.read(whole(w.shape))) for name, w in made.items()}
        assert len(seen) == sum(map(feeds, module.config.layers)) > 0
    (tmp_path / "new").mkdir()
    shutil.copyfile(folder / "config.json", tmp_path / "new" / "config.json")
    save(tmp_path / "new" / "model.safetensors", arrays)
    got = Runner(load_module(tmp_path / "new", backend=host), host).logits(ids[:40]).numpy()
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def changed(folder, source) -> float:
    """How far hidden states are from those of the float model, on another part of the text."""
    ids = boostr.load(source, backend="numpy").tokenizer.encode(TEXT[-600:])
    states = [boostr.load(x, backend="numpy").hidden_states(ids)[-1] for x in (folder, source)]
    return float(np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[1]))


def test_outliers_cost_less(tmp_path, rng):
    """A norm has outputs that are 60 times the others; the columns that read them are as small."""
    source = make_tiny(tmp_path / "tiny", hidden_size=64, intermediate_size=96)
    with open_safetensors(source) as files:
        arrays = {name: np.array(files.tensor(name)) for name in files.names}
    layer = "model.layers.0."
    for norm, readers in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        arrays[f"{layer}{norm}.weight"][[3, 40]] *= 60
        for reader in readers:
            arrays[f"{layer}{reader}.weight"][:, [3, 40]] /= 60
    save(source / "model.safetensors", arrays)
    options = {"backend": "numpy"}
    plain = boostr.quantize(source, tmp_path / "plain", "w8a8", **options)
    even = boostr.quantize(source, tmp_path / "even", "w8a8", calibrate=TEXT[:2000], **options)
    assert (even.weight_bytes, even.source_bytes, even.schemes) == (
        plain.weight_bytes, plain.source_bytes, plain.schemes,
    )  # fmt: skip
    assert changed(even.path, source) < 0.4 * changed(plain.path, source)


def test_layers_that_say_nothing_are_refused(tmp_path, monkeypatch):
    source = make_tiny(tmp_path / "tiny")
    monkeypatch.setattr(nn.Block, "feeds", nn.Module.feeds)
    with pytest.raises(OptionError, match="what can be scaled"):
        boostr.quantize(source, tmp_path / "x", "w8a8", calibrate=TEXT[:600], backend="numpy")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_factors_are_those_that_the_norm_can_hold(dtype, rng):
    """What is taken from a norm of 16 bits is given to the columns, its rounding included."""
    for offset in (0.0, 1.0):
        stored = rng.standard_normal(64).astype(dtypes.parse(dtype))
        stored[5] = -offset  # an output that is always 0
        norm = nn.Norm(64, nn.NormSpec(offset=offset))
        norm.weight = Tensor(stored, backend="numpy")
        out = {"n.weight": Held("n.weight", stored)}
        asked = np.exp(rng.uniform(-2, 2, 64)).astype(np.float32)
        factors = smoothing._divide(out, norm, "n", asked)
        made = out["n.weight"].read((range(64),))
        assert made.dtype == stored.dtype and factors[5] == 1
        before, after = (x.astype(np.float64) + offset for x in (stored, made))
        np.testing.assert_allclose(after * factors, before, rtol=1e-6, atol=1e-12)


def test_scaled_weights_are_read_in_parts(rng):
    w, s = rng.standard_normal((6, 8)).astype("f4"), rng.standard_normal(8).astype("f4")
    scaled = Scaled(Scaled(Held("w", w), 1, s), 0, np.arange(6, dtype="f4"))
    part = scaled.take(0, np.array([4, 1])).columns(2, 5)
    want = (w * s * np.arange(6)[:, None])[[4, 1], 2:5]
    np.testing.assert_allclose(part.read(whole(part.shape)), want, rtol=1e-6)


def test_a_sample_is_of_all_calls():
    sample = Sample()
    for start in (0, 100):
        x = np.arange(start, start + 64, dtype="f4").reshape(32, 2) * np.array([1, -2], "f4")
        sample(Tensor(x, backend="numpy"))
    assert sample.largest.tolist() == [162, 326] and sample.rows.shape == (64, 2)
