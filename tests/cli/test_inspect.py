"""boostr inspect: what headers say, of models that run and of those that do not."""

import json
from pathlib import Path

import cases
import gguf_files
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf_files import convert
from tiny_model import make_tiny, make_tiny_encoder

from boostr import load, quantize
from boostr.io.safetensors import save


def described(boostr, *args: str) -> dict:
    result = boostr("inspect", *args, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_a_folder(boostr, tiny: str) -> None:
    done = described(boostr, tiny)
    assert done["architecture"] == "llama" and done["runs"] and done["refusal"] is None
    assert done["context"] == 4096 and done["chat_template"] is True
    assert (done["tokenizer"], done["vocabulary"]) == ("BPE", 258)
    assert done["sizes"]["num_hidden_layers"] == 1
    total = done["types"]["F32"]
    assert total["parameters"] == done["parameters"] and total["bytes"] == done["weight_bytes"]
    assert done["weight_bytes"] == 4 * done["parameters"] < done["file_bytes"]
    text = boostr("inspect", tiny).stdout
    assert "runs here" in text and "llama" in text and "BPE, 258 tokens" in text


def test_tensors_are_listed_on_request(boostr, tiny: str) -> None:
    assert "tensors" not in described(boostr, tiny)
    rows = described(boostr, tiny, "--tensors")["tensors"]
    embedding = next(row for row in rows if row["name"] == "model.embed_tokens.weight")
    assert embedding["shape"] == [258, 32] and embedding["nbytes"] == 258 * 32 * 4
    assert (
        "model.embed_tokens.weight  F32  [258, 32]" in boostr("inspect", tiny, "--tensors").stdout
    )


def test_models_that_do_not_run_here(boostr, tmp_path: Path) -> None:
    unknown = described(boostr, str(make_tiny(tmp_path / "a", model_type="rwkv")))
    assert not unknown["runs"] and unknown["architecture"] == "rwkv" and unknown["parameters"]
    packed = {"quantization_config": {"quant_method": "gptq"}}
    gptq = described(boostr, str(make_tiny(tmp_path / "b", **packed)))
    assert not gptq["runs"] and gptq["quantization"] == "gptq"


def test_folders_of_sentence_transformers(boostr, tmp_path: Path) -> None:
    make_tiny_encoder(tmp_path / "m" / "0_Transformer")
    kinds = ["Transformer", "Pooling", "Normalize"]
    rows = [{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"}
            for i, k in enumerate(kinds)]  # fmt: skip
    (tmp_path / "m" / "modules.json").write_text(json.dumps(rows))
    done = described(boostr, str(tmp_path / "m"))
    assert done["runs"] and done["architecture"] == "bert" and done["vocabulary"] == 258
    rows[2]["type"] = "custom_st.Normalize"
    (tmp_path / "m" / "modules.json").write_text(json.dumps(rows))
    make_tiny_encoder(tmp_path / "m")
    done = described(boostr, str(tmp_path / "m"))
    assert not done["runs"] and "'custom_st.Normalize' is not known" in done["refusal"]


def test_a_gguf_whose_tokenizer_is_not_known(boostr, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m", rms_norm_eps=1e-5)
    for kind, pre, refusal in (
        ("rwkv", "default", "tokenizer model 'rwkv' is not known"),
        ("gpt2", "nonesuch", "tokenizer.ggml.pre is 'nonesuch'"),
        ("none", "default", None), ("llama", "default", None),
    ):  # fmt: skip
        path = convert(folder, tmp_path / f"{kind}-{pre}.gguf", tokenizer=(kind, pre))
        done = described(boostr, str(path))
        assert done["runs"] == (refusal is None) and (refusal or "") in (done["refusal"] or "")
    assert load(tmp_path / "none-default.gguf", backend="numpy").tokenizer is None


def test_a_folder_with_a_vocabulary_alone(boostr, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert described(boostr, str(folder))["runs"]
    (folder / "vocab.txt").write_text("[UNK]\n")
    for kind, refusal in (("BertTokenizer", None), ("FunnelTokenizer", "'FunnelTokenizer' is not")):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        done = described(boostr, str(folder))
        assert done["tokenizer"] == "vocab.txt" and done["runs"] == (refusal is None)
        assert (refusal or "") in (done["refusal"] or "")


def test_a_file_of_tensors_alone(boostr, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"a": np.ones((3, 4), np.float16), "ids": np.arange(5)})
    done = described(boostr, str(path))
    assert done["architecture"] is None and "config.json" in done["refusal"]
    assert done["parameters"] == 12  # indices are no parameters
    assert list(done["types"]) == ["I64", "F16"]


@pytest.mark.parametrize("architecture", ["llama", "nonesuch"])
def test_gguf(boostr, tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(77)
    writer.add_block_count(3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b"])
    writer.add_chat_template("x")
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    blocks = np.zeros((8, 18), np.uint8)
    writer.add_tensor("blk.0.x", blocks, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = described(boostr, str(path))
    assert done["architecture"] == architecture and not done["runs"] and done["chat_template"]
    assert done["context"] == 77 and done["sizes"] == {"num_hidden_layers": 3}
    assert (done["tokenizer"], done["vocabulary"]) == ("gpt2 (smollm)", 2)
    assert {kind: t["bytes"] for kind, t in done["types"].items()} == {"F32": 1024, "Q4_0": 144}


def test_a_split_gguf_is_one_model(boostr, tmp_path: Path) -> None:
    case = cases.named("llama/tied")
    folder = cases.checkpoint(case, tmp_path)
    whole = described(boostr, str(gguf_files.convert(folder, tmp_path / "m.gguf")))
    parts = tmp_path / "parts"
    parts.mkdir()
    first = gguf_files.convert(folder, parts / "m.gguf", parts=2)
    for path in (parts, first):
        done = described(boostr, str(path))
        assert done["runs"] and done["parameters"] == whole["parameters"]
        assert done["file_bytes"] == sum(path.stat().st_size for path in parts.iterdir())


def test_no_tensor_is_read(boostr, tmp_path: Path) -> None:
    """A file of 64 GiB that has no blocks on the disk."""
    path = tmp_path / "model.safetensors"
    size = 64 << 30
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    try:
        with path.open("r+b") as file:
            file.truncate(8 + len(header) + size)
    except OSError:
        pytest.skip("this file system has no sparse files of that size")
    assert described(boostr, str(path))["weight_bytes"] == size


def test_not_on_this_machine(boostr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = boostr("inspect", "org/name", "--revision", "v1")
    assert result.exit_code == 1 and "boostr pull org/name" in result.stderr
    assert boostr("inspect", "--revision", "v1").exit_code == 2


def test_forms_of_gguf_and_of_packed_folders(boostr, tmp_path: Path) -> None:
    """How matrices are held, in bits a number with their scales, and who has kernels for it."""
    import real_models

    forms = {row["form"]: row for row in described(boostr, str(real_models.smollm2()))["forms"]}
    assert set(forms) == {"q4_1", "q8_0"} and forms["q4_1"]["weights"] == 210
    assert (forms["q4_1"]["bits"], forms["q8_0"]["bits"]) == (5.0, 8.5)
    assert forms["q8_0"]["kernels"] == {"cupy": None, "wgpu": None, "numpy": None}
    source = make_tiny(tmp_path / "src")
    made = str(quantize(source, tmp_path / "made", "int8", backend="numpy").path)
    done = described(boostr, made, "--tensors")
    assert done["runs"] and done["parameters"] == described(boostr, str(source))["parameters"]
    forms = {row["form"]: row for row in done["forms"]}
    assert forms["int8"]["weights"] == 7 and 8 < forms["int8"]["bits"] < 9.1
    held = {row["name"]: row for row in done["weights"]}
    loaded = load(made, backend="numpy").module.weights()
    assert set(held) == set(loaded)
    assert all(held[name]["nbytes"] == weight.nbytes for name, weight in loaded.items())
    text = boostr("inspect", made, "--tensors").stdout
    assert "held as" in text and "q_proj.weight_packed  I32  [32, 8]" in text
    weights = {"model.layers.0.mlp.up_proj.weight_packed": np.zeros((44, 8), np.int32)}
    save(Path(made) / "model.safetensors", weights)
    broken = described(boostr, made)
    assert not broken["runs"] and "weight_shape missing" in broken["refusal"]
