"""Packed checkpoints of every method: the logits of the weights that they mean, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import packed_files as files
import pytest

import boostr
from boostr import Tensor, ops
from boostr.engine.load import load_module
from boostr.io.safetensors import open_safetensors
from boostr.models.save import save_folder


class Case(NamedTuple):
    config: dict[str, Any]
    packer: files.Packer
    sizes: tuple[int, int] = (128, 256)
    embed: bool = False
    saves: bool = True


PACKED, CT, INT = files.ct_packed, files.ct, files.ct_int
TOKENS = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}
CASES = {
    "ct-w4-g32": Case(CT(group_size=32), PACKED()),
    "ct-w4-g128-zeros": Case(CT(group_size=128, symmetric=False), PACKED(4, 128, False)),
    "ct-w4-row": Case(CT(strategy="channel"), PACKED(4, 0)),
    "ct-w4-row-zeros": Case(
        CT(strategy="channel", symmetric=False), PACKED(4, 0, False, np.float16), saves=False
    ),
    "ct-w4-odd-rows": Case(CT(strategy="channel"), PACKED(4, 0), (96, 140)),
    "ct-w4-odd-groups": Case(
        {**CT(group_size=12), "dtype": "float32"}, PACKED(4, 12), (96, 144), saves=False
    ),
    "ct-w8-g64": Case(CT(num_bits=8, group_size=64), PACKED(8, 64)),
    "ct-w8-zeros": Case(CT(num_bits=8, group_size=64, symmetric=False), PACKED(8, 64, False)),
    **{f"ct-w{b}": Case(CT(num_bits=b, group_size=32), PACKED(b)) for b in (1, 2, 3, 5, 6, 7)},
    **{
        f"ct-w{b}-spaced": Case(
            CT(num_bits=b, group_size=32, symmetric=False),
            PACKED(b, 32, False, pack=files.spaced), saves=False,
        )
        for b in (3, 5, 6, 7)
    },
    "ct-w4-act-order": Case(
        CT(group_size=32, actorder="group"), PACKED(act_order=True), saves=False
    ),
    "ct-w8a16": Case(CT("int-quantized", num_bits=8, strategy="channel"), INT()),
    "ct-w8a16-tensor": Case(CT("int-quantized", num_bits=8, strategy="tensor"), INT(tensor=True)),
    "ct-w8a16-zeros": Case(
        CT("int-quantized", num_bits=8, group_size=64, symmetric=False), INT(64, False)
    ),
    "mlx-4": Case(files.mlx(), files.mlx_affine(), embed=True),
    **{
        f"mlx-{b}-g{g}": Case(files.mlx(bits=b, group_size=g), files.mlx_affine(b, g))
        for b, g in ((2, 64), (3, 128), (5, 32), (6, 64), (8, 128))
    },
    "mlx-f16": Case(files.mlx(bits=8), files.mlx_affine(8, dtype=np.float16), embed=True),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_logits(case, tmp_path):
    meant = files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    want = files.logits(meant)
    model = boostr.load(tmp_path / "m", backend="numpy")
    weights: Any = model.module.weights()  # type: ignore[union-attr]
    for name, w in meant.items():
        weight = weights[f"{name}.weight"]
        got = weight.numpy() if isinstance(weight, Tensor) else ops.dequantize(weight).numpy()
        np.testing.assert_allclose(got, w, rtol=1e-6, atol=1e-8)
    got = model.logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 3e-4 * np.abs(want).max()


def test_what_is_saved_is_the_checkpoint(case, tmp_path):
    if not case.saves:
        pytest.skip("is refused, see below")
    files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    save_folder(load_module(tmp_path / "m", backend="numpy"), tmp_path / "again")
    want, got = (open_safetensors(tmp_path / folder) for folder in ("m", "again"))
    assert sorted(want.names) == sorted(got.names)
    for name in want.names:
        assert want.dtype(name) == got.dtype(name), name
        assert np.array_equal(want.tensor(name), got.tensor(name)), name
