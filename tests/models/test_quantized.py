"""What a config says of quantization: methods and options that are not read are refused by name
before any weight is, modules have their own settings, and tensors must be what the config says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import packed_files as files
import pytest
from cases import checkpoint, named
from tiny_model import make_tiny

import boostr
from boostr.cli.forms import weights_of_folder
from boostr.errors import ModelFileError
from boostr.io.safetensors import open_safetensors, save
from boostr.models.quantized import quantization_method

METHODS = [
    ("gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ("awq", {"quantization_config": {"quant_method": "awq"}}),
    ("compressed-tensors", {"compression_config": {"quant_method": "compressed-tensors"}}),
    ("mlx", {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}),
    ("mlx", {"quantization_config": {"group_size": 64, "bits": 4}}),
    ("NVFP4", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}),
    ("unnamed (quantization_config)", {"quantization_config": {"bits": 3}}),
    (None, {}),
    (None, {"quantization_config": None}),
    (None, {"quantization_config": {}}),
]


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_the_method_is_named(method, config):
    assert quantization_method(config) == method


def config_of(method, **options):
    return {"quantization_config": {"quant_method": method, **options}}


UNREAD = [
    (name, config_of(name)) for name in ("hqq", "aqlm", "torchao", "quanto", "gemma", "mxfp4")
]
UNREAD += [
    ("unnamed (quantization_config)", {"quantization_config": {"bits": 3}}),
    ("gemv", config_of("awq", bits=4, group_size=128, version="gemv")),
    ("bits 3", config_of("awq", bits=3)),
    ("gptq_p", config_of("gptq", bits=4, checkpoint_format="gptq_p")),
    ("bits 9", config_of("gptq", bits=9)),
    ("group_size", config_of("gptq", bits=4, group_size=0)),
    ("no expression", config_of("gptq", bits=4, dynamic={"+:(": {"bits": 8}})),
    ("auto_round:fp8", config_of("auto-round", bits=8, packing_format="auto_round:fp8")),
    ("bits 'all'", config_of("auto-round", bits=4, extra_config={"a": {"bits": "all"}})),
    ("bits None", config_of("auto-round", bits=4, extra_config={"a": {"bits": None}})),
    ("marlin-24", config_of("compressed-tensors", format="marlin-24")),
    ("2:4", config_of("compressed-tensors", sparsity_config={"format": "2:4"})),
    ("transform_config", config_of("compressed-tensors", transform_config={"R1": {}})),
    ("num_bits 9", files.ct(num_bits=9, group_size=32)),
    ("group_size", files.ct(strategy="group")),
    ("strategy 'token'", files.ct(strategy="token")),
    ("num_bits 4", files.ct(group_size=32, inputs={"num_bits": 4, "type": "int"})),
    ("strategy 'tensor'", files.ct(num_bits=8, strategy="channel", inputs={
        "num_bits": 8, "type": "int", "dynamic": True, "strategy": "tensor"})),
    ("symmetric False", files.ct(num_bits=8, strategy="channel", inputs={
        "num_bits": 8, "type": "int", "dynamic": True, "symmetric": False})),
    ("e5m2", config_of("fp8", fmt="e5m2")),
    ("weight_block_size", config_of("fp8", weight_block_size=[128])),
    ("W4A16_AWQ", config_of("modelopt", quant_algo="W4A16_AWQ")),
    ("INT8_SQ", {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {
        "a": {"quant_algo": "INT8_SQ"}}}}),
    ("bits 7", files.mlx(bits=7)),
    ("mode 'mxfp6'", files.mlx(mode="mxfp6")),
]  # fmt: skip


@pytest.mark.parametrize(("named", "config"), UNREAD)
def test_loading_refuses_in_one_line_before_it_reads(named, config, tmp_path):
    folder = make_tiny(tmp_path / "m", **config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError) as error:
        boostr.load(folder, backend="numpy")
    text = str(error.value)
    assert named in text and "config.json" in text and "\n" not in text
    assert "reads" in text or "must be" in text or "read weights" in text or "expression" in text


def test_model_opt_says_it_in_a_file_of_its_own(tmp_path):
    folder = make_tiny(tmp_path / "m")
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "INT8_SQ"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelFileError, match=r"hf_quant_config\.json: .*'INT8_SQ'"):
        boostr.load(folder, backend="numpy")


# -- settings of modules -------------------------------------------------------------------------
def by_module(packers: dict[str, files.Packer], other: files.Packer) -> files.Packer:
    """The packer of the first key that is in a module's name."""

    def packer(rng, name, N, K):
        return next((p for key, p in packers.items() if key in name), other)(rng, name, N, K)

    return packer


def plain(rng, name, N, K):
    w = (0.05 * rng.standard_normal((N, K))).astype(np.float32)
    return {"weight": w}, w.astype(np.float64)


def group(targets, **weights):
    config = files.ct(**weights)["quantization_config"]
    return {**config["config_groups"]["group_0"], "targets": targets}


def mixed_groups():
    config = files.ct("mixed-precision", group_size=32)
    config["quantization_config"]["config_groups"] = {
        "all": group(["Linear"], group_size=32),
        "down": {**group(["re:.*down_proj$"], num_bits=8, strategy="channel"),
                 "format": "int-quantized"},
        "one": group(["model.layers.1.mlp.down_proj"], num_bits=8, type="float",
                     strategy="channel"),
    }  # fmt: skip
    return config


SETTINGS = {
    "ct": (mixed_groups(), {
        "1.mlp.down": files.fp8(), "down": files.ct_int(), "o_proj": plain,
    }, files.ct_packed()),
    "gptq": (config_of("gptq", bits=4, group_size=32, dynamic={
        r"-:.*o_proj": {}, r"+:.*\.1\.mlp": {"bits": 8, "group_size": 64}, r".*v_proj": {"bits": 2},
    }), {"o_proj": plain, "1.mlp": files.gptq(8, 64), "v_proj": files.gptq(2)}, files.gptq()),
    "auto-round": (config_of("auto-round", bits=4, group_size=32, extra_config={
        "model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64},
        "model.layers.1.mlp.up_proj": {"bits": 16, "data_type": "float"},
    }), {"0.mlp.up": files.gptq(8, 64), "1.mlp.up": plain}, files.gptq()),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4, "model.layers.1.mlp.down_proj": {
        "group_size": 32, "bits": 8}, "model.layers.0.mlp.up_proj": False}},
        {"1.mlp.down": files.mlx_affine(8, 32), "0.mlp.up": plain}, files.mlx_affine()),
    "modelopt": (config_of("modelopt", quant_algo="MIXED_PRECISION"), {
        "mlp": files.nvfp4("weight", "weight_scale", "weight_scale_2"),
    }, files.fp8(over="tensor", shape=())),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_modules(name, tmp_path):
    config, packers, other = SETTINGS[name]
    meant = files.make(tmp_path / "m", by_module(packers, other), config)
    want = files.logits(meant)
    got = boostr.load(tmp_path / "m", backend="numpy").logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 3e-4 * np.abs(want).max()


@pytest.mark.parametrize(("config", "mark"), [
    (config_of("gptq", bits=4, group_size=32), "qweight"), (files.mlx(), "scales"),
    (files.ct(group_size=32), "weight_packed or .weight_scale"),
])  # fmt: skip
def test_floats_that_the_config_calls_packed(config, mark, tmp_path):
    files.make(tmp_path / "m", plain, config)
    with pytest.raises(ModelFileError, match=rf"no tensor's name ends with \.{mark}"):
        boostr.load(tmp_path / "m", backend="numpy")


def test_floats_that_the_config_calls_dense(tmp_path):
    config = config_of("compressed-tensors", format="dense", quantization_status="compressed")
    want = files.logits(files.make(tmp_path / "m", plain, config))
    got = boostr.load(tmp_path / "m", backend="numpy").logits(files.IDS)  # type: ignore[union-attr]
    assert np.abs(got - want).max() < 3e-4 * np.abs(want).max()


@pytest.mark.parametrize(("options", "said"), [
    ({"quantize": "int8"}, r"quantized already \(int4-g32-zeros\) .* to int8;"),
    ({"quantize": "int8", "dtype": "float32"}, r"\(int4-g32-zeros\) .* to int8;"),
])  # fmt: skip
def test_rounding_a_second_time_is_said(options, said, tmp_path):
    files.make(tmp_path / "m", files.awq(), config_of("awq", bits=4, group_size=32))
    with pytest.warns(UserWarning, match=said):
        model = boostr.load(tmp_path / "m", backend="numpy", **options)
    assert "int8" in repr(model.module.weights()["model.layers.0.mlp.up_proj.weight"])  # type: ignore[union-attr]
    boostr.load(tmp_path / "m", backend="numpy", quantize_embeddings="int8")  # those are floats


def test_a_module_of_no_group(tmp_path):
    config = files.ct(group_size=32)
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["re:.*mlp.*"]
    files.make(tmp_path / "m", files.ct_packed(), config)
    with pytest.raises(ModelFileError, match=r"no config group has 'model\.layers\.0\.self_attn"):
        boostr.load(tmp_path / "m", backend="numpy")


# -- tensors that are not what the config says ---------------------------------------------------
def without(part):
    return lambda arrays: arrays.pop(part)


def put(part, make):
    return lambda arrays: arrays.update({part: make(arrays[part])})


def spoiled(value):
    def put_in(array):
        array = array.copy()
        array.reshape(-1)[3] = value
        return array

    return put_in


CT, GPTQ = files.ct(group_size=32), config_of("gptq", bits=4, group_size=32)
BNB = config_of("bitsandbytes")
STATE = "weight.quant_state.bitsandbytes__nf4"
FP8 = config_of("fp8", weight_block_size=[128, 128])
MODELOPT = config_of("modelopt", quant_algo="NVFP4")
NVFP4 = files.nvfp4("weight", "weight_scale", "weight_scale_2")
LIES: list[tuple[dict, files.Packer, Any, str]] = [
    (CT, files.ct_packed(), without("weight_scale"), "weight_scale missing"),
    (CT, files.ct_packed(), without("weight_shape"), "weight_shape missing"),
    (CT, files.ct_packed(), put("weight_shape", lambda a: a + 1), "weight_packed has 128 rows"),
    (CT, files.ct_packed(), put("weight_shape", lambda a: a * [1, 2]), "expected [128, 8]"),
    (CT, files.ct_packed(), put("weight_scale", lambda a: a[:, :2]), "weight_scale: expected"),
    (CT, files.ct_packed(), put("weight_scale", lambda a: a.view("i2")), "got int16"),
    (CT, files.ct_packed(), put("weight_scale", spoiled(np.nan)), "weight_scale' has numbers"),
    (CT, files.ct_packed(act_order=True), put("weight_g_idx", lambda a: a + 1), "g_idx: groups"),
    (files.ct(group_size=32, symmetric=False), files.ct_packed(), lambda arrays: None,
     "weight_zero_point missing"),
    (GPTQ, files.gptq(), put("g_idx", lambda a: a - 1), "g_idx: groups must be 0 to 3, got -1"),
    (GPTQ, files.gptq(), put("g_idx", lambda a: a * 0), "g_idx: group 1 has not 32 inputs"),
    (GPTQ, files.gptq(), put("g_idx", lambda a: a[1:]), "g_idx: expected 128 integers"),
    (GPTQ, files.gptq(), put("scales", spoiled(np.inf)), "scales' has numbers"),
    (GPTQ, files.gptq(), put("qzeros", lambda a: a[:1]), "qzeros: expected"),
    (GPTQ, files.gptq(), without("qzeros"), "qzeros missing"),
    (GPTQ, files.gptq(8), lambda arrays: None, "scales: expected"),
    (config_of("awq", bits=4, group_size=64), files.awq(32), lambda arrays: None, "expected"),
    (files.mlx(), files.mlx_affine(8), lambda arrays: None, "scales: expected"),
    (files.mlx(), files.mlx_affine(), without("biases"), "biases missing"),
    (BNB, files.bnb4(), without("weight.absmax"), "weight.absmax missing"),
    (BNB, files.bnb4(), put("weight", lambda a: a[1:]), "codes of 4 bits"),
    (BNB, files.bnb4(), put(STATE, lambda a: a[1:]), "quant_state: not what"),
    (BNB, files.bnb4(nested=True), without("weight.nested_absmax"), "weight.nested_absmax"),
    (BNB, files.bnb8, put("weight_format", lambda a: a + 1), "weight_format"),
    (FP8, files.fp8("weight_scale_inv", "block"), put("weight_scale_inv", lambda a: a[:, :0]),
     "weight_scale_inv: expected"),
    (FP8, files.fp8("weight_scale_inv", "block"),
     put("weight", lambda a: np.where(a == 0, np.nan, a).astype(a.dtype)), "weight' has numbers"),
    (FP8, files.fp8("weight_scale_inv", "block"), without("weight_scale_inv"), "float8_e4m3fn"),
    (MODELOPT, NVFP4, without("weight_scale_2"), "weight_scale_2 missing"),
    (MODELOPT, NVFP4, lambda a: a.update(pre_quant_scale=np.ones(128, "f4")), "pre_quant_scale"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(LIES)))
def test_tensors_that_do_not_fit_are_named(case, tmp_path):
    config, packer, change, words = LIES[case]
    name = "model.layers.0.self_attn.o_proj"

    def changed(rng, module, N, K):
        arrays, meant = packer(rng, module, N, K)
        if module == name:
            change(arrays)
        return arrays, meant

    files.make(tmp_path / "m", changed, config)
    with pytest.raises(ModelFileError) as error:
        boostr.load(tmp_path / "m", backend="numpy")
    assert words in str(error.value) and "o_proj" in str(error.value)


# -- beside the packed weights -------------------------------------------------------------------
def test_a_bias_that_is_not_zero_is_not_dropped(tmp_path):
    files.make(tmp_path / "m", files.gptq(bias=True), GPTQ)
    with open_safetensors(tmp_path / "m") as source:
        arrays = {name: source.tensor(name).copy() for name in source.names}
    arrays["model.layers.1.mlp.up_proj.bias"][2] = 1
    save(tmp_path / "m" / "model.safetensors", arrays)
    with pytest.raises(
        ModelFileError, match=r"unexpected \(1\):\s+model.layers.1.mlp.up_proj.bias"
    ):
        boostr.load(tmp_path / "m", backend="numpy")


def test_forms_are_told_by_headers(tmp_path):
    config, packers, other = SETTINGS["ct"]
    files.make(tmp_path / "m", by_module(packers, other), config)
    with open_safetensors(tmp_path / "m") as source:
        rows, problem = weights_of_folder(source, config, tmp_path / "m")
    found = {row.name.removeprefix("model.layers."): row for row in rows}
    assert problem is None
    assert found["0.mlp.up_proj.weight"].form == "int4-g32"
    assert found["0.mlp.up_proj.weight"].nbytes == 256 * 128 * 4.5 / 8
    assert found["0.mlp.down_proj.weight"].form == "int8"
    assert found["1.mlp.down_proj.weight"].form == "fp8"
    assert found["1.self_attn.o_proj.weight"].form == "float32"
    assert found["1.self_attn.o_proj.weight"].shape == (128, 128)


@pytest.mark.parametrize(
    ("packer", "config"),
    [
        (files.ct_packed(4, 16), files.ct(group_size=16)),
        (files.ct_int(), files.ct(num_bits=8, strategy="channel")),
        (files.gptq(4, 16, symmetric=False), config_of("gptq", bits=4, group_size=16, sym=False)),
    ],
    ids=["int4", "int8", "gptq"],
)
def test_heads_of_packed_weights(packer, config, tmp_path):
    """GPT-NeoX has q, k and v of each head end to end in one weight."""
    case, rng = named("gpt_neox/parallel"), np.random.default_rng(3)
    folder = checkpoint(case, tmp_path)
    with open_safetensors(folder) as source:
        arrays = {name: source.tensor(name).copy() for name in source.names}
    stored, meant = dict(arrays), dict(arrays)
    for name, array in arrays.items():
        if name.endswith("query_key_value.weight"):
            module = name.removesuffix(".weight")
            parts, w = packer(rng, module, *array.shape)
            del stored[name]
            stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            meant[name] = w.astype(np.float32)
    plain = json.loads((folder / "config.json").read_text())
    logits = []
    for tensors, changes in ((meant, {}), (stored, config)):
        (folder / "config.json").write_text(json.dumps({**plain, **changes}))
        save(folder / "model.safetensors", tensors)
        model: Any = boostr.load(folder, backend="numpy")
        logits.append(model.logits(np.arange(1, 9)))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[0]).max()
