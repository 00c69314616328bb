"""GGUF files of every family as Hugging Face folders: what was a folder once is the same again."""

from __future__ import annotations

import json
import re

import gguf
import gguf_files
import numpy as np
import pytest
import real_models
from cases import each, named
from click.testing import CliRunner
from test_gguf_metadata import SAID, logits
from test_gguf_models import changed, constants
from tiny_model import make_tiny

import boostr
from boostr.cli.app import app
from boostr.engine import from_gguf
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import open_safetensors, save

# numbers of the rope that come back
ROPES = {
    "llama/llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "llama/yarn": ("factor", "original_max_position_embeddings"),
    "llama/linear": ("factor",),
    "llama/longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}


def tensors(folder):
    with open_safetensors(folder) as files:
        return {name: files.tensor(name).copy() for name in files.names}


def made(name, tmp_path):
    """The folder of a case, as far as GGUF can say it."""
    (tmp_path / "f").mkdir()
    return changed(name, tmp_path / "f", **constants(named(name)))


@each(case for case in SAID if case.family != "granitemoehybrid")  # it comes back as granite
def test_a_folder_comes_back(case, tmp_path):
    name, folder = case.name, made(case.name, tmp_path)
    boostr.convert(folder, tmp_path / "m.gguf")
    back = boostr.convert(tmp_path / "m.gguf", tmp_path / "b")
    want, got = tensors(folder), tensors(back)
    config = json.loads((folder / "config.json").read_text())
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    more = got.keys() - want.keys()  # a head of its own, which some programs want in the file
    assert got.keys() - tied - more == want.keys() - tied and (
        not more or (len(more) == 1 and tied)
    )
    for key, array in got.items():
        if key in more:
            continue
        assert array.dtype == want[key].dtype
        if config["model_type"].startswith(("gemma", "nemotron")) and key.endswith("norm.weight"):
            # the file has them larger by 1, in float32
            np.testing.assert_allclose(array, want[key], rtol=0, atol=2**-22)
        else:
            assert array.tobytes() == want[key].tobytes(), key
    assert np.abs(logits(back) - logits(folder)).max() <= 1e-5 * np.abs(logits(folder)).max()
    ours = json.loads((back / "config.json").read_text())
    assert not {"rope_layout", "norm_offset"} & ours.keys()
    assert {key for key, value in ours.items() if value is None} <= {"sliding_window"}
    said = config.get("rope_scaling") or config.get("rope_parameters")
    for key in ROPES.get(name, ()):
        np.testing.assert_allclose(ours["rope_scaling"][key], said[key], rtol=1e-6)
    if name == "llama/bf16":
        assert ours["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["llama/tied", "qwen2/tied", "gpt_neox/parallel"])
def test_blocks_that_lie_packed_are_decoded(name, tmp_path):
    """Against the gguf package, through the converter's rules."""
    folder = made(name, tmp_path)
    path = gguf_files.convert(folder, tmp_path / "m.gguf", "Q4_0", packed=True)
    back = boostr.convert(path, tmp_path / "b", dtype="float32")
    again = gguf_files.convert(back, tmp_path / "again.gguf", packed=True)
    got = {t.name: t.data for t in gguf.GGUFReader(again).tensors}
    for tensor in gguf.GGUFReader(path).tensors:
        want = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(got[tensor.name], want)
    rounded = tensors(boostr.convert(path, tmp_path / "r"))
    for key, array in tensors(back).items():
        assert rounded[key].dtype.name == "bfloat16"
        np.testing.assert_array_equal(rounded[key], array.astype(rounded[key].dtype))


@pytest.mark.filterwarnings("ignore:.*take other types")
def test_bands_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(from_gguf, "SHARD_BYTES", 20_000)
    monkeypatch.setattr("boostr.models.gguf_folder._BAND_BYTES", 1000)
    folder = make_tiny(tmp_path / "f")
    path = boostr.convert(folder, tmp_path / "m.gguf", kind="Q8_0")
    seen = []
    back = boostr.convert(
        path, tmp_path / "b", dtype="float32", progress=lambda *step: seen.append(step)
    )
    assert len(list(back.glob("*.safetensors"))) > 2
    assert [done for done, _, _ in seen] == list(range(1, 13)) and seen[0][1] == 12
    # bytes meet x in digits on the CPU, floats do not
    assert np.abs(logits(back) - logits(path)).max() <= 3e-4 * np.abs(logits(path)).max()


def test_a_scale_of_the_whole_tensor(tmp_path):
    """NVFP4 has one beside its blocks."""
    folder, rng = make_tiny(tmp_path / "f", hidden_size=64), np.random.default_rng(3)
    boostr.convert(folder, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(tmp_path / "n.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama.") and field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    blocks = rng.integers(0, 256, (64, 36), dtype=np.uint8)
    blocks[:, :4] = rng.integers(0, 0x70, (64, 4))  # scales: positive and finite
    for tensor in reader.tensors:
        if tensor.name == "blk.0.attn_output.weight":
            kind = gguf.GGMLQuantizationType.NVFP4
            writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
            writer.add_tensor("blk.0.attn_output.scale", np.array([0.5], np.float32))
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    back = boostr.convert(tmp_path / "n.gguf", tmp_path / "b", dtype="float32")
    got = tensors(back)["model.layers.0.self_attn.o_proj.weight"]
    want = gguf.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
    np.testing.assert_array_equal(got, want / 2)


def test_smollm2_goes_on_as_from_its_file(tmp_path):
    path = real_models.smollm2()
    back = boostr.convert(path, tmp_path / "b", dtype="float32")
    one, other = (boostr.load(p, backend="numpy", dtype="float32") for p in (path, back))
    messages = [{"role": "user", "content": "Name three colours."}]
    texts = [
        m.generate(messages=messages, max_tokens=8, temperature=0.0).text for m in (one, other)
    ]
    assert texts[0] == texts[1] and len(texts[0]) > 10
    assert one.eos_ids == other.eos_ids
    text = "naïve Привет 3.14\n\n  <|im_end|> don't"
    assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
    assert one.tokenizer.special.names == other.tokenizer.special.names


def test_tokens_that_end_a_generation(tmp_path):
    folder = make_tiny(tmp_path / "f")
    config = folder / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [257, 5, 6]}))
    path = boostr.convert(folder, tmp_path / "m.gguf")
    back = boostr.convert(path, tmp_path / "b")
    assert boostr.load(path, backend="numpy").eos_ids == {257, 5, 6}
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == [257, 5, 6]
    assert boostr.load(back, backend="numpy").eos_ids == {257, 5, 6}
    config.write_text(json.dumps({"eos_token_id": [257, 5, 6, 7]}))
    with pytest.raises(
        boostr.errors.TokenizerError, match=r"keys for 2 more .* has 3: \[5, 6, 7\]"
    ):
        boostr.convert(folder, tmp_path / "x.gguf")
    (folder / "tokenizer.json").unlink()  # ids without a tokenizer
    config.write_text(json.dumps({"eos_token_id": [5, 6]}))
    path = boostr.convert(folder, tmp_path / "y.gguf")
    assert boostr.load(path, backend="numpy").eos_ids == {5, 6}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    folder = make_tiny(tmp_path / "f")
    stored = tensors(folder)
    stored["model.layers.0.mlp.up_proj.weight"][3, 3] = 1e5
    save(folder / "model.safetensors", stored)
    path = boostr.convert(folder, tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match=r"ffn_up\.weight: .* too large for float16; take bf"):
        boostr.convert(path, tmp_path / "b", dtype="float16")
    with pytest.raises(OptionError, match=r"kind 'F16' is a type of GGUF.*--dtype"):
        boostr.convert(path, tmp_path / "b", kind="F16")
    with pytest.raises(OptionError, match="dtype must be one of float32, float16, bfloat16"):
        boostr.convert(path, tmp_path / "b", dtype="int8")
    with pytest.raises(OptionError, match=r"dtype is that of folders.*--type"):
        boostr.convert(folder, tmp_path / "b.gguf", dtype="float16")
    with pytest.raises(OptionError, match="is a GGUF file already"):
        boostr.convert(path, tmp_path / "b.gguf")
    with pytest.raises(OptionError, match="exists already"):
        boostr.convert(path, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "m.gguf"]


def test_factors_that_no_config_says(tmp_path):
    folder = made("llama/llama3", tmp_path)
    path = boostr.convert(folder, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(path, "r+")
    factors = next(t for t in reader.tensors if t.name == "rope_freqs.weight")
    factors.data[0] = 3.0
    del reader, factors
    with pytest.raises(ModelFileError, match=re.escape("(rope_freqs.weight) are none of Llama 3")):
        boostr.convert(path, tmp_path / "b")


@pytest.mark.filterwarnings("ignore:.*take other types")
def test_the_command(tmp_path):
    path = boostr.convert(make_tiny(tmp_path / "f"), tmp_path / "m.gguf", kind="Q8_0")
    args = ["convert", str(path), "-o", str(tmp_path / "b"), "--dtype", "float16", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] > 20_000
    assert {array.dtype.name for array in tensors(tmp_path / "b").values()} == {"float16"}
