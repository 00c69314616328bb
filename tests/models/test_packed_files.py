"""Packed checkpoints of every method: the logits of the weights that they mean, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import packed_files as files
import pytest

import boostr
from boostr import Tensor, backends, ops
from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.io.safetensors import open_safetensors
from boostr.models.quantized import method_of, quantized_plan
from boostr.models.save import save_folder
from boostr.models.weights import stored_weights
from boostr.quant.scheme import SCHEMES


class Case(NamedTuple):
    config: dict[str, Any]
    packer: files.Packer
    sizes: tuple[int, int] = (128, 256)
    embed: bool = False
    saves: bool = True


PACKED, CT, INT = files.ct_packed, files.ct, files.ct_int
TOKENS = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}


def FLOAT(layout="float-quantized", **weights):  # noqa: N802
    return CT(layout, **{"num_bits": 8, "type": "float", **weights})


def CONFIG(**table):  # noqa: N802
    return {"dtype": "bfloat16", "quantization_config": table}


def GPTQ(**table):  # noqa: N802
    return CONFIG(**{"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, **table})


def AWQ(**table):  # noqa: N802
    return CONFIG(**{"quant_method": "awq", "bits": 4, "group_size": 32, **table})


BNB = CONFIG(quant_method="bitsandbytes", load_in_4bit=True)
MLX = files.mlx
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
    "mlx-tied": Case(
        {**files.mlx(), "tie_word_embeddings": True}, files.mlx_affine(), embed=True
    ),
    "mlx-mxfp4": Case(
        MLX(mode="mxfp4", group_size=32), files.mxfp4("weight", "scales", "<u4"), saves=False
    ),
    "mlx-nvfp4": Case(
        MLX(mode="nvfp4", group_size=16), files.nvfp4("weight", "scales", "", word="<u4"),
        saves=False,
    ),
    "mlx-mxfp8": Case(MLX(mode="mxfp8", group_size=32, bits=8), files.mlx_mxfp8, saves=False),
    "ct-fp8-row": Case(FLOAT(strategy="channel"), files.fp8()),
    "ct-fp8-tensor": Case(FLOAT(strategy="tensor"), files.fp8(over="tensor", shape=(1,))),
    "ct-fp8-block": Case(
        FLOAT(strategy="block", block_structure=[128, 128]), files.fp8(over="block"), (160, 288)
    ),
    "ct-fp8-group": Case(FLOAT(group_size=64), files.fp8(over=64)),
    "ct-nvfp4": Case(
        FLOAT("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
        files.nvfp4("weight_packed", "weight_scale", "weight_global_scale", True), (96, 144),
        saves=False,
    ),
    "ct-mxfp4": Case(
        FLOAT("mxfp4-pack-quantized", num_bits=4, group_size=32), files.mxfp4(), saves=False
    ),
    "fp8-block": Case(
        CONFIG(quant_method="fp8", weight_block_size=[128, 128]),
        files.fp8("weight_scale_inv", "block"), (160, 288),
    ),
    "fp8-block-e8m0": Case(
        CONFIG(quant_method="fp8", weight_block_size=[128, 128], scale_fmt="ue8m0"),
        files.fp8("weight_scale_inv", "block", dtype=files.E8M0), saves=False,
    ),
    "fp8-tensor": Case(
        CONFIG(quant_method="fp8"), files.fp8(over="tensor", dtype=files.BF16, shape=()),
        saves=False,
    ),
    "fbgemm": Case(CONFIG(quant_method="fbgemm_fp8"), files.fp8(), saves=False),
    "modelopt-fp8": Case(
        CONFIG(quant_method="modelopt", quant_algo="FP8"),
        files.fp8(over="tensor", shape=()), saves=False,
    ),
    "modelopt-nvfp4": Case(
        CONFIG(quant_method="modelopt", quant_algo="NVFP4"),
        files.nvfp4("weight", "weight_scale", "weight_scale_2"), saves=False,
    ),
    **{
        f"gptq-{b}": Case(GPTQ(bits=b), files.gptq(b, bias=b == 4), saves=False)
        for b in range(2, 9)
    },
    "gptq-zeros": Case(GPTQ(sym=False), files.gptq(symmetric=False), saves=False),
    "gptq-8-zeros": Case(GPTQ(sym=False, bits=8), files.gptq(8, symmetric=False), saves=False),
    "gptq-v2": Case(
        GPTQ(sym=False, checkpoint_format="gptq_v2"), files.gptq(4, 32, False, False), saves=False
    ),
    "gptq-mislabelled": Case(GPTQ(), files.gptq(less_one=False), saves=False),
    "gptq-act-order": Case(GPTQ(desc_act=True), files.gptq(act_order=True), saves=False),
    "gptq-act-order-zeros": Case(
        GPTQ(sym=False, bits=3), files.gptq(3, symmetric=False, act_order=True), saves=False
    ),
    "gptq-row": Case(GPTQ(group_size=-1, sym=False), files.gptq(4, -1, False), saves=False),
    "gptq-odd": Case(GPTQ(group_size=-1), files.gptq(4, -1), (96, 136), saves=False),
    "auto-round": Case(
        GPTQ(quant_method="auto-round", packing_format="auto_round:auto_gptq"), files.gptq(),
        saves=False,
    ),
    "auto-round-v2": Case(
        GPTQ(quant_method="auto-round", packing_format="auto_round", sym=False),
        files.gptq(4, 32, False, False), saves=False,
    ),
    "auto-round-awq": Case(
        GPTQ(quant_method="auto-round", packing_format="auto_round:auto_awq"), files.awq(),
        saves=False,
    ),
    "awq": Case(AWQ(), files.awq(), saves=False),
    "awq-w-bit": Case(
        CONFIG(quant_method="awq", w_bit=4, q_group_size=64, version="GEMM", zero_point=True),
        files.awq(64, symmetric=True), saves=False,
    ),
    "nf4": Case(BNB, files.bnb4()),
    "nf4-nested": Case(BNB, files.bnb4(nested=True), saves=False),
    "nf4-stored-bf16": Case(BNB, files.bnb4(storage=files.BF16), saves=False),
    "nf4-crossing": Case(
        BNB, files.bnb4(nested=True, dtype="float32"), (96, 140), saves=False
    ),
    "fp4": Case(BNB, files.bnb4("fp4", 128), saves=False),
    "bnb-int8": Case(BNB, files.bnb8, saves=False),
}  # fmt: skip


ON_GPUS = ("ct-w4-g32", "ct-w3", "ct-w4-odd-rows", "ct-w4-odd-groups", "mlx-4", "mlx-8-g128",
           "ct-fp8-block", "ct-nvfp4", "gptq-zeros", "gptq-act-order", "nf4-nested")  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_logits(case, tmp_path, monkeypatch):
    """Products decode the weights: a kernel for each of so many forms takes a second to compile,
    and `test_numpy_schemes.py` meets every kind, `test_logits_on_every_backend` some files."""
    numpy = backends.get("numpy")
    kernel = numpy.kernel
    monkeypatch.setattr(numpy, "kernel", lambda op: "slow" if op == "linear" else kernel(op))
    meant = files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    want = files.logits(meant)
    model = boostr.load(tmp_path / "m", backend="numpy")
    weights: Any = model.module.weights()  # type: ignore[union-attr]
    for name, w in meant.items():
        if f"{name}.weight" not in weights:
            assert name == "lm_head" and case.config["tie_word_embeddings"]
            continue
        weight = weights[f"{name}.weight"]
        got = weight.numpy() if isinstance(weight, Tensor) else ops.dequantize(weight).numpy()
        np.testing.assert_allclose(got, w, rtol=1e-6, atol=1e-8)
    got = model.logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 3e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.saves])
def test_what_is_saved_is_the_checkpoint(name, tmp_path):
    case = CASES[name]
    files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    save_folder(load_module(tmp_path / "m", backend="numpy"), tmp_path / "again")
    want, got = (open_safetensors(tmp_path / folder) for folder in ("m", "again"))
    assert sorted(want.names) == sorted(got.names)
    for name in want.names:
        assert want.dtype(name) == got.dtype(name), name
        assert np.array_equal(want.tensor(name), got.tensor(name)), name


@pytest.mark.parametrize("name", ["nf4-nested", "nf4-stored-bf16"])
def test_nf4_is_saved_in_its_plain_form(name, tmp_path):
    """Scales as float32, codes as bytes; the numbers are the same."""
    files.make(tmp_path / "m", CASES[name].packer, CASES[name].config)
    save_folder(load_module(tmp_path / "m", backend="numpy"), tmp_path / "again")
    with open_safetensors(tmp_path / "again") as again:
        assert not [n for n in again.names if "nested" in n]
    models = [boostr.load(tmp_path / folder, backend="numpy") for folder in ("m", "again")]
    want, got = (model.logits(files.IDS) for model in models)  # type: ignore[union-attr]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ON_GPUS)
def test_logits_on_every_backend(name, backend, tmp_path):
    case = CASES[name]
    want = files.logits(
        files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    )
    got = boostr.load(tmp_path / "m", backend=backend).logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 3e-2 * np.abs(want).max()


def test_layers_that_round_their_input(tmp_path):
    config = CT("int-quantized", num_bits=8, strategy="channel", inputs=TOKENS)
    want = files.logits(files.make(tmp_path / "m", INT(), config), rounded=True)
    model = boostr.load(tmp_path / "m", backend="numpy")
    weights: Any = model.module.weights()  # type: ignore[union-attr]
    assert weights["model.layers.0.mlp.up_proj.weight"].scheme == SCHEMES["w8a8"]
    got = model.logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 1e-2 * np.abs(want).max()  # a number may round otherwise
    save_folder(load_module(tmp_path / "m", backend="numpy"), tmp_path / "again")
    again = boostr.load(tmp_path / "again", backend="numpy")
    assert np.array_equal(again.logits(files.IDS), got)  # type: ignore[union-attr]


def slices(weight, w):
    """(some rows and columns of a weight, what they mean), of its meaning w."""
    N, K = weight.shape
    layout, gathered = weight.layout, np.array([N - 1, 0, 17, 18, 19, 5])
    yield weight.rows(13, 47), w[13:47]
    yield weight.take(0, gathered), w[gathered]
    yield weight.take(0, range(1, N, 3)), w[1::3]
    yield weight.rows(13, 47).take(0, range(2, 9)), w[15:22]
    if layout.floats is not None:
        yield weight.columns(5, 77), w[:, 5:77]
    elif layout.order is None:
        end = K // 2 // layout.scheme.unit * layout.scheme.unit
        yield weight.columns(end, K), w[:, end:]
        if end:
            yield weight.columns(0, end).rows(3, 5), w[3:5, :end]


def test_slices_are_those_of_the_weight(case, tmp_path):
    meant = files.make(tmp_path / "m", case.packer, case.config, case.sizes, case.embed)
    name = "model.layers.0.mlp.down_proj"
    with open_safetensors(tmp_path / "m") as source:
        plan = quantized_plan(method_of(case.config, "config.json"))
        weight: Any = plan.load(stored_weights(source, "m")).weights[f"{name}.weight"]
        for part, want in slices(weight, meant[name]):
            got = part.weight(backends.get("numpy"))
            got = got if isinstance(got, Tensor) else ops.dequantize(got)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "words"), [("ct-w4-g32", "cut at multiples of 32"), ("gptq-act-order", "sorted by")]
)
def test_columns_that_cannot_be_cut(name, words, tmp_path):
    case = CASES[name]
    files.make(tmp_path / "m", case.packer, case.config)
    with open_safetensors(tmp_path / "m") as source:
        plan = quantized_plan(method_of(case.config, "config.json"))
        weights = plan.load(stored_weights(source, "m")).weights
        with pytest.raises(ModelFileError, match=words):
            weights["model.layers.0.mlp.down_proj.weight"].columns(0, 16)


@pytest.mark.parametrize(("name", "words"), [("awq", "int4-g32-zeros"), ("gptq-act-order", "desc")])
def test_a_layout_that_is_not_written_is_refused(name, words, tmp_path):
    case = CASES[name]
    files.make(tmp_path / "m", case.packer, case.config)
    with pytest.raises(ModelFileError, match=words):
        save_folder(load_module(tmp_path / "m", backend="numpy"), tmp_path / "again")
    save_folder(load_module(tmp_path / "m", backend="numpy", dtype="float32"), tmp_path / "again")
    models = (boostr.load(tmp_path / folder, backend="numpy") for folder in ("m", "again"))
    a, b = (model.logits(files.IDS) for model in models)  # type: ignore[union-attr]
    assert np.abs(a - b).max() < 3e-4 * np.abs(a).max()
