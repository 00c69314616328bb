"""Methods of quantization that are not read are refused by their name, before any weight is."""

from __future__ import annotations

import json

import pytest
from tiny_model import make_tiny

import boostr
from boostr.errors import ModelFileError
from boostr.models.quantized import METHODS as READ
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


@pytest.mark.parametrize(("method", "config"), [m for m in METHODS if m[0] not in (None, *READ)])
def test_loading_refuses_in_one_line_before_it_reads(method, config, tmp_path):
    folder = make_tiny(tmp_path / "m", **config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError) as error:
        boostr.load(folder, backend="numpy")
    text = str(error.value)
    assert repr(method) in text and "it reads" in text and "\n" not in text


def test_model_opt_says_it_in_a_file_of_its_own(tmp_path):
    folder = make_tiny(tmp_path / "m")
    boostr.load(folder, backend="numpy")
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})
    )
    with pytest.raises(ModelFileError, match=r"hf_quant_config\.json: .*'FP8'"):
        boostr.load(folder, backend="numpy")
