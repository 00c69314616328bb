"""PEFT's adapter files: what is read, what is refused by its name, what is written."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from boostr.errors import ModelFileError
from boostr.io.peft import Adapter, Factors, read_adapter, write_adapter
from boostr.io.safetensors import save

X = "model.layers.0.mlp.up_proj"


def factors(r=2, N=5, K=4):
    rng = np.random.default_rng(r)
    return {
        f"base_model.model.{X}.lora_A.weight": rng.standard_normal((r, K)).astype("f4"),
        f"base_model.model.{X}.lora_B.weight": rng.standard_normal((N, r)).astype("f4"),
    }


def made(folder, tensors=None, **config):
    save(folder / "adapter_model.safetensors", factors() if tensors is None else tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"up_proj": 8}}, 4.0),
        ({"alpha_pattern": {"p_proj": 8}}, 3.0),  # patterns begin behind a dot
        ({"alpha_pattern": {r"layers\.\d\.mlp\..*": 5, "up_proj": 8}}, 2.5),  # the first wins
        ({"r": 7, "rank_pattern": {"mlp.up_proj": 2}}, 3.0),
        ({"lora_alpha": 0.5}, 0.25),
    ],
)
def test_scale(config, scale, tmp_path):
    layers = read_adapter(made(tmp_path, **config)).layers
    assert layers[X].scale == pytest.approx(scale, rel=1e-15)
    assert layers[X].down.shape == (2, 4) and layers[X].up.shape == (5, 2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA, got 'LOHA'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.gate"]}, "target_parameters"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"of_next_year": 3}, "of_next_year = 3"),
        ({"r": 3}, r"A \[r, in\] and B \[out, r\] with r = 3"),
        ({"r": "2"}, "r must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha of .* must be above 0"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: '\\('"),
    ],
)
def test_what_a_config_has_beyond_is_refused(config, words, tmp_path):
    with pytest.raises(ModelFileError, match=words):
        read_adapter(made(tmp_path, **config))


A, B = factors()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no tensors of an adapter are in it"),
        ({A: factors()[A]}, "expected one A and one B"),
        ({**factors(), f"base_model.model.{X}.lora_magnitude_vector": np.ones(5, "f4")}, "not sup"),
        ({**factors(), "base_model.model.lm_head.weight": np.ones((3, 4), "f4")}, "lm_head.weight"),
        ({**factors(), "lm_head.weight": np.ones((3, 4), "f4")}, "begin with base_model.model."),
        ({**factors(), B: np.full((5, 2), np.nan, "f4")}, "nan or infinite"),
        ({**factors(), B: np.ones((5, 2), "i4")}, "int32"),
        ({**factors(), B: np.ones((5, 2, 1), "f4")}, r"\[5, 2, 1\]"),
    ],
)
def test_tensors_that_are_refused(tensors, words, tmp_path):
    with pytest.raises(ModelFileError, match=words):
        read_adapter(made(tmp_path, tensors))


def test_modules_to_save(tmp_path):
    head = np.ones((3, 4), "f4")
    tensors = {**factors(), "base_model.model.lm_head.weight": head}
    adapter = read_adapter(made(tmp_path, tensors, modules_to_save=["lm_head", "norm"]))
    assert list(adapter.whole) == ["lm_head.weight"]
    with pytest.raises(ModelFileError, match=r"lm_head\.weight"):
        read_adapter(made(tmp_path, tensors, modules_to_save=["head"]))


def test_a_pickle_is_named(tmp_path):
    made(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelFileError, match="pickle"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(ModelFileError, match="no such file"):
        read_adapter(tmp_path)
    with pytest.raises(ModelFileError, match=r"no adapter_config.json"):
        read_adapter(tmp_path / "nowhere")


def drawn(r, scale, table=False):
    rng = np.random.default_rng(r)
    down, up = (rng.standard_normal(shape).astype("f4") for shape in ((r, 4), (6, r)))
    return Factors(down, up, scale, table)


def test_written_is_read_again(tmp_path):
    layers = {
        "a.0.q_proj": drawn(2, 1.5), "a.1.q_proj": drawn(3, 1.5), "a.11.q_proj": drawn(2, 0.1),
        "a.0.k_proj": drawn(2, 1.5), "embed": drawn(2, 1.5, table=True),
    }  # fmt: skip
    whole = {"norm.weight": np.ones(4, "f4")}
    modules = [*layers, "a.1.k_proj", "lm_head"]
    write_adapter(tmp_path, Adapter("", layers, whole), modules, task_type="CAUSAL_LM")
    back = read_adapter(tmp_path)
    assert back.layers.keys() == layers.keys()
    for name, own in layers.items():
        assert back.layers[name].scale == pytest.approx(own.scale, rel=1e-15)
        assert back.layers[name].table == own.table
        np.testing.assert_array_equal(back.layers[name].down, own.down)
        np.testing.assert_array_equal(back.layers[name].up, own.up)
    np.testing.assert_array_equal(back.whole["norm.weight"], whole["norm.weight"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["a.0.k_proj", "embed", "q_proj"]
    assert config["modules_to_save"] == ["norm"] and config["r"] == 2
    assert config["lora_alpha"] == 3 and isinstance(config["lora_alpha"], int)
