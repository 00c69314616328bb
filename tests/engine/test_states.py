"""Layers that keep something else than keys and values: every sequence is as it would be alone."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from draws import large, normal, refused
from interleaved import read_side_by_side
from mixers import CHANNELS, HEADS, KEPT, TAPS, WIDTH, StateMixer, put_into
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions, Tensor, backends
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.kv_pool import KVPool
from boostr.engine.request import Outbox
from boostr.engine.scheduler import Scheduler
from boostr.engine.scoring import Scoring
from boostr.engine.steps import Steps
from boostr.errors import BackendError, OptionError
from boostr.nn.batch import Batch
from boostr.nn.states import Latent, Paged, Recurrent, Shares

KINDS = {
    "state between attention": (None, "state", None),
    "states alone": ("state", "state"),
    "latents and a state": ("latent", "state", "latent"),
    "another's latents and another sequence": ("latent", "cross", "shared"),
}
OPTIONS = (
    {}, {"temperature": 0.9, "seed": 3}, {"repetition_penalty": 1.3}, {"deterministic": True},
)  # fmt: skip


@pytest.fixture(scope="module", params=["state between attention", *map(large, list(KINDS)[1:])])
def kinds(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder(kinds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_tiny(folder, num_hidden_layers=len(kinds))


@pytest.fixture
def fresh(where, folder, kinds):
    return lambda: put_into(boostr.load(folder, backend=where), kinds)


def requests(rng, count):
    for _ in range(count):
        prompt = [rng.randrange(3, 250) for _ in range(rng.choice((1, 2, 7, 20, 45)))]
        options = rng.choice(OPTIONS)
        yield prompt, SamplingOptions(max_tokens=rng.choice((1, 2, 9, 23)), **options)


def counted(monkeypatch, owner, name):
    """The calls of a method, which goes on as it was."""
    method, calls = getattr(owner, name), []

    def noted(self, *args):
        calls.append(args)
        return method(self, *args)

    monkeypatch.setattr(owner, name, noted)
    return calls


def spoil(pool, row=slice(None)):
    """Nan, or a 9, in a row or in all: of those who were there before."""
    for kept in pool.rows._rows.values():
        for values in kept:
            part = values[row]
            value = np.nan if values.dtype.kind == "f" else 9
            part.assign(np.full(part.shape, value, values.dtype))


def mixed_alone(mixer, x):
    """float64 [T, E]: the mixer of one sequence, token by token."""
    weight = {name: np.float64(values.numpy()) for name, values in mixer.weights().items()}
    decay, state = np.exp(np.float64(mixer._log_decay.numpy())), np.zeros((HEADS, WIDTH, KEPT))
    inputs, found = np.zeros((TAPS, CHANNELS)), []
    for row in np.float64(x):
        inputs = np.concatenate([(weight["in_proj.weight"] @ row)[None], inputs[:-1]])
        u = (inputs * weight["taps"]).sum(0).reshape(HEADS, WIDTH)
        k, q = weight["k_proj"] @ row, weight["q_proj"] @ row
        state = state * decay[:, None, None] + u[..., None] * k
        found.append(weight["out_proj.weight"] @ (state @ q).ravel())
    return np.array(found)


def test_the_mixer_is_its_recurrence(plain_backend, rng):
    def weights(shape):
        return normal(rng, shape, scale=0.3).astype("float32")

    mixer = StateMixer(0, 12, weights, plain_backend)
    lengths = [1, 0, 5, 9, 2]
    cu = np.cumsum([0, *lengths]).astype("int32")
    x = normal(rng, (cu[-1] + 3, 12)).astype("float32")  # and tokens of no sequence
    ints = Tensor(np.zeros(len(x), "int32"), backend=plain_backend)
    batch = Batch(ints, ints, Tensor(cu, backend=plain_backend))
    residual = Tensor(np.zeros_like(x), backend=plain_backend)
    found = mixer(Tensor(x, backend=plain_backend), None, batch, residual, 1.0).numpy()
    for start, stop in itertools.pairwise(cu):
        np.testing.assert_allclose(
            found[start:stop], mixed_alone(mixer, x[start:stop]).reshape(-1, 12), atol=2e-5
        )


def test_chunks_and_steps_give_the_logits_of_the_whole(fresh, rng):
    model = fresh()
    ids = rng.integers(3, 250, 41).tolist()
    whole = model.logits(ids)
    rows = FixedRows(model.runner, 3, 64)
    others = [rng.integers(3, 250, n).tolist() for n in (19, 30)]
    prompts = [others[0], ids[:30], others[1]]
    close = {"atol": 3e-5 * float(np.abs(whole).max()), "rtol": 0}
    logits = rows.prefill(prompts, chunk=7).numpy()
    np.testing.assert_allclose(logits[1], whole[29], **close)
    for at in range(30, 41):
        rows.begin([5, ids[at], 6], [19 + at - 30, at, 30 + at - 30])
        np.testing.assert_allclose(rows.step()[1].numpy()[1], whole[at], **close)


def test_there_are_no_more_rows_than_are_decoded(where, fresh, monkeypatch):
    prompts = [[9 + i, 5, 77] for i in range(4)]
    truth = [c.token_ids for c in fresh().generate_batch(prompts, max_tokens=3)]
    monkeypatch.setattr(where, "sequence_rows", 3)  # four have a bucket of more
    model = fresh()
    assert [c.token_ids for c in model.generate_batch(prompts, max_tokens=3)] == truth
    assert model.engine.pool.rows.count == 3


def test_every_interleaving_gives_each_alone(fresh, monkeypatch):
    """Streams that are read slowly or dropped, in memory that is too small for all."""
    rng = random.Random(5)
    wanted = list(requests(rng, 10))
    alone, model = fresh(), fresh()
    truth = []
    for prompt, options in wanted:
        truth.append(alone.generate(prompt, options=options).token_ids)
        spoil(alone.engine.pool)
    engine = model.engine
    monkeypatch.setattr(type(model.backend), "prefill_chunk", 16)
    engine._chunk = 16
    engine.pool.grow([6] * len(engine.pool.windows), 5)
    engine.kv_memory = engine.pool.nbytes
    spoil(engine.pool)
    engine._renew()
    taken = [rng.choice((None, None, 1, 3)) for _ in wanted]
    found = read_side_by_side(model, wanted, taken, 6)
    for got, ids, count in zip(found, truth, taken, strict=True):
        assert got == ids[: count or len(ids)]
    model.generate([1], max_tokens=1)  # a round, in which dropped streams leave
    assert len(engine._scheduler._free_rows) == engine.pool.rows.count == 5


def test_rows_that_close_up_go_on_alike(fresh, monkeypatch):
    alone, model = fresh(), fresh()
    prompts = [[20 + i, 3, i] for i in range(6)]
    truth = [alone.generate(p, max_tokens=3 + 4 * i).token_ids for i, p in enumerate(prompts)]
    moved = counted(monkeypatch, Steps, "move")
    options = [SamplingOptions(max_tokens=3 + 4 * i) for i in range(6)]
    found = model.generate_batch(prompts, options=options)
    assert [c.token_ids for c in found] == truth
    assert moved


def test_a_score_in_chunks_takes_its_state_along(fresh, rng, monkeypatch):
    """Its last chunk is computed in a lower row than those before it."""
    model = fresh()
    ids = rng.integers(3, 250, 40).tolist()
    alone = model.engine.losses([ids])[0]
    logits = model.logits(ids).astype(np.float64)[:-1]
    logits -= logits.max(1, keepdims=True)
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(39), ids[1:]]
    np.testing.assert_allclose(alone, wanted, rtol=2e-4, atol=2e-4)
    for name in ("prefill_chunk", "prefill_beside"):
        monkeypatch.setattr(type(model.backend), name, 8)
    model, moves = fresh(), counted(monkeypatch, Steps, "move")
    model.generate_batch([[5], [6], [7]], max_tokens=2)  # rows for three
    for count in range(2, 8):  # one of them ends right before the last chunk
        outbox = Outbox(model.engine._lock, 1)
        streams = [model.stream([5], max_tokens=30), model.stream([6], max_tokens=count)]
        for stream in streams:
            next(stream)
        model.engine._inbox.append(Scoring(ids, 0, outbox))
        for stream in reversed(streams):
            list(stream)
        while not outbox.ready:
            model.engine._round()
        np.testing.assert_allclose(outbox.pieces[0].losses, alone, rtol=1e-5, atol=1e-5)
    assert (2, 1) in moves


def test_preempted_sequences_are_computed_again(fresh, monkeypatch):
    alone, model = fresh(), fresh()
    size = model.backend.kv_block
    prompts, length = [[i + 3] * (size - 4) for i in range(4)], size + 8
    truth = [alone.generate(p, max_tokens=length).token_ids for p in prompts]
    engine = model.engine
    engine.pool.grow([8] * len(engine.pool.windows), 4)
    engine.kv_memory = engine.pool.nbytes
    engine._renew()
    preempted = counted(monkeypatch, Scheduler, "_preempt")
    found = model.generate_batch(prompts, max_tokens=length)
    assert [c.token_ids for c in found] == truth
    assert bool(preempted) == bool(engine.pool.windows)


def test_rows_count_in_the_budget(fresh):
    model = fresh()
    pool = model.engine.pool
    free = fresh()
    prompts = [[7 + i] * 9 for i in range(6)]
    truth = [free.generate(p, max_tokens=5).token_ids for p in prompts]
    least = sum(pool.block_bytes(g) for g in range(len(pool.windows))) + pool.rows.row_bytes
    model.engine.kv_memory = least - 1
    with refused(OptionError, "are needed"):
        model.generate(prompts[0], max_tokens=5)
    model.engine.kv_memory = least
    assert model.generate(prompts[0], max_tokens=5).token_ids == truth[0]
    assert model.engine.pool.nbytes == least
    model.engine.kv_memory = budget = 3 * least + 100
    found = model.generate_batch(prompts, max_tokens=5)
    assert [c.token_ids for c in found] == truth
    assert 2 * least <= model.engine.pool.nbytes <= budget


def test_prefixes_are_not_shared_and_choices_are_alike(fresh):
    model = fresh()
    prompt = [5] * (2 * model.backend.kv_block + 3)
    first, second = (model.generate(prompt, max_tokens=4) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert second.timings.prompt_tokens == len(prompt)
    assert any(kind in model.engine.prefixes_off for kind in ("Recurrent", "Cross"))
    found = model.generate_batch([prompt] * 3, max_tokens=4)
    assert [c.token_ids for c in found] == [first.token_ids] * 3
    assert [c.timings.prompt_tokens for c in found] == [len(prompt), 0, 0]


def test_choices_go_on_from_the_rows_of_the_first(fresh):
    """From a prompt in chunks, shorter and longer than a block."""
    model, alone = fresh(), fresh()
    size = model.backend.prefill_chunk
    for length in (3, size + 9):
        ids = [(5 * i) % 240 + 3 for i in range(length)]
        options = SamplingOptions(max_tokens=6, temperature=1.2, seed=4, n=3)
        done = model.generate(ids, options=options)
        assert [c.timings.prompt_tokens for c in done.choices] == [length, 0, 0]
        for i, choice in enumerate(done.choices):
            one = alone.generate(ids, options=options, n=1, seed=4 + i)
            assert choice.token_ids == one.token_ids


def test_a_row_that_is_copied_goes_on_alike(fresh):
    """What moves, continuations of one prompt and taking tokens back need."""
    model = fresh()
    rows = FixedRows(model.runner, 3, 64)
    prompt = list(range(20, 41))
    rows.prefill([prompt, [9, 8], prompt])  # blocks of keys and values are the tables' affair
    spoil(rows.steps.pool, 2)
    rows.steps.pool.rows.copy([0, 0], [2, 1])
    rows.begin([5] * 3, [len(prompt)] * 3)
    logits = rows.step()[1].numpy()
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-5)


@pytest.mark.parametrize(
    "states, said",
    [
        ([[Latent(8), Recurrent((3,)), Paged(2, 8, 8)]], ("layer 0 keeps Paged", "beside Latent")),
        ([[Latent(8)], [Latent(8), Shares(0)]], ("layer 1 keeps Shares", "beside Latent")),
        ([[Shares(0)]], ("layer 0 keeps Shares(layer=0)", "a layer before it")),
        ([[Latent(8)], [Shares(0)], [Shares(1)]], ("layer 2 keeps Shares(layer=1)",)),
        ([[Recurrent((3,))], [Shares(0)]], ("layer 1 keeps Shares(layer=0)", "Paged and Latent")),
    ],
)
def test_what_no_pool_holds_is_refused(states, said):
    with refused(BackendError, *said):
        KVPool(states, backends.get("numpy"), 16, np.dtype("float32"))


def test_what_others_read_takes_no_memory():
    pools = [
        KVPool(states, backends.get("numpy"), 16, np.dtype("float32"))
        for states in ([[Latent(8)]], [[Latent(8)], [Shares(0)]])
    ]
    assert pools[0].block_bytes(0) == pools[1].block_bytes(0) and not pools[1].rows.row_bytes
