"""Calibrated rounding: GPTQ against rounding to the nearest, on weights and on whole layers."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import tiny_model
from draws import normal
from tiny_model import make_tiny, make_tiny_encoder
from tokenizers import Tokenizer, models, pre_tokenizers

import boostr
from boostr import Tensor, ops
from boostr.dispatch import strict
from boostr.engine.gptq import Inputs, gptq
from boostr.errors import OptionError
from boostr.operands import Recorded
from boostr.quant.scheme import SCHEMES, QuantizedTensor, affine_scheme

TEXT = (Path(__file__).parents[1] / "data" / "lcet10.txt").read_bytes().decode()
CASES = (
    *map(SCHEMES.get, ("int4-g32", "int4-g64", "int8", "int8-g32")),
    affine_scheme(3, 64, "f16"), affine_scheme(8, 32), affine_scheme(2, 32, "f32"),
)  # fmt: skip


def correlated(rng, T, K):
    """Inputs of very different sizes that occur together."""
    mix = rng.standard_normal((K, K)) / np.sqrt(K) + np.eye(K)
    sizes = np.exp(rng.standard_normal(K))
    return (rng.standard_normal((T, K)) @ mix * sizes).astype(np.float32)


def tensor_of(scheme, shape, planes):
    return QuantizedTensor(
        scheme, shape, {name: Tensor(plane, backend="numpy") for name, plane in planes.items()}
    )


@pytest.mark.parametrize("scheme", CASES, ids=lambda scheme: scheme.name)
def test_what_weights_make_of_their_inputs_changes_less(scheme, rng):
    w, x = normal(rng, (48, 192)), correlated(rng, 1024, 192)
    inputs = Inputs.of(x.T.astype(np.float64) @ x / len(x))
    fitted = ops.dequantize(tensor_of(scheme, w.shape, gptq(w, inputs, scheme))).numpy()
    nearest = ops.dequantize(ops.quantize(Tensor(w, backend="numpy"), scheme)).numpy()
    errors = [np.square(x @ (q - w).T).mean() for q in (fitted, nearest)]
    assert errors[0] < 0.8 * errors[1]


def test_independent_inputs_leave_nothing_to_take_up(rng):
    """Under a gram that is the identity each column is rounded to its nearest number."""
    w, scheme = normal(rng, (16, 64)), SCHEMES["int4-g32"]
    got = tensor_of(scheme, w.shape, gptq(w, Inputs.of(np.eye(64)), scheme))
    scales = np.repeat(got.parts["scales"].numpy().astype(np.float32), 32, 1)
    want = np.clip(np.rint(w / scales), -8, 7) * scales
    np.testing.assert_array_equal(ops.dequantize(got).numpy(), want)


def test_zeros_and_inputs_never_seen(rng):
    w, gram = normal(rng, (8, 64)), np.zeros((64, 64))
    w[0] = 0
    gram[:8, :8] = np.eye(8)
    for scheme in CASES:
        if scheme.group_size <= 64:
            got = ops.dequantize(tensor_of(scheme, w.shape, gptq(w, Inputs.of(gram), scheme)))
            assert np.isfinite(got.numpy()).all() and np.all(got.numpy()[0] == 0)


def test_recorded_weights_show_their_inputs(plain_backend, rng):
    """And multiply as before, in strict mode too; fused sites fall apart around them."""
    w, x = (Tensor(normal(rng, shape), backend=plain_backend) for shape in ((8, 64), (3, 64)))
    seen = []
    with strict():
        got = ops.linear(x, Recorded(w, seen.append))
    np.testing.assert_array_equal(got.numpy(), ops.linear(x, w).numpy())
    assert len(seen) == 1 and np.array_equal(seen[0].numpy(), x.numpy())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("hidden_size", 64), ("intermediate_size", 128),
                           ("num_hidden_layers", 2)):  # fmt: skip
            patch.setitem(tiny_model.CONFIG, key, value)
        return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


def changed(folder, source) -> float:
    """How far hidden states are from those of the float model, on another part of the text."""
    ids = boostr.load(source, backend="numpy").tokenizer.encode(TEXT[-600:])
    states = [boostr.load(x, backend="numpy").hidden_states(ids)[-1] for x in (folder, source)]
    return float(np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[1]))


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64", "mlx:4"])
def test_models(scheme, source, tmp_path):
    options = {"backend": "numpy", "quantize_embeddings": False}
    plain = boostr.quantize(source, tmp_path / "plain", scheme, **options)
    fitted = boostr.quantize(
        source, tmp_path / "fitted", scheme, calibrate=TEXT[:9000], calibration_chunks=8, **options
    )
    assert (fitted.weight_bytes, fitted.schemes) == (plain.weight_bytes, plain.schemes)
    configs = [json.loads((x.path / "config.json").read_text()) for x in (plain, fitted)]
    assert configs[0] == configs[1]
    assert changed(fitted.path, source) < 0.9 * changed(plain.path, source)


def test_packed_qkv_of_gpt_neox(tmp_path):
    """Its rows lie otherwise in the checkpoint, and share their inputs."""
    case = cases.named("gpt_neox/parallel")
    (tmp_path / "src").mkdir()
    folder = cases.checkpoint(case, tmp_path / "src")
    letters = {character: i for i, character in enumerate(sorted(set(TEXT[:2000])))}
    inner = Tokenizer(models.WordLevel(letters, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    inner.save(str(folder / "tokenizer.json"))
    errors = []
    for name, text in (("fitted", TEXT[:2000]), ("plain", None)):
        made = boostr.quantize(folder, tmp_path / name, "int8", calibrate=text, backend="numpy")
        errors.append(changed(made.path, folder))
    assert errors[0] < 0.5 * errors[1] and errors[1] < 0.1  # 0.4; 0.63 with rows mixed up


def test_refuses(source, tmp_path):
    for scheme in ("fp8", "nf4"):
        with pytest.raises(OptionError, match=f"equal steps; {scheme} is not"):
            boostr.quantize(source, tmp_path / "x", scheme, calibrate=TEXT)
    with pytest.raises(OptionError, match="has 3 tokens, expected 512"):
        boostr.quantize(source, tmp_path / "x", "int8", calibrate="abc")
    encoder = make_tiny_encoder(tmp_path / "encoder")
    with pytest.raises(OptionError, match="this model is none"):
        boostr.quantize(encoder, tmp_path / "x", "int8", calibrate=TEXT)
    assert not (tmp_path / "x").exists()
