"""convert: folders as GGUF, read by boostr, by the gguf package, and by the rules of its types."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr.engine.load import load_module
from boostr.errors import ModelFileError, OptionError
from boostr.io.gguf import GGUFFile
from boostr.io.safetensors import SafetensorsFile, save
from boostr.models.gguf_mix import MIXES, Mix

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8,
         "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip


def test_text_tokens_and_template_are_the_same(tmp_path):
    folder = make_tiny(tmp_path / "f")
    path = boostr.convert(folder, tmp_path / "m.gguf")
    one, other = (boostr.load(p, backend="numpy") for p in (folder, path))
    ids = one.tokenizer.encode("Hello, wörld!")
    assert other.tokenizer.encode("Hello, wörld!") == ids
    assert other.tokenizer.special.templates == one.tokenizer.special.templates
    assert other.tokenizer.eos_ids == one.tokenizer.eos_ids == (257,)
    np.testing.assert_allclose(other.logits(ids), one.logits(ids), rtol=1e-4, atol=1e-4)
    messages = [{"role": "user", "content": "hi"}]
    texts = [
        m.generate(messages=messages, max_tokens=8, temperature=0.0).text for m in (one, other)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", MIXES)
def test_the_package_reads_every_mix(kind, tmp_path):
    """Types as llama.cpp chooses them; numbers within the error of the type."""
    folder = make_tiny(tmp_path / "f", **SIZES)
    path = boostr.convert(folder, tmp_path / "m.gguf", kind=kind)
    mix = Mix(kind, 8, 1, tied=False)
    stored = SafetensorsFile(folder / "model.safetensors")
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in tensor.shape[::-1])
        assert tensor.tensor_type.name == mix.type_of(tensor.name, shape)
        if tensor.name == "token_embd.weight":
            want = stored.tensor("model.embed_tokens.weight")
            got = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.abs(got - want).mean() < 0.3 * np.abs(want).mean()
    load_module(path, backend="numpy")


@pytest.mark.parametrize(("mix", "tensor", "columns", "kind"), [
    ("Q4_K_M", "blk.0.attn_v.weight", 256, "Q6_K"), ("Q4_K_M", "blk.4.attn_v.weight", 256, "Q4_K"),
    ("Q4_K_M", "blk.7.ffn_down.weight", 256, "Q6_K"), ("Q4_K_M", "output.weight", 256, "Q6_K"),
    ("Q4_K_M", "blk.0.attn_q.weight", 96, "Q5_0"), ("Q5_K_M", "blk.4.ffn_up.weight", 64, "Q5_1"),
    ("Q4_K_M", "blk.0.attn_v.weight", 64, "Q8_0"), ("Q4_K_M", "blk.0.attn_q.weight", 40, "F16"),
    ("Q4_K_S", "blk.3.attn_v.weight", 256, "Q5_K"), ("Q4_K_S", "blk.1.ffn_up.weight", 256, "Q4_K"),
    ("Q3_K_M", "blk.0.attn_output.weight", 256, "Q4_K"),
    ("Q2_K", "blk.0.ffn_down.weight", 256, "Q3_K"), ("Q2_K", "blk.0.attn_v.weight", 256, "Q4_K"),
    ("Q8_0", "output.weight", 256, "Q8_0"), ("Q4_0", "output.weight", 256, "Q6_K"),
    ("Q4_K_M", "blk.0.attn_qkv.weight", 256, "Q5_K"),
    ("Q4_K_M", "blk.0.attn_norm.weight", 0, "F32"),
])  # fmt: skip
def test_types_are_llama_cpp_s(mix, tensor, columns, kind):
    """Rows of llama-quantize's output for a model of 8 layers, 4 heads to 1."""
    assert Mix(mix, 8, 4, tied=False).type_of(tensor, (8, columns) if columns else (8,)) == kind


def test_a_tied_embedding_is_the_head(tmp_path):
    assert Mix("Q4_K_M", 8, 1, tied=True).type_of("token_embd.weight", (8, 256)) == "Q6_K"
    assert Mix("Q4_K_M", 8, 1, tied=False).type_of("token_embd.weight", (8, 256)) == "Q4_K"


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    folder = make_tiny(tmp_path / "f", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ModelFileError, match="GGUF has no rope scaling of type 'dynamic'"):
        boostr.convert(folder, tmp_path / "m.gguf")
    folder = make_tiny(tmp_path / "g", intermediate_size=64)
    with pytest.raises(OptionError, match=r"'q4_k_m' is not known.*did you mean 'Q4_K_M'"):
        boostr.convert("nobody/nothing", tmp_path / "m.gguf", kind="q4_k_m")  # nor looked for
    with pytest.raises(OptionError, match=r"expected NAME\.gguf, got m\.bin"):
        boostr.convert(folder, tmp_path / "m.bin")
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file.tensor(name).copy() for name in file.names}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    file.close()
    save(folder / "model.safetensors", tensors)
    with pytest.raises(ModelFileError, match=r"up_proj\.weight .*nan or infinite"):
        boostr.convert(folder, tmp_path / "m.gguf", kind="Q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "g"]


def test_what_is_there_stays(tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(OptionError, match="exists already"):
        boostr.convert(make_tiny(tmp_path / "f"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_metadata_is_of_the_types_that_llama_cpp_reads(tmp_path):
    path = boostr.convert(make_tiny(tmp_path / "f"), tmp_path / "m.gguf", kind="F16")
    with GGUFFile(path) as file:
        assert file.metadata["general.file_type"] == 1
        assert file.metadata["llama.attention.head_count_kv"] == 2
        assert file.metadata["tokenizer.ggml.token_type"].dtype == np.int32
        assert {t.type for t in file.tensors.values()} == {"F16", "F32"}


def test_types_that_are_put_in_place_of_others_are_said(tmp_path):
    folder = make_tiny(tmp_path / "f", **(SIZES | {"hidden_size": 96, "num_hidden_layers": 1}))
    said = "Q4_K_M: .* as llama-quantize has them: 6 in Q5_0 for Q4_K, 2 in Q8_0 for Q6_K"
    with pytest.warns(UserWarning, match=said):
        path = boostr.convert(folder, tmp_path / "m.gguf", kind="Q4_K_M")
    with GGUFFile(path) as file:
        assert file.tensors["blk.0.attn_q.weight"].type == "Q5_0"
        assert file.tensors["blk.0.ffn_down.weight"].type in ("Q4_K", "Q6_K")


def test_quantize_to_gguf_is_convert(tmp_path):
    folder = make_tiny(tmp_path / "f", **SIZES)
    made = boostr.quantize(folder, tmp_path / "q.gguf", "gguf:Q4_K_M")
    boostr.convert(folder, tmp_path / "c.gguf", kind="Q4_K_M")
    assert (tmp_path / "q.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    assert made.tables == {"embedding": "Q4_K", "head": "Q6_K"} and made.schemes["Q4_K"] > 8
    assert made.weight_bytes < made.source_bytes / 5
    with pytest.raises(OptionError, match="'Q4_K_X' is not known"):
        boostr.quantize(folder, tmp_path / "x.gguf", "gguf:Q4_K_X")
