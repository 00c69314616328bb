"""perplexity against the protocol written down plainly, on logits of whole chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny
from tokenizers import Tokenizer, processors

import boostr
from boostr.errors import NumericsError, OptionError
from boostr.io.safetensors import open_safetensors, save

TEXT = (Path(__file__).parents[1] / "data" / "lcet10.txt").read_bytes().decode()[:700]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return boostr.load(folder)


def with_bos(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    inner = Tokenizer.from_file(path)
    start = ("<|im_start|>", inner.token_to_id("<|im_start|>"))
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{start[0]} $A", special_tokens=[start]
    )
    inner.save(path)


def meant(model, ids, context, bos=None):
    """(perplexity, error) in float64."""
    losses = []
    for start in range(0, len(ids) - context + 1, context):
        chunk = ids[start : start + context]
        if bos is not None:
            chunk = [bos, *chunk[1:]]
        logits = model.logits(chunk).astype(np.float64)
        p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-p[i, chunk[i + 1]] for i in range(context // 2, context - 1)]
    value = np.exp(np.mean(losses))
    return value, value * np.std(losses) / np.sqrt(len(losses) - 1), len(losses)


@pytest.mark.parametrize("context", [4, 100, 101, 600])
def test_the_protocol(model, context):
    got = boostr.perplexity(model, TEXT, context=context)
    value, error, count = meant(model, model.tokenizer.encode(TEXT), context)
    assert (got.token_count, got.chunks, got.context) == (count, 700 // context, context)
    np.testing.assert_allclose((got.value, got.error), (value, error), rtol=1e-5)
    assert got.running[-1] == got.value and len(got.running) == got.chunks


def test_a_bos_takes_the_place_of_the_first_token(folder, tmp_path):
    own = make_tiny(tmp_path / "m")
    with_bos(own)
    model = boostr.load(own)
    ids = model.tokenizer.encode(TEXT)
    assert len(ids) == 701 and ids[0] == 256
    got = boostr.perplexity(model, TEXT, context=100)
    np.testing.assert_allclose(got.value, meant(model, ids, 100, bos=256)[0], rtol=1e-5)


def test_chunks_and_progress(model):
    seen = []
    got = boostr.perplexity(
        model, TEXT, context=100, chunks=3, progress=lambda *args: seen.append(args)
    )
    whole = boostr.perplexity(model, TEXT, context=100)
    assert got.running == whole.running[:3] and got.chunks == 3 and whole.chunks == 7
    assert seen == [(i + 1, 3, value) for i, value in enumerate(got.running)]


def test_refuses(model):
    for options, part in (
        ({"context": 800}, "700 tokens, a chunk has 800"), ({"context": 3}, "4 to 4096"),
        ({"context": 5000}, "4 to 4096 tokens, got 5000"), ({"chunks": 0}, "chunks must be 1"),
        ({"context": 1.5}, "context must be int"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=part):
            boostr.perplexity(model, TEXT, **options)
    with pytest.raises(OptionError, match="0 tokens"):
        boostr.perplexity(model, "")
    with pytest.raises(OptionError, match="text must be str"):
        boostr.perplexity(model, TEXT.encode())


def test_damaged_weights(tmp_path):
    folder = make_tiny(tmp_path / "m")
    with open_safetensors(folder) as files:
        tensors = {name: files.tensor(name).copy() for name in files.names}
    tensors["model.norm.weight"][0] = np.nan
    save(folder / "model.safetensors", tensors)
    with pytest.raises(NumericsError, match="nan or infinite"):
        boostr.perplexity(boostr.load(folder), TEXT, context=100)
