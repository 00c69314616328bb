"""What files of GGUF say that is not obeyed, and models that have no form in one, by name."""

from __future__ import annotations

import re

import cases
import gguf
import gguf_files
import numpy as np
import pytest
from cases import named

import boostr
from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
from boostr.models.gguf import gguf_weights

SECTIONS, PATTERN = "rope.dimension_sections", "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("llama/tied", {SECTIONS: [2, 3, 3, 0]}, "rope.dimension_sections of llama, for positions"),
        ("gemma3_text/odd", {PATTERN: [True, False]}, f"gemma3.{PATTERN} must be 7 flags, got"),
        ("gemma3_text/odd", {PATTERN: [1] * 7}, f"gemma3.{PATTERN} must be 7 flags, got"),
        ("gemma3_text/odd", {PATTERN: "6"}, f"gemma3.{PATTERN} must be 7 flags, got '6'"),
        ("gemma3_text/odd", {PATTERN: 0}, f"gemma3.{PATTERN} must be 7 flags, got 0"),
        ("gemma3_text/bidirectional", {"attention.causal": True}, "attention.causal true, of earl"),
    ],
)
def test_metadata(name, metadata, message, tmp_path):
    folder = cases.checkpoint(named(name), tmp_path)
    with pytest.raises(ModelFileError, match=re.escape(message)):
        load_module(gguf_files.convert(folder, tmp_path / "m.gguf", metadata=metadata))


def test_sections_of_no_dimension_mean_nothing(tmp_path):
    folder = cases.checkpoint(named("llama/tied"), tmp_path)
    path = gguf_files.convert(folder, tmp_path / "m.gguf", metadata={SECTIONS: [0, 0, 0, 0]})
    assert load_module(path, backend="numpy").config.num_hidden_layers == 2


@pytest.mark.parametrize("name", ["wat", 3, None])
def test_architectures(name, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.kv_data[0].clear()
    if isinstance(name, int):
        writer.add_uint32("general.architecture", name)
    elif name is not None:
        writer.add_string("general.architecture", name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = f"unknown architecture {name!r}; boostr reads GGUF of apertus, "
    with pytest.raises(ModelFileError, match=re.escape(message)):
        load_module(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "numbers", "message"),
    [
        ("xielu.alpha_p", [0.5] * 3, "xielu.alpha_p must be 2 numbers, got"),
        ("xielu.alpha_n", None, "xielu.alpha_n must be 2 numbers, got array(None"),
        ("xielu.beta", [0.5, np.nan], "xielu.beta has numbers that are nan or infinite"),
        ("xielu.eps", [-1e-6, -1e-3], "xielu.eps must be -1e-06, got"),
    ],
)
def test_numbers_of_layers(key, numbers, message, tmp_path, monkeypatch):
    made = gguf_files._numbers

    def changed(*arguments):
        kept = made(*arguments) | {key: numbers}
        return {name: values for name, values in kept.items() if values is not None}

    monkeypatch.setattr(gguf_files, "_numbers", changed)
    folder = cases.checkpoint(named("apertus/plain"), tmp_path)
    with pytest.raises(ModelFileError, match=re.escape(message)):
        load_module(gguf_files.convert(folder, tmp_path / "m.gguf"))


@pytest.mark.parametrize("columns", [range(16), range(16, 32), range(0, 32, 2), np.arange(32)])
def test_columns_that_are_no_whole_blocks(columns, tmp_path):
    folder = cases.checkpoint(named("llama/tied"), tmp_path)
    with GGUFFile(gguf_files.convert(folder, tmp_path / "m.gguf", "Q8_0")) as file:
        weight = gguf_weights(file)["blk.0.attn_q.weight"]
        assert weight.read((range(2), range(32))).shape == (2, 34)
        message = r"tensor 'blk\.0\.attn_q\.weight' is Q8_0; its columns can be cut at multiples"
        with pytest.raises(ModelFileError, match=message):
            weight.read((range(2), columns))


@pytest.mark.parametrize("name", ["helium", "nanochat", "mpnet", "albert", "electra", "gte"])
def test_families_that_gguf_has_not(name, tmp_path):
    case = next(case for case in cases.CASES if case.family == name)
    (tmp_path / "f").mkdir()
    message = rf"{name} has no form in GGUF that boostr writes; known: apertus, "
    with pytest.raises(ModelFileError, match=message):
        boostr.convert(cases.checkpoint(case, tmp_path / "f"), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
