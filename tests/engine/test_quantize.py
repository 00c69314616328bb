"""boostr.quantize: folders that load again as what `load(quantize=)` makes of the same model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
import tiny_model
from tiny_model import make_tiny, make_tiny_encoder

import boostr
from boostr import ops
from boostr.engine.load import load_module
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import open_safetensors, save
from boostr.quant.scheme import affine_scheme

IDS = list(range(3, 40))
COMPRESSED = ("int8", "int8-g32", "int8-g128", "w8a8", "int4-g32", "int4-g64", "int4-g128", "fp8")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A tiny model whose rows are whole groups of 128, in bfloat16."""
    config = tiny_model.CONFIG
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config, "hidden_size", 128)
        patch.setitem(config, "intermediate_size", 256)
        folder = make_tiny(tmp_path_factory.mktemp("models") / "tiny")
    edit(folder, lambda name, array: array.astype("bfloat16"))
    return folder


def edit(folder: Path, change) -> None:
    with open_safetensors(folder) as files:
        tensors = {name: change(name, files.tensor(name).copy()) for name in files.names}
    save(folder / "model.safetensors", tensors)


def logits(folder, **options) -> np.ndarray:
    return boostr.load(folder, backend="numpy", **options).logits(IDS)


@pytest.mark.parametrize("scheme", COMPRESSED)
def test_compressed_tensors(source, tmp_path, scheme):
    made = boostr.quantize(source, tmp_path / "out", scheme, quantize_embeddings=False)
    want = logits(source, quantize=scheme, quantize_embeddings=False)
    np.testing.assert_array_equal(logits(made.path), want)
    assert made.schemes == {scheme: 7, "as stored": 2}
    assert made.tables == {"embedding": "as stored", "head": "as stored"}
    assert made.weight_bytes < made.source_bytes


def test_bitsandbytes(source, tmp_path):
    made = boostr.quantize(source, tmp_path / "out", "nf4")
    want = logits(source, quantize="nf4", quantize_embeddings=False)
    np.testing.assert_array_equal(logits(made.path), want)
    assert made.schemes == {"nf4": 7, "as stored": 2}
    with pytest.raises(OptionError, match="bitsandbytes packs linear layers only"):
        boostr.quantize(source, tmp_path / "b", "nf4", quantize_embeddings="int8")


def test_a_head_of_its_own_takes_eight_bits_under_four(source, tmp_path):
    made = boostr.quantize(source, tmp_path / "out", "int4-g64")
    assert made.tables == {"embedding": "as stored", "head": "int8-g32"}
    got = load_module(made.path, backend="numpy").weights()
    want = load_module(source, backend="numpy", quantize="int4-g64").weights()
    assert repr(got["lm_head.weight"]) == repr(want["lm_head.weight"])
    for name, part in got["lm_head.weight"].parts.items():
        np.testing.assert_array_equal(part.numpy(), want["lm_head.weight"].parts[name].numpy())
    config = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_1"]["targets"] == ["lm_head"] and config["ignore"] == []
    same = boostr.quantize(source, tmp_path / "same", "int4-g64", quantize_embeddings=True)
    assert same.tables["head"] == "int4-g64" and same.weight_bytes < made.weight_bytes


@pytest.mark.parametrize("target", ["mlx:2", "mlx:3-g32", "mlx:4", "mlx:5", "mlx:6", "mlx:8-g128"])
@pytest.mark.parametrize("tables", [None, True, False])
def test_mlx(source, tmp_path, target, tables):
    made = boostr.quantize(source, tmp_path / "out", target, quantize_embeddings=tables)
    bits, _, group = target.removeprefix("mlx:").partition("-g")
    scheme = affine_scheme(int(bits), int(group or 64), "bf16")
    own = affine_scheme(8, scheme.group_size, "bf16") if tables is None else scheme
    plain = load_module(source, backend="numpy").weights()
    for name, weight in load_module(made.path, backend="numpy").weights().items():
        if "norm" in name or (
            tables is False and name.split(".")[-2] in ("embed_tokens", "lm_head")
        ):
            assert not hasattr(weight, "scheme")
            continue
        chosen = own if name.split(".")[-2] in ("embed_tokens", "lm_head") else scheme
        want = ops.dequantize(ops.quantize(plain[name], chosen)).numpy()
        np.testing.assert_array_equal(ops.dequantize(weight).numpy(), want)


@pytest.mark.parametrize("name", ["gpt_neox/parallel", "gemma3_text/tied", "qwen2/tied", "bert/mlm",
                                  "olmo2/untied", "qwen3/untied", "llama/sharded"])  # fmt: skip
def test_every_family(name, tmp_path):
    case = cases.named(name)
    (tmp_path / "src").mkdir()
    source = cases.checkpoint(case, tmp_path / "src")
    made = boostr.quantize(source, tmp_path / "out", "int8", backend="numpy")
    got = load_module(made.path, backend="numpy").weights()
    want = load_module(source, backend="numpy", quantize="int8").weights()
    assert list(got) == list(want)
    for key, weight in want.items():
        assert repr(got[key]) == repr(weight) or not hasattr(weight, "scheme"), key
        pair = [
            ops.dequantize(w) if hasattr(w, "scheme") else w.to("float32")
            for w in (got[key], weight)
        ]
        np.testing.assert_array_equal(pair[0].numpy(), pair[1].numpy())


def test_what_is_carried_over(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "src")
    for name in ("generation_config.json", "LICENSE", "extra/notes.txt", "model.py", ".hidden",
                 "pytorch_model.bin", "original/params.json"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    made = boostr.quantize(folder, tmp_path / "out", "int8").path
    found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert found == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE",
        "generation_config.json", "extra/notes.txt", "original/params.json",
    }  # fmt: skip
    a, b = (boostr.load(x, backend="numpy") for x in (folder, made))
    assert a.tokenizer.special.templates == b.tokenizer.special.templates
    assert a.eos_ids == b.eos_ids
    old, new = (json.loads((x / "config.json").read_text()) for x in (folder, made))
    assert {k: v for k, v in new.items() if k != "quantization_config"} == old


def test_an_encoder_in_a_subfolder(tmp_path):
    inner = make_tiny_encoder(tmp_path / "src" / "0_Transformer")
    kinds = {"Transformer": inner.name, "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    (tmp_path / "src" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "src" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (tmp_path / "src" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    made = boostr.quantize(tmp_path / "src", tmp_path / "out", "int8")
    assert (made.path / "0_Transformer" / "model.safetensors").is_file()
    got, want = (
        boostr.load(x, backend="numpy", **options).embed(["a cat"])
        for x, options in ((made.path, {}), (tmp_path / "src", {"quantize": "int8"}))
    )
    np.testing.assert_array_equal(got, want)


def test_shards(source, tmp_path, monkeypatch):
    monkeypatch.setattr("boostr.engine.quantize.SHARD_BYTES", 60_000)
    monkeypatch.setattr("boostr.engine.quantize._BAND_BYTES", 128 * 4 * 7)
    made = boostr.quantize(source, tmp_path / "out", "int4-g32", quantize_embeddings=False)
    assert len(list(made.path.glob("model-*-of-*.safetensors"))) > 2
    want = logits(source, quantize="int4-g32", quantize_embeddings=False)
    np.testing.assert_array_equal(logits(made.path), want)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_left_behind(source, tmp_path):
    def stop(done, count, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boostr.quantize(source, tmp_path / "out", "int8", progress=stop)
    assert left_behind(tmp_path) == []
    folder = shutil.copytree(source, tmp_path / "src")
    bad = "model.layers.0.mlp.up_proj.weight"
    edit(folder, lambda name, array: array * (np.nan if name == bad else 1))
    with pytest.raises(ModelFileError, match=rf"{bad}: .*nan or infinite"):
        boostr.quantize(folder, tmp_path / "out", "int8")
    assert left_behind(tmp_path) == ["src"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("scheme", "name"), [("int8", "out"), ("gguf:Q8_0", "out.gguf")])
def test_a_run_that_is_killed_leaves_nothing_that_loads(source, tmp_path, scheme, name):
    out = tmp_path / name
    code = (
        "import os, signal, boostr\n"
        "def kill(done, *_):\n"
        "    if done == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"boostr.quantize({str(source)!r}, {str(out)!r}, {scheme!r}, progress=kill)"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=tiny_model.environment(), check=False)
    assert killed.returncode == -9
    rest = left_behind(tmp_path)
    assert len(rest) == 1 and rest[0].startswith(f".{name}.")
    made = boostr.quantize(source, out, scheme)
    assert left_behind(tmp_path) == [name]
    assert boostr.load(made.path, backend="numpy").logits(IDS).shape == (len(IDS), 258)


def test_progress(source, tmp_path):
    seen = []
    boostr.quantize(source, tmp_path / "out", "int8", progress=lambda *args: seen.append(args))
    assert [done for done, _, _ in seen] == list(range(1, 13)) and {c for _, c, _ in seen} == {12}


@pytest.mark.parametrize("scheme", ["int7", "mlx:7", "gguf:Q9"])
def test_a_scheme_is_refused_before_a_model_is_looked_for(scheme, tmp_path):
    with pytest.raises(OptionError, match=r"unknown|groups 32|not known"):
        boostr.quantize(tmp_path / "nothing here", tmp_path / "out", scheme)


def test_files_are_as_readable_as_others(source, tmp_path):
    made = boostr.quantize(source, tmp_path / "out", "int8").path
    assert len({path.stat().st_mode for path in made.iterdir() if path.is_file()}) == 1


def test_refuses(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        OptionError, match=r"unknown scheme 'int7'; known: int8, .*mlx:4.*with 2, 3"
    ):
        boostr.quantize(source, out, "int7")
    for target in ("mlx:7", "mlx:4-g16"):
        with pytest.raises(OptionError, match="groups 32, 64 or 128"):
            boostr.quantize(source, out, target)
    with pytest.raises(OptionError, match="take 8 bits, the same bits"):
        boostr.quantize(source, out, "mlx:4", quantize_embeddings="int8")
    with pytest.raises(OptionError, match="compressed-tensors has no nf4"):
        boostr.quantize(source, out, "int4-g64", quantize_embeddings="nf4")
    with pytest.raises(OptionError, match="come with gguf:Q8_0"):
        boostr.quantize(source, out, "gguf:Q8_0", quantize_embeddings="int8")
    with pytest.raises(OptionError, match="exists already"):
        boostr.quantize(source, source, "int8")
    made = boostr.quantize(source, out, "int8")
    with pytest.raises(ModelFileError, match="quantized already, by compressed-tensors"):
        boostr.quantize(made.path, tmp_path / "twice", "int8")
    with pytest.raises(OptionError, match="scheme must be str"):
        boostr.quantize(source, tmp_path / "x", None)
    tiny = make_tiny(tmp_path / "tiny")
    with pytest.raises(ModelFileError, match=r"q_proj.weight has 32 inputs, .* of 128"):
        boostr.quantize(tiny, tmp_path / "x", "int4-g128")
    assert left_behind(tmp_path) == ["out", "tiny"]


def test_a_head_that_is_the_embedding_is_not_left_in_silence(tmp_path):
    case = cases.named("qwen2/tied")
    (tmp_path / "src").mkdir()
    tied = cases.checkpoint(case, tmp_path / "src")
    for tables in (True, "int8-g32"):
        with pytest.raises(OptionError, match="a head of its own alone, which this model has not"):
            boostr.quantize(tied, tmp_path / "x", "int8", quantize_embeddings=tables)
    assert left_behind(tmp_path) == ["src"]
