"""Bad files, bad text, no network: one clear message, exit code 1 or 2, no traceback."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from tiny_model import make_tiny

from boostr.io.safetensors import save

UNREACHABLE = "http://127.0.0.1:9"


def refused(result, *words: str) -> None:
    """Exit code 1, nothing on stdout, and a message that has all the words."""
    assert result.exit_code == 1 and result.stdout == "", result.output
    assert all(word in result.stderr for word in words), result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A GGUF file that is complete, but for a model that nobody knows."""
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "nonesuch")
    writer.add_context_length(77)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("verb", ["run", "inspect"])
def test_truncated_files(boostr, folder: Path, gguf: Path, share: float, verb: str) -> None:
    for path in (folder / "model.safetensors", gguf):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        model = folder if path.suffix == ".safetensors" else path
        args = ("run", "-m", str(model), "hi") if verb == "run" else ("inspect", str(model))
        refused(boostr(*args), str(path))


def test_missing_shard(boostr, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for args in (("run", "-m", str(folder), "hi"), ("inspect", str(folder))):
        refused(boostr(*args), "1 of 2 shards", "model-00002-of-00002.safetensors")


def test_missing_and_misshapen_tensors_are_all_listed(boostr, folder: Path) -> None:
    save(folder / "model.safetensors", {"model.norm.weight": np.ones(3, np.float32)})
    result = boostr("run", "-m", str(folder), "hi")
    refused(result, "missing (", "model.embed_tokens.weight", "misshapen (1)", "[32], got [3]")


def test_unknown_architectures(boostr, tmp_path: Path, gguf: Path) -> None:
    folder = make_tiny(tmp_path / "m", model_type="lama")
    refused(boostr("run", "-m", str(folder), "hi"), "'lama'", "nearest: 'llama'")
    refused(boostr("run", "-m", str(gguf), "hi"), "'nonesuch'")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\x00", "{" * 100_000, None])
def test_broken_json(boostr, folder: Path, name: str, text: str | None) -> None:
    if text is not None:
        (folder / name).write_text(text)
    elif name == "tokenizer_config.json":
        return  # need not be there
    else:
        (folder / name).unlink()
    refused(boostr("run", "-m", str(folder), "hi"), name)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 0}, {"vocab_size": "many"}, {"num_attention_heads": 3}, {"vocab_size": 8},
     {"hidden_act": "sine"}, {"rope_scaling": {"rope_type": "spiral"}}, {"hidden_size": 10**9}],
)  # fmt: skip
def test_configs_that_lie(boostr, tmp_path: Path, change: dict) -> None:
    config = make_tiny(tmp_path / "m") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    refused(boostr("run", "-m", str(config.parent), "hi"))


def test_paths_that_are_no_models(boostr, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x80\x02pickle")
    for path in (tmp_path, tmp_path / "x.bin", tmp_path / "no" / "such", tmp_path / "x.gguf"):
        refused(boostr("run", "-m", str(path), "hi"), str(path))
        refused(boostr("inspect", str(path)), str(path))


def test_text_that_is_not_utf8(process, boostr, tiny: str) -> None:
    for args in (("run", b"a\xffb"), ("run", "hi", "--system", b"\xff"), ("embed", b"\xff")):
        result = process(*args, "-m", tiny)
        assert result.code == 2 and "UTF-8" in result.err and result.out == ""
    refused(boostr("run", "-m", tiny, "-", stdin=b"ab\xff"), "stdin", "UTF-8", "byte 2")


def test_a_prompt_longer_than_the_context(boostr, tiny: str) -> None:
    for raw in (("--raw",), ()):
        result = boostr("run", "-m", tiny, "-", *raw, stdin="a" * 5000)
        refused(result, "context holds 4096")


def test_an_empty_prompt_without_a_start_token(boostr, tiny: str) -> None:
    refused(boostr("run", "-m", tiny, "", "--raw"), "empty")


@pytest.mark.parametrize(
    ("template", "word"),
    [("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
     ("{% if %}", "chat template"), ("{{ messages.__class__.__mro__ }}", "chat template"),
     ("{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}", "refused")],
)  # fmt: skip
def test_templates_that_fail(boostr, tmp_path: Path, template: str, word: str) -> None:
    folder = str(make_tiny(tmp_path / "m", template=template))
    refused(boostr("run", "-m", folder, "hi"), word)
    assert boostr("run", "-m", folder, "hi", "--raw", "--max-tokens", "1").exit_code == 0


def test_no_network_and_no_cache(process, tmp_path: Path) -> None:
    cache, home = tmp_path / "cache", tmp_path / "hf"
    env = {
        "BOOSTR_CACHE": str(cache), "HF_HOME": str(home), "HF_ENDPOINT": UNREACHABLE,
        "PIP_INDEX_URL": UNREACHABLE, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    result = process("run", "hi", env=env)
    assert result.code == 1 and result.out == ""
    assert "SmolLM2-135M-Instruct" in result.err and "Connect to the network" in result.err
    assert not [path for path in cache.rglob("*") if path.is_file()]
    for args in (("run", "hi", "--offline"), ("pull", "--offline"), ("pull", "a/b", "--offline")):
        result = process(*args, env=env)
        assert result.code == 1 and "offline" in result.err and result.out == ""
    result = process("inspect", "a/b", env=env)
    assert result.code == 1 and "boostr pull a/b" in result.err


def test_settings_of_the_environment_that_are_wrong(process, tiny: str) -> None:
    for name, value in (("BOOSTR_BACKEND", "tpu"), ("BOOSTR_DTYPE", "int3")):
        result = process("run", "-m", tiny, "hi", env={name: value})
        assert result.code == 1 and value in result.err and result.out == ""


def test_an_empty_stdin_is_no_prompt(boostr, folder: Path) -> None:
    refused(boostr("run", "-m", str(folder), "-", stdin="\n"), "stdin is empty")


def test_a_dtype_that_is_none_names_those_of_weights(boostr, folder: Path) -> None:
    result = boostr("run", "-m", str(folder), "hi", "--dtype", "fp8")
    assert result.exit_code == 2 and "must be float32, float16 or bfloat16" in result.stderr
