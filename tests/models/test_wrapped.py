"""Language models beside towers for images: the text part of a wrapper is the text model."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import close, named

import boostr
from boostr.cli.headers import summarize
from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.io.safetensors import open_safetensors, save
from boostr.models.save import save_folder

# wrapper: the text model, what its names begin with, a tensor of the rest, the name of a head;
# names as transformers 5.24 saves them
WRAPPED = {
    "gemma3": ("gemma3_text/tied", "language_model.model.", "vision_tower.head.probe", ""),
    "mistral3": (
        "mistral/window", "language_model.model.", "multi_modal_projector.norm.weight",
        "language_model.lm_head.weight",
    ),
    "qwen2_5_vl": ("qwen2/tied", "model.", "visual.merger.ln_q.weight", ""),
    "qwen3_vl": (
        "qwen3/untied", "model.language_model.", "model.visual.patch_embed.proj.weight",
        "lm_head.weight",
    ),
    "smolvlm": ("llama/tied", "model.text_model.", "model.connector.x.weight", ""),
}  # fmt: skip


def wrapped(name: str, tmp_path: Path, **outer) -> Path:
    """The checkpoint of a case inside a wrapper."""
    case, prefix, other, head = WRAPPED[name]
    (tmp_path / "text").mkdir(parents=True)
    source = cases.checkpoint(named(case), tmp_path / "text")
    with open_safetensors(source) as files:
        tensors = {
            head if n == "lm_head.weight" else prefix + n.removeprefix("model."): np.array(
                files.tensor(n)
            )
            for n in files.names
        }
    tensors[other] = np.ones((3, 4), np.float32)
    text = json.loads((source / "config.json").read_text())
    tied = text.pop("tie_word_embeddings", False)
    config = {"model_type": name, "text_config": text, "vision_config": {"hidden_size": 4}}
    folder = tmp_path / "wrapped"
    folder.mkdir()
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": tied} | outer, indent=2)
    )
    return folder


def assert_text_model(name: str, folder: Path) -> None:
    """It has the logits that transformers has of the text model."""
    case, model = named(WRAPPED[name][0]), boostr.load(folder, backend="numpy")
    found = [model.logits(ids) for ids in cases.sequences(case)]  # type: ignore[union-attr]
    close(cases.kept(found), cases.expected(case, "logits"))


@pytest.mark.parametrize("name", WRAPPED)
def test_the_text_part_is_the_text_model(name, tmp_path):
    assert_text_model(name, wrapped(name, tmp_path))


@pytest.mark.parametrize("name", WRAPPED)
def test_saved_it_is_a_text_model(name, tmp_path):
    host = boostr.backends.get("numpy")
    module = load_module(wrapped(name, tmp_path), backend=host)
    save_folder(module, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == WRAPPED[name][0].partition("/")[0]
    assert config["architectures"][0].endswith("ForCausalLM")
    assert not {"text_config", "vision_config"} & config.keys()
    assert_text_model(name, tmp_path / "saved")


def test_the_outer_config_says_whether_the_head_is_tied(tmp_path):
    """transformers asks the wrapper's key; the text part has its class's default beside it."""
    folder = wrapped("mistral3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    assert_text_model("mistral3", folder)


def test_an_old_file_has_the_keys_of_the_text_among_its_own(tmp_path):
    """Qwen2.5-VL as transformers 4.49 wrote it, its rope of three sections."""
    folder = wrapped("qwen2_5_vl", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    flat = {**config.pop("text_config"), **config}
    theta = flat.pop("rope_parameters")["rope_theta"]
    flat |= {"rope_theta": theta, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    (folder / "config.json").write_text(json.dumps(flat))
    assert_text_model("qwen2_5_vl", folder)


def test_quantized_it_keeps_its_towers(tmp_path):
    folder, out = wrapped("qwen3_vl", tmp_path), tmp_path / "packed"
    boostr.quantize(folder, out, "int8")
    config = json.loads((out / "config.json").read_text())
    given = json.loads((folder / "config.json").read_text())
    assert {k: config[k] for k in given} == given
    tower = WRAPPED["qwen3_vl"][2]
    assert tower.removesuffix(".weight") in config["quantization_config"]["ignore"]
    with open_safetensors(out) as files:
        assert (files.tensor(tower) == 1).all()
    text = boostr.load(tmp_path / "text", backend="numpy", quantize="int8")
    got, ids = boostr.load(out, backend="numpy"), np.arange(3, 43)
    np.testing.assert_allclose(got.logits(ids), text.logits(ids), rtol=1e-4, atol=1e-3)  # type: ignore


def test_inspect_says_what_part_runs(tmp_path):
    summary = summarize(str(wrapped("gemma3", tmp_path)))
    assert summary.architecture == "gemma3 (its text part, gemma3_text)"
    assert summary.refusal is None


def test_a_wrapper_without_its_text_is_refused(tmp_path):
    folder = wrapped("gemma3", tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {}}))
    with pytest.raises(ModelFileError, match="does not fit the model"):
        boostr.load(folder, backend="numpy")
