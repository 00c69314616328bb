"""Objectives: pairs and preferences against float64, in padded programs, and as runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from draws import refused
from tiny_model import make_tiny, make_tiny_encoder
from train.conftest import BERT

import boostr
from boostr import train
from boostr.errors import DataError, OptionError
from boostr.train.objectives import log_probabilities

WORDS = [
    "apple", "bread", "cloud", "dough", "eagle", "flame", "grass", "house", "island", "jelly",
    "kettle", "lemon",
]  # fmt: skip


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def logs(x):
    """log softmax of each row, in float64."""
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sequence_logs(model, batch):
    """The log-probability of the labels of each sequence, from the model's logits."""
    rows, found = logs(model(batch).numpy()), []
    for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        targets = batch.targets[start:stop]
        at = np.flatnonzero(targets != -100)
        found.append(rows[start + at, targets[at]].sum())
    return np.array(found)


# -- the losses ----------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [2, 3])
def test_contrastive_is_that_of_the_vectors(width, backend, rng):
    """In a program with room for more, of which what is not there counts for nothing."""
    model = boostr.create("bert", BERT, backend=backend)
    texts = [rng.integers(0, 50, n).tolist() for n in rng.integers(1, 9, 4 * width)]
    batch = train.pack(texts)
    objective = train.Contrastive(model, width, scale=7.0)
    optimizer = train.SGD(model.parameters(), lr=0.0)
    step = train.compile_step(
        model, optimizer, tokens=100, max_sequences=4 * width + 5, objective=objective
    )
    vectors = model(batch).numpy().astype(np.float64).reshape(4, width, -1)
    found = np.concatenate([vectors[:, i] for i in range(1, width)])
    want = -np.diag(logs(7 * vectors[:, 0] @ found.T)).mean()
    assert step.measure(batch) / 4 == pytest.approx(want, rel=2e-5)
    metrics = step(batch)
    assert metrics.loss == pytest.approx(want, rel=2e-5) and metrics.target_count == 4
    if width == 2:
        loss = train.contrastive_loss(
            model(train.pack(texts[::2])), model(train.pack(texts[1::2])), 7.0
        )
        loss.backward()
        squares = sum((p.grad.numpy().astype(np.float64) ** 2).sum() for p in model.parameters())
        assert metrics.grad_norm == pytest.approx(np.sqrt(squares), rel=1e-3)


def test_preference_is_that_of_the_logits(make, backend, rng):
    """Loss and slope, against float64 and central differences."""
    model = make(backend)
    sequences = [rng.integers(0, 50, n).tolist() for n in (9, 5, 2, 12)]
    labels = [[-100] * (len(s) // 2) + s[len(s) // 2 :] for s in sequences]
    reference = rng.normal(-20, 3, 4).astype(np.float32)
    plain = train.pack(sequences, labels)
    batch = train.pack(sequences, labels, reference=reference)
    beta = 0.3
    optimizer = train.SGD(model.parameters(), lr=1e-4)
    step = train.compile_step(
        model, optimizer, tokens=40, max_sequences=9, max_grad_norm=1e9,
        objective=train.Preference(model, beta),
    )  # fmt: skip

    def loss():
        gains = sequence_logs(model, plain) - reference
        return np.log1p(np.exp(-beta * (gains[0::2] - gains[1::2]))).mean()

    with refused(OptionError, "no reference", "train.pack"):
        step(plain)
    before = loss()
    assert step.measure(batch) / 2 == pytest.approx(before, rel=1e-4)
    metrics = step(batch)
    assert metrics.loss == pytest.approx(before, rel=1e-4) and metrics.target_count == 2
    # along the gradient the loss falls by lr · |gradient|²
    assert before - loss() == pytest.approx(1e-4 * metrics.grad_norm**2, rel=0.05)


def test_parts_of_a_step_are_one_batch_of_preferences(make, rng):
    sequences = [rng.integers(0, 50, n).tolist() for n in (9, 5, 2, 12, 3, 4)]
    reference = rng.normal(-20, 3, 6).astype(np.float32)
    norms = []
    for parts in ([6], [4, 2], [2, 4]):
        model, at, batches = make(), 0, []
        for n in parts:
            here = slice(at, at + n)
            batches.append(train.pack(sequences[here], reference=reference[here]))
            at += n
        step = train.compile_step(
            model, train.SGD(model.parameters(), lr=0.0), tokens=40, max_sequences=6,
            grad_accumulation=len(parts), objective=train.Preference(model),
        )  # fmt: skip
        metrics = step(*batches)
        norms.append((metrics.loss, metrics.grad_norm))
    np.testing.assert_allclose(norms[1:], [norms[0]] * 2, rtol=1e-5)


# -- data ----------------------------------------------------------------------------------------
def pairs(words, **more):
    return [{"anchor": w, "positive": w.upper(), **more} for w in words]


def encoder(tmp_path):
    make_tiny_encoder(tmp_path / "encoder")
    return boostr.load(tmp_path / "encoder", backend="numpy", trainable=True)


def opened(path, model, **options):
    return train.Dataset.open(path, model.tokenizer, **{"max_length": 60, **options})


def test_pairs_are_kept_together(tmp_path):
    model = encoder(tmp_path)
    rows = [*pairs(WORDS), {"anchor": " ", "positive": "x"}]
    data = opened(write(tmp_path / "pairs.jsonl", rows), model)
    assert (data.kind, data.width, len(data)) == ("pair", 2, 24)
    assert data.counts == {"used": 12, "a text is empty": 1}
    packs = train.Packs(data, tokens=64, max_sequences=9)
    seen = np.concatenate(packs.epoch(0))
    assert sorted(seen) == list(range(24)) and (seen[1::2] == seen[::2] + 1).all()
    assert {len(own) for own in packs.epoch(0)} <= {2, 4, 6, 8}
    _, batch = next(packs.batches())
    texts = [
        model.tokenizer.decode(batch.input_ids[a:b])
        for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    ]
    assert all(b == a.upper() for a, b in zip(texts[::2], texts[1::2], strict=True))


def test_a_text_comes_in_a_batch_once(tmp_path):
    """What waits for the next batch is in one, too."""
    rows = [{"query": f"q{i}", "positive": "ab" if i % 3 else f"p{i}"} for i in range(12)]
    data = opened(write(tmp_path / "rows.jsonl", rows), encoder(tmp_path))
    packs = train.Packs(data, tokens=1000)
    for epoch in range(3):
        assert sorted(np.concatenate(packs.epoch(epoch))) == list(range(24))
        for own in packs.epoch(epoch):
            ids = [data[int(i)].ids.tobytes() for i in own]
            assert len(set(ids)) == len(ids)


def test_texts_that_many_pairs_share_are_looked_at_once(tmp_path, monkeypatch):
    """What waits for its batch is not looked through for each batch that is made meanwhile."""
    rows = [{"anchor": f"q{i}", "positive": "ab"[i % 2]} for i in range(200)]
    data = opened(write(tmp_path / "rows.jsonl", rows), encoder(tmp_path))
    seen, read = [], train.Dataset.__getitem__
    monkeypatch.setattr(train.Dataset, "__getitem__", lambda *at: seen.append(at) or read(*at))
    packs = train.Packs(data, tokens=1000)
    sizes = [len(own) for own in packs.epoch(0)]
    assert len(seen) == len(data) == sum(sizes) and max(sizes) == 4


def test_negatives_and_long_texts(tmp_path):
    model = encoder(tmp_path)
    rows = pairs(["word " * 9, "b"], negative="other")
    path = write(tmp_path / "rows.jsonl", rows)
    data = opened(path, model, max_length=20)
    assert data.width == 3 and data.counts == {"used": 2, "truncated": 1}
    assert data.lengths.tolist() == [20, 20, 5, 1, 1, 5]
    skipped = opened(path, model, max_length=20, too_long="skip")
    assert skipped.counts == {"used": 1, "longer than 20 tokens": 1}
    with refused(DataError, "too_long", "pair", "split"):
        opened(path, model, too_long="split")


def test_prompts_of_the_folder_are_put_before(tmp_path):
    """As sentence-transformers' encode_query and encode_document do; or none, or the default."""
    make_tiny_encoder(tmp_path / "encoder")
    path = write(tmp_path / "rows.jsonl", pairs(["a", "b"], negative="c"))
    settings = tmp_path / "encoder" / "config_sentence_transformers.json"
    both = {"prompts": {"query": "q: ", "passage": "p: "}}
    usual = {"prompts": {"x": "x: ", "query": "q: "}, "default_prompt_name": "x"}
    for said, off, want in (
        (both, False, ["q: a", "p: A", "p: c"]), (usual, False, ["q: a", "x: A", "x: c"]),
        (both, True, ["a", "A", "c"]),
    ):  # fmt: skip
        write(settings, [said])
        model = boostr.load(tmp_path / "encoder", backend="numpy")
        run = train.Trainer(model, config(path, no_prompts=off), tmp_path / "run")
        ids = [run.data[i].ids.tolist() for i in range(3)]
        assert ids == [e.ids for e in model.encode(want, "test")]
    model.sentence = dataclasses.replace(model.sentence, include_prompt=False)
    with refused(OptionError, "leaves prompts out", "no_prompts"):
        train.Trainer(model, config(path), tmp_path / "run")


def test_preferences_count_in_their_answers(tmp_path):
    make_tiny(tmp_path / "tiny")
    model = boostr.load(tmp_path / "tiny", backend="numpy")
    rows = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "30"},
        {"prompt": "1+1=", "chosen": "", "rejected": "3"},
        {"prompt": "0" * 80, "chosen": "2", "rejected": "3"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    with refused(DataError, "rows.jsonl:3", "82 tokens", "60"):
        opened(path, model)
    data = opened(path, model, too_long="truncate")
    assert (data.kind, data.width, len(data)) == ("preference", 2, 2)
    assert data.counts == {
        "used": 1, "a completion is empty": 1, "truncated": 1, "no token counts": 1
    }  # fmt: skip
    counted = [model.tokenizer.decode(s.ids[s.labels != -100]) for s in (data[0], data[1])]
    assert counted == ["2", "30"]


def test_other_rows_are_refused(tmp_path):
    model = encoder(tmp_path)
    with refused(DataError, "rows.jsonl:2", "as the first", "anchor, positive", "text"):
        opened(write(tmp_path / "rows.jsonl", [*pairs(["a"]), {"text": "b"}]), model)
    with refused(DataError, "none.jsonl:2", "which has anchor, positive", "got anchor"):
        opened(write(tmp_path / "none.jsonl", [*pairs(["a"]), *pairs(["b"], positive=None)]), model)
    with refused(DataError, "more.jsonl:2", "expected columns", "files of their own"):
        opened(write(tmp_path / "more.jsonl", [{"text": "b"}, *pairs(["a"])]), model)
    with refused(DataError, "types.jsonl:1", "must all be texts"):
        opened(write(tmp_path / "types.jsonl", [{"anchor": "a", "positive": 3}]), model)
    path = write(tmp_path / "fine.jsonl", pairs(["a", "b"]))
    with refused(OptionError, "groups of 2 samples", "lower max_length"):
        train.Packs(opened(path, model), tokens=1)
    with refused(OptionError, "no batch", "two pairs"):
        train.Packs(opened(path, model), tokens=3).epoch(0)


# -- runs ----------------------------------------------------------------------------------------
def config(data, **changes):
    options = {"data": str(data), "batch_tokens": 128, "steps": 30, "learning_rate": 3e-3}
    return train.TrainConfig(**{**options, "max_sequences": 24, **changes})


@pytest.mark.parametrize("full", [False, True])
def test_an_embedding_model_is_trained(full, tmp_path):
    for split, words in (("train", WORDS), ("valid", ["stone", "river"])):
        write(tmp_path / f"{split}.jsonl", pairs(words))
    make_tiny_encoder(tmp_path / "encoder")
    model = boostr.load(tmp_path / "encoder", backend="numpy", trainable=full)
    said = []
    rate = 1e-2 if full else 3e-2
    own = config(tmp_path, full=full, steps=60, eval_every=30, learning_rate=rate)
    assert train.Trainer(model, own, tmp_path / "dry").predicted_memory()
    model = boostr.load(tmp_path / "encoder", backend="numpy", trainable=full)
    run = train.Trainer(model, own, tmp_path / "run")
    assert run.run(say=said.append)
    assert said[-1].loss < said[0].loss / 3 and said[-1].eval_loss is not None
    if full:
        again = boostr.load(tmp_path / "run" / "model", backend="numpy")
    else:
        again = boostr.load(tmp_path / "encoder", backend="numpy", adapter=tmp_path / "run")
    np.testing.assert_allclose(again.embed(WORDS), model.embed(WORDS), atol=1e-5)
    a, b = again.embed(WORDS), again.embed([w.upper() for w in WORDS])
    assert ((a @ b.T).argmax(1) == np.arange(len(WORDS))).all()


def preference_run(tmp_path, out="run", **changes):
    rows = [{"prompt": f"{w}: ", "chosen": "yes", "rejected": "no"} for w in WORDS]
    path = write(tmp_path / "rows.jsonl", rows)
    if not (tmp_path / "tiny").exists():
        make_tiny(tmp_path / "tiny")
    model = boostr.load(tmp_path / "tiny", backend="numpy", trainable=changes.get("full", False))
    return train.Trainer(model, config(path, log_every=1, **changes), tmp_path / out)


@pytest.mark.parametrize("full", [False, True])
def test_preferences_are_learnt(full, tmp_path):
    """From log 2 on, as the reference is the model itself; resumed it is still that model."""
    options = {"full": full, "learning_rate": 1e-3 if full else 1e-2, "steps": 12}
    said = []
    assert preference_run(tmp_path, "dry", **options).predicted_memory()
    whole = preference_run(tmp_path, **options)
    reference = log_probabilities(whole.model, whole.packs)
    assert whole.run(say=said.append)
    assert said[0].loss == pytest.approx(np.log(2), abs=1e-4) and said[-1].loss < 0.4
    np.testing.assert_array_equal(whole.packs.reference, reference)
    gains = log_probabilities(whole.model, whole.packs) - reference
    assert (gains[::2] > gains[1::2]).all()
    parts = preference_run(tmp_path, "parts", **options)
    stop = iter([False] * 5 + [True])
    assert not parts.run(stop=lambda: next(stop))
    later = preference_run(tmp_path, "parts", **options)
    assert later.run(resume=True)
    for a, b in zip(whole.model.parameters(), later.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_model_of_another_kind_is_refused(tmp_path):
    make_tiny(tmp_path / "tiny")
    decoder = boostr.load(tmp_path / "tiny", backend="numpy")
    path = write(tmp_path / "rows.jsonl", pairs(["a", "b"]))
    with refused(OptionError, "rows of a pair", "decoder", "embedding models"):
        train.Trainer(decoder, config(path), tmp_path / "run")
    path = write(tmp_path / "text.jsonl", [{"text": "abc"}])
    with refused(OptionError, "rows of a sample", "encoder"):
        train.Trainer(encoder(tmp_path), config(path, full=True), tmp_path / "run")
    write(tmp_path / "train.jsonl", pairs(["a", "b"]))
    write(tmp_path / "valid.jsonl", pairs(["a", "b"], negative="c"))
    with refused(OptionError, "valid", "another kind"):
        train.Trainer(
            encoder(tmp_path), config(tmp_path, eval_every=1, full=True), tmp_path / "run"
        )
    with refused(OptionError, "sample_every", "no text"):
        own = config(tmp_path, sample_every=1, sample="a", full=True)
        train.Trainer(encoder(tmp_path), own, tmp_path / "run")
    with refused(OptionError, "dpo_beta", "above 0"):
        config(path, dpo_beta=0.0)
