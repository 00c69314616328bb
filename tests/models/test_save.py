"""What is loaded and saved is the same: every family, every rule, shards; and what is refused."""

from __future__ import annotations

import json

import cases
import gguf_files
import numpy as np
import pytest
from cases import each, named

from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.io.safetensors import INDEX, SINGLE, open_safetensors
from boostr.models.save import save_folder


def arrays(folder):
    with open_safetensors(folder) as files:
        return {name: np.array(files.tensor(name)) for name in files.names}


@each(cases.CASES)
def test_loaded_and_saved_is_the_same(case, tmp_path):
    """Parameters bit for bit; and the tensors are those of the checkpoint, by name and value."""
    source = tmp_path / "source"
    source.mkdir()
    module = load_module(cases.checkpoint(case, source), backend="numpy")
    save_folder(module, tmp_path / "saved")
    again = load_module(tmp_path / "saved", backend="numpy")
    want, got = module.weights(), again.weights()
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].numpy().tobytes() == want[name].numpy().tobytes(), name
    original = arrays(source)  # an encoder is written without its head, and what that puts before
    original |= {name.partition(".")[2]: array for name, array in original.items()}
    for name, array in arrays(tmp_path / "saved").items():
        assert np.array_equal(array, original[name].astype(array.dtype)), name


def test_shards(tmp_path):
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    module = load_module(cases.checkpoint(named("llama/untied"), source), backend="numpy")
    save_folder(module, saved, shard_bytes=20_000)
    index = json.loads((saved / INDEX).read_text())
    files = sorted(path.name for path in saved.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert not (saved / SINGLE).exists() and not list(saved.glob("*.tmp"))
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays(saved).values())
    want, got = module.weights(), load_module(saved, backend="numpy").weights()
    assert all(np.array_equal(got[name].numpy(), want[name].numpy()) for name in want)


def test_a_folder_with_weights_is_left_alone(tmp_path):
    folder = cases.checkpoint(named("llama/untied"), tmp_path)
    before = (folder / SINGLE).read_bytes()
    with pytest.raises(ModelFileError, match="weights in this folder already"):
        save_folder(load_module(folder, backend="numpy"), folder)
    assert (folder / SINGLE).read_bytes() == before


def test_packed_weights_have_no_form_in_a_folder(tmp_path):
    folder = cases.checkpoint(named("llama/untied"), tmp_path)
    module = load_module(folder, backend="numpy", quantize="int8")
    with pytest.raises(ModelFileError, match=r"is packed as int8.*without quantize"):
        save_folder(module, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [("llama/untied", "q and k lie in another order"), ("gemma3_text/odd", "norm weights are")],
)
def test_what_lies_otherwise_in_gguf_cannot_be_a_folder(name, what, tmp_path):
    """Other readers of the folder would compute something else, in silence."""
    folder = cases.checkpoint(named(name), tmp_path)
    module = load_module(gguf_files.convert(folder, tmp_path / "m.gguf"), backend="numpy")
    with pytest.raises(ModelFileError, match=f"came from a GGUF file, whose {what}"):
        save_folder(module, tmp_path / "saved")
