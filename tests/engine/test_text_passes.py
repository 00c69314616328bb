"""Passes over whole texts as programs: of few sizes, filled up, and used again for other texts."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from head_folders import DATA, WHOLE, golden, whole

import boostr
from boostr.engine import text_passes
from boostr.engine.text_passes import TextPasses
from boostr.io.safetensors import save
from boostr.nn.batch import Batch
from boostr.tensor import Tensor


@pytest.fixture
def recorded(plain_backend, monkeypatch):
    """A backend that records passes over texts, as GPUs do."""
    monkeypatch.setattr(type(plain_backend), "records_prefill", True)
    return plain_backend


def logits(model: Any, batch: Batch) -> Tensor:
    return model.classifier(model.module.last_hidden_state(batch), batch)


@pytest.mark.parametrize("task", ["Sequence", "Token"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_head_in_a_program(name: str, task: str, recorded, tmp_path) -> None:
    """Texts, then the same the other way round, then the program of both as at first."""
    config, tensors = whole(name, task)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / "model.safetensors", tensors)
    model: Any = boostr.load(tmp_path, backend=recorded)
    ids, types, truth = WHOLE[name]["ids"], WHOLE[name]["types"], WHOLE[name][task]["logits"]
    cut = np.cumsum([len(own) for own in ids])[:-1]
    wanted = truth if task == "Sequence" else np.split(np.array(truth), cut)
    passes, compute = TextPasses(model.runner, [model.module]), partial(logits, model)
    for turn in (1, -1, 1, -1):
        given = (ids[::turn], compute, None if types is None else types[::turn])
        ((group, found),) = passes.over(*given)
        for place, (i, own_ids) in enumerate(group):
            own = found[place]
            if task == "Token":
                start = sum(len(before) for _, before in group[:place])
                own = found[start : start + len(own_ids)]
            np.testing.assert_allclose(own, wanted[::turn][i], rtol=1e-4, atol=5e-5)
    assert passes.programs.captures == (not model.runner.rotary.depends_on_length)


class Lengths:
    """The number of tokens of each text, and its last token, as a model would compute them."""

    def __call__(self, batch: Batch) -> Tensor:
        lengths = batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]
        return boostr.ops.core.take(batch.ids, batch.last_tokens) * 100 + lengths


def test_passes_are_of_few_sizes(recorded, monkeypatch) -> None:
    """Any number of texts of any lengths; those that fill a pass exactly among them."""
    monkeypatch.setattr(type(recorded), "text_tokens", 64)
    model: Any = boostr.load(DATA / "bert_labels", backend=recorded)
    passes, compute = TextPasses(model.runner, [model.module]), Lengths()
    rng = np.random.default_rng(0)
    for counts in ([16], [16, 16], [1], [1] * 64, [64], [70], [16], *rng.integers(1, 20, (30, 9))):
        texts = [rng.integers(1, 26, n).tolist() for n in counts]
        found = {}
        for group, values in passes.over(texts, compute):
            numbers = [number for number, _ in group]
            found |= dict(zip(numbers, values[: len(group)].tolist(), strict=True))
        assert found == {i: text[-1] * 100 + len(text) for i, text in enumerate(texts)}
    assert len(passes.programs) <= 12


def test_sequences_are_asked_for_as_passes_start(plain_backend, monkeypatch) -> None:
    """Not all of them before the first pass; and passes are as full as they can be."""
    monkeypatch.setattr(type(plain_backend), "text_tokens", 100)
    monkeypatch.setattr(text_passes, "_IN_SIGHT", 16)
    model: Any = boostr.load(DATA / "bert_labels", backend=plain_backend)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 26, n).tolist() for n in rng.integers(1, 40, 90)]
    asked, sizes, given = [], [], []

    def sequences() -> Iterator[list[int]]:
        for text in texts:
            asked.append(text)
            yield text

    for group, values in TextPasses(model.runner, [model.module]).over(sequences(), Lengths()):
        given.append(len(asked))
        sizes.append(sum(len(ids) for _, ids in group))
        for (number, ids), value in zip(group, values, strict=False):
            assert ids is texts[number] and value == ids[-1] * 100 + len(ids)
    assert given[0] <= 32 and given[-1] == 90
    assert max(sizes) <= 100 and min(sizes[:-1]) > 100 - 40


def test_states_of_a_pass_that_is_exactly_full(recorded) -> None:
    """Texts that fill it up begin where its tokens end."""
    model: Any = boostr.load(DATA / "bert_labels", backend=recorded)

    def firsts(batch: Batch) -> Tensor:
        return boostr.ops.core.take(model.module.last_hidden_state(batch), batch.first_tokens)

    texts = [list(range(1, 9)), list(range(9, 14)), [3, 4, 5]]  # 16 tokens, of four texts
    alone = model.rows([texts[0]], firsts, (1, 16))[0]
    for _ in range(3):
        made = model.rows(texts, firsts, (3, 16))
        np.testing.assert_allclose(made[0], alone, rtol=1e-4, atol=1e-5)
        assert np.isfinite(made).all()


@pytest.mark.parametrize("name", ["qwen3_embedding", "bert_labels", "bert_tokens"])
def test_a_program_gives_what_a_pass_gives(name: str, recorded, monkeypatch) -> None:
    """A first text's state, a classifier, and states that are read whole."""
    model: Any = boostr.load(DATA / name, backend=recorded)
    ids = [e.ids for e in model.encode(golden("static_embedding")["texts"] * 2, "embed")]
    states = model.module.last_hidden_state
    in_programs = [dict(model.states(ids, states)) for _ in range(3)][-1]
    monkeypatch.setattr(type(recorded), "records_prefill", False)
    for i, own in model.states(ids, states):
        np.testing.assert_allclose(in_programs[i], own, rtol=1e-5, atol=1e-5)


def test_new_weights_are_seen(recorded) -> None:
    model: Any = boostr.load(DATA / "bert_labels", backend=recorded)
    texts = ["a cat", "the dog is good"]
    before = [model.logits(texts) for _ in range(3)][-1]
    output = model.classifier.output
    output.weight = Tensor(output.weight.numpy() * 2, backend=recorded)
    bias = output.bias.numpy()
    for _ in range(3):
        np.testing.assert_allclose(model.logits(texts) - bias, (before - bias) * 2, 1e-4, 1e-5)


def test_threads_take_turns(recorded) -> None:
    """Each gives its own texts to programs that all use."""
    model: Any = boostr.load(DATA / "bert_labels", backend=recorded)
    texts = ["a cat", "the dog", "good", "is a"]
    wanted = {text: model.logits([text]) for text in texts}

    def work(text: str) -> None:
        for _ in range(10):
            np.testing.assert_allclose(model.logits([text]), wanted[text], rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, texts))
