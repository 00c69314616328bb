"""Models from GGUF, written by the converter's rules, against transformers."""

from __future__ import annotations

import json
import re
import shutil

import cases
import gguf_files
import numpy as np
import pytest
from cases import close, each, named
from gguf import GGMLQuantizationType, GGUFWriter

from boostr import backends, dtypes, ops
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
from boostr.io.hub import resolve
from boostr.models.gguf import gguf_weights
from boostr.quant.scheme import QuantizedTensor

CASES = [c for c in cases.DECODERS if c.data.gguf and c.spec.in_gguf]


def assert_logits(path, case, backend, rtol=1e-4):
    options = {}
    if backend.activation_dtype(dtypes.bfloat16) != dtypes.float32:
        options["dtype"] = "float32"
    runner = Runner(load_module(path, backend=backend, **options), backend)
    found = [runner.logits(ids).numpy() for ids in cases.sequences(case)]
    close(cases.kept(found), cases.expected(case, "logits"), rtol)


def changed(name, folder, **config):
    """The case with other values in its config.json."""
    path = cases.checkpoint(named(name), folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def constants(case):
    """Keys of its config.json that the converter does not write, as llama.cpp has them."""
    return case.data.gguf.constants(case.config)


@each(CASES)
def test_logits_equal_transformers(case, backend, tmp_path):
    folder = cases.checkpoint(case, tmp_path)
    made = gguf_files.convert(folder, tmp_path / "m.gguf")
    said, file_says = case.config, constants(case)
    if said | file_says == said:
        assert_logits(made, case, backend)
    else:  # the folder, whose logits are transformers' (test_decoders), with what the file says
        close(logits(made, backend), logits(changed(case.name, tmp_path, **file_says), backend))


def logits(path, backend=None):
    backend = backend or backends.get("numpy")
    return Runner(load_module(path, backend=backend), backend).logits(list(range(1, 60))).numpy()


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
        "original_max_position_embeddings": 24}  # fmt: skip


@pytest.mark.parametrize(
    "yarn",
    [{"attention_factor": 2.1}, {"beta_fast": 12.0, "beta_slow": 2.0},
     {"attention_factor": 0.7, "beta_fast": 8.0}],
)  # fmt: skip
def test_numbers_of_yarn_are_obeyed(yarn, tmp_path):
    """They were ignored without a word: logits were off by 1.1."""
    folder = changed("llama/yarn", tmp_path, rope_parameters=YARN | yarn)
    want = logits(folder)
    got = logits(gguf_files.convert(folder, tmp_path / "m.gguf"))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", ["llama/yarn", "llama/longrope"])
def test_the_factor_on_attention_multiplies(name, tmp_path):
    """`attn_factor` comes on top of YaRN's own factor, and in place of longrope's."""
    folder = cases.checkpoint(named(name), tmp_path)
    made = gguf_files.convert(
        folder, tmp_path / "m.gguf", metadata={"rope.scaling.attn_factor": 1.5}
    )
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    own = 0.1 * np.log(rope["factor"]) + 1 if name == "llama/yarn" else 1.0
    changed(name, tmp_path, rope_parameters=rope | {"attention_factor": 1.5 * own})
    want = logits(folder)
    assert np.abs(logits(made) - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor must be 1, got 0.5"),
        ({"attention.sliding_window": 8}, "sliding window"),
        ({"attention.causal": False}, "attention.causal false"),
        ({"rope.scaling.type": "su"}, "rope scaling 'su' in GGUF; known: none, linear"),
        ({"rope.scaling.type": "longrope"}, "expected a vector rope_factors_long.weight"),
        ({"block_count": "two"}, "block_count must be one number, got 'two'"),
        ({"block_count": 0}, "lacks num_hidden_layers of 1 or more"),
        ({"attention.head_count": 0}, "lacks num_attention_heads of 1 or more"),
        (
            {"rope.dimension_count": 99},
            "rope.dimension_count must be 1 to the 16 of a head, got 99",
        ),
        ({"rope.dimension_count": 0.5}, "rope.dimension_count must be 1 to the 16 of a head"),
        ({"rope.scaling.type": 3}, "rope scaling 3 in GGUF"),
    ],
)
def test_what_is_not_known_is_refused(metadata, message, tmp_path):
    folder = cases.checkpoint(named("llama/yarn"), tmp_path)
    with pytest.raises(ModelFileError, match=re.escape(message)):
        load_module(gguf_files.convert(folder, tmp_path / "m.gguf", metadata=metadata))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"])
@pytest.mark.parametrize("name", ["llama/tied", "qwen2/tied"])
def test_q_k_and_v_in_one_tensor(name, kind, tmp_path):
    """Blocks are cut between rows: packed or apart, the numbers are the same."""
    folder = cases.checkpoint(named(name), tmp_path)
    apart = gguf_files.convert(folder, tmp_path / "a.gguf", kind)
    packed = gguf_files.convert(folder, tmp_path / "p.gguf", kind, packed=True)
    assert np.array_equal(logits(packed), logits(apart))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0])
def test_frequency_factors_must_be_positive(value, tmp_path, monkeypatch):
    folder = cases.checkpoint(named("llama/llama3"), tmp_path)
    wrong = {"rope_freqs.weight": np.array([1, value] * 4, np.float32)}
    monkeypatch.setattr(gguf_files, "_rope_tensors", lambda config: wrong)
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight must be positive numbers"):
        load_module(gguf_files.convert(folder, tmp_path / "m.gguf"))


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"quantize": "int8"}])
def test_q_k_and_v_in_one_tensor_stay_in_one(options, backend, tmp_path):
    """Read once, and the layers have views of it; in every form the numbers are those apart."""
    folder = cases.checkpoint(named("qwen2/tied"), tmp_path)
    apart = gguf_files.convert(folder, tmp_path / "a.gguf")
    packed = gguf_files.convert(folder, tmp_path / "p.gguf", packed=True)
    want, got = (
        load_module(path, backend=backend, **options).weights() for path in (apart, packed)
    )
    for name, weight in want.items():
        ours, theirs = (
            ops.dequantize(w) if isinstance(w, QuantizedTensor) else w for w in (got[name], weight)
        )
        assert np.array_equal(ours.numpy(), theirs.numpy()), name  # type: ignore[union-attr]
    if backend.name == "numpy" and "quantize" not in options:
        q, k, v = (got[f"model.layers.0.self_attn.{n}_proj.weight"].numpy() for n in "qkv")
        assert q.ctypes.data + q.nbytes == k.ctypes.data
        assert k.ctypes.data + k.nbytes == v.ctypes.data


def test_a_split_model_is_found_by_any_part_or_its_folder(tmp_path):
    folder = cases.checkpoint(named("llama/llama3"), tmp_path)
    want = logits(gguf_files.convert(folder, tmp_path / "m.gguf"))
    parts = tmp_path / "parts"
    parts.mkdir()
    first = gguf_files.convert(folder, parts / "m.gguf", parts=3)
    for path in parts.iterdir():
        assert np.array_equal(logits(path), want)
    (parts / "config.json").write_text("{}")
    assert resolve(parts).path == first


def test_a_split_model_must_be_whole(tmp_path):
    folder = cases.checkpoint(named("llama/untied"), tmp_path)
    first = gguf_files.convert(folder, tmp_path / "m.gguf", parts=3)
    second, third = (gguf_files.part_path(tmp_path / "m.gguf", n, 3) for n in (1, 2))
    third.rename(tmp_path / "kept")
    with pytest.raises(ModelFileError, match=r"1 of the 3 parts .* m-00003-of-00003\.gguf"):
        load_module(first)
    shutil.copy(second, third)
    with pytest.raises(ModelFileError, match=r"expected part 2 .* says that it is 1 of 3"):
        load_module(first)
    third.unlink()
    (tmp_path / "kept").rename(third)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="one part of a model split into 3 files"):
        load_module(tmp_path / "renamed.gguf")


def test_missing_tensors_are_called_by_their_names_in_the_file(tmp_path):
    folder = changed("llama/untied", tmp_path, mlp_bias=True)
    made = gguf_files.convert(folder, tmp_path / "m.gguf", metadata={"block_count": 9})
    with pytest.raises(ModelFileError) as error:
        load_module(made)
    want = "model.layers.8.mlp.up_proj.weight (in the checkpoint: blk.8.ffn_up.weight)"
    assert want in str(error.value)


def test_types_that_are_not_read_are_refused_before_any_weight_is(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    rows = np.zeros((2, 292), np.uint8)
    writer.add_tensor("output.weight", rows, raw_dtype=GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"tensor 'output\.weight' is Q8_K; boostr reads"):
        gguf_weights(GGUFFile(tmp_path / "m.gguf"))
