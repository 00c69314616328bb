"""The obvious loop, on a decoder: that it learns, and that a program does the same."""

import gc

import numpy as np
import pytest
from draws import refused
from tolerance import assert_close

import boostr
from boostr import Tensor, train
from boostr.errors import OptionError, TokenizerError
from boostr.train.step import StepMetrics


def steps(model, batches, count, **options):
    """Losses of some steps."""
    optimizer = train.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, **options)
    losses = []
    for i in range(count):
        loss = model.loss(batches[i % len(batches)])
        loss.backward()
        train.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_text_is_learnt(make, sequences):
    losses = steps(make(), [train.pack(sequences)], 60)
    assert losses[0] > 3.5 and losses[-1] < 0.3


def test_loss_is_that_of_the_logits(make, sequences):
    model, labels = make(tie_word_embeddings=False), [list(s) for s in sequences]
    labels[0][3] = labels[3][0] = -100  # the latter is behind nothing anyway
    batch = train.pack(sequences, labels)
    logits, want, at = model(batch).numpy().astype(np.float64), [], 0
    for ids, own in zip(sequences, labels, strict=True):
        for t in range(len(ids) - 1):
            if own[t + 1] != -100:
                row = logits[at + t]
                want.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[own[t + 1]])
        at += len(ids)
    assert batch.target_count == len(want) == sum(map(len, sequences)) - len(sequences) - 1
    assert model.loss(batch).item() == pytest.approx(np.mean(want), rel=1e-5)
    assert model.loss(batch, "sum").item() == pytest.approx(np.sum(want), rel=1e-5)


def test_numbers_of_a_step_are_read_once(plain_backend):
    one = Tensor(np.float32(2.5), backend=plain_backend)
    metrics = StepMetrics([one.backend.start_read(one.data) for _ in range(2)], 1)
    for _ in range(2):
        assert (metrics.loss, metrics.grad_norm, metrics.loss_scale) == (2.5, 2.5, 1)


def test_sequences_do_not_see_each_other(make, sequences):
    """The gradient of a pack is the sum of those of its sequences alone."""
    model = make()
    model.loss(train.pack(sequences), "sum").backward()
    packed = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    for ids in sequences:
        if len(ids) > 1:
            model.loss(train.pack([ids]), "sum").backward()
    for name, p in model.named_parameters():
        scale = np.abs(packed[name]).max()
        assert_close(p.grad.numpy(), packed[name], dtype="float32", reduce=64, scale=scale)


def test_directional_derivative(make, sequences, rng):
    """Along a random direction in all parameters, against central differences in float64."""
    model, batch = make(), train.pack(sequences)
    for _, owner, attribute in model.module.places():
        weight = getattr(owner, attribute)
        wide = Tensor(weight.numpy().astype(np.float64), backend="numpy", requires_grad=True)
        setattr(owner, attribute, wide)
    model.module.model.embed_tokens.dtype = np.dtype(np.float64)
    params = list(model.parameters())
    model.loss(batch).backward()
    along = [rng.standard_normal(p.shape) for p in params]
    slope = sum((d * p.grad.numpy()).sum() for d, p in zip(along, params, strict=True))
    at, sides = [p.numpy().copy() for p in params], []
    for sign in (1, -1):
        for p, start, d in zip(params, at, along, strict=True):
            p.assign(start + sign * 1e-5 * d)
        with boostr.no_grad():
            sides.append(model.loss(batch).item())
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=2e-6)


def test_compiled_is_eager(make, sequences, backend, rng):
    """Bit for bit, with other segment lengths in every step."""
    batches = [
        train.pack([rng.integers(0, 50, n).tolist() for n in lengths])
        for lengths in ((9, 1, 4, 17), (31,), (2, 2, 27), (5, 5, 5, 5, 11))
    ]
    found = []
    for compiled in (False, True):
        model = make(backend)
        optimizer = train.AdamW(model.parameters(), lr=3e-3)
        step = train.compile_step(model, optimizer, tokens=31, max_sequences=5)
        losses = []
        for batch in batches:
            if compiled:
                metrics = step(batch)
                losses.append((metrics.loss, metrics.grad_norm))
            else:
                step._fill([batch])
                loss, norm = step._step()
                losses.append((loss.item(), norm.item()))
        found.append((losses, [p.numpy().copy() for p in model.parameters()]))
    # CuPy's scattered sums, of the embedding's composite, come in any order
    atomics = backend.name == "cupy" and isinstance(backend.kernel("embedding_backward"), str)
    close = {"rtol": 1e-5, "atol": 1e-6} if atomics else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(found[0][0], found[1][0], **close)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, **close)


def test_a_partial_pack_is_filled(make, sequences):
    """What is left of the tokens counts for nothing."""
    batch, losses = train.pack(sequences), []
    for tokens in (len(batch), len(batch) + 13):
        model = make()
        optimizer = train.AdamW(model.parameters(), lr=3e-3)
        step = train.compile_step(model, optimizer, tokens=tokens, max_sequences=6)
        losses.append([step(batch).loss for _ in range(4)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_trained_model_generates_as_its_weights_are(make, sequences):
    """Nothing that was cached before a step is used after it, eager or compiled."""
    model, prompt = make(), [1, 2, 3]
    optimizer = train.AdamW(model.parameters(), lr=0.05)
    step = train.compile_step(model, optimizer, tokens=40, max_sequences=6)
    for _ in range(3):
        step(train.pack(sequences))
        got = model.generate(prompt, max_tokens=5, temperature=0.0).token_ids
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model.logits(ids)[-1].argmax()))
        assert list(got) == ids[3:]


def test_steps_without_the_cycle_collector(make, sequences):
    """No array more is alive after 12 steps than after 3. `isinstance` asks dead proxies, too."""
    model, batch = make(), train.pack(sequences)
    steps(model, [batch], 2)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(3):
            steps(model, [batch], 3)
            counts.append(sum(type(o) is Tensor for o in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[0] == counts[1] == counts[2]


def test_accumulation_is_one_batch(make, sequences):
    model, whole = make(), train.pack(sequences)
    model.loss(whole).backward()
    want = [p.grad.numpy() for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    for part in (sequences[:2], sequences[2:]):
        batch = train.pack(part)
        (model.loss(batch, "sum") / whole.target_count).backward()
    for p, w in zip(model.parameters(), want, strict=True):
        assert_close(p.grad.numpy(), w, dtype="float32", reduce=64, scale=np.abs(w).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_of_a_step_are_one(make, sequences, dtype):
    """Parts whose labels differ in number, one without any, or left out: a step of the whole."""
    labels = [list(s) for s in sequences]
    labels[0][2:] = [-100] * (len(labels[0]) - 2)
    labels[2] = [-100] * len(labels[2])
    whole, ends = train.pack(sequences, labels), ((0, 2), (2, 3), (3, 4))
    parts = [train.pack(sequences[a:b], labels[a:b]) for a, b in ends]
    found = []
    for batches, count in (([whole], 1), (parts, 3), (parts, 5)):
        model = boostr.create("llama", make().config.extra, 3, backend="numpy", dtype=dtype)
        step = train.compile_step(
            model, train.SGD(model.parameters(), lr=0.5), tokens=40, max_sequences=6,
            grad_accumulation=count,
        )  # fmt: skip
        metrics = [step(*batches) for _ in range(3)]
        assert [m.target_count for m in metrics] == [whole.target_count] * 3
        found.append([(m.loss, m.grad_norm) for m in metrics])
    rtol = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(found[1], found[0], rtol=rtol)
    np.testing.assert_allclose(found[2], found[1], rtol=rtol)


def test_gradients_of_a_step_add_up_in_float32():
    """What sixteen bits would lose beside a larger one: 256 + 1 + 1."""
    p = Tensor(np.zeros(1), "bfloat16", "numpy", requires_grad=True)
    for g in (256.0, 1.0, 1.0):
        (p * Tensor(np.array([g]), "bfloat16", "numpy")).sum().backward()
    assert p.grad.dtype == np.float32 and p.grad.item() == 258.0


def test_sixteen_bits(make, sequences):
    """bf16 weights learn through float32 masters, and stay their rounded values."""
    model = boostr.create("llama", make().config.extra, 3, backend="numpy", dtype="bfloat16")
    optimizer = train.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(train.pack(sequences))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    masters = optimizer.tensors()["master"]
    for p, master in zip(optimizer.params, masters, strict=True):
        if master is not None:
            np.testing.assert_array_equal(p.numpy(), master.numpy().astype(p.dtype))
    assert sum(m is not None for m in masters) == 15  # all matrices


@pytest.mark.parametrize("captured", [False, True])
def test_layers_computed_again(make, sequences, captured):
    """Bit for bit, eager and as a program."""
    found = []
    for policy in ("none", "layer"):
        model, batch = make(), train.pack(sequences)
        model.recompute = policy
        optimizer = train.AdamW(model.parameters(), lr=3e-3)
        if captured:
            step = train.compile_step(model, optimizer, tokens=40, max_sequences=6)
            found.append([step(batch).grad_norm for _ in range(3)])
        else:
            model.loss(batch).backward()
            found.append([p.grad.numpy() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_knows_how_many_positions_there_are():
    config = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16, "vocab_size": 50}
    model = boostr.create("gpt2", config, backend="numpy")
    step = train.compile_step(model, train.SGD(model.parameters()), tokens=32)
    with refused(OptionError, "16 positions", "got 17 tokens"):
        step(train.pack([range(17)]))


def test_refuses(make, sequences):
    model = make()
    with refused(OptionError, "loss", "counts"):
        model.loss(train.pack(sequences, [[-100] * len(s) for s in sequences]))
    with refused(OptionError, "recompute", "layer", "all"):
        model.recompute = "all"
    with refused(OptionError, "clip_grad_norm", "backward"):
        train.clip_grad_norm(model.parameters(), 1.0)
    step = train.compile_step(model, train.SGD(model.parameters()), tokens=8, max_sequences=2)
    batch = train.pack(sequences)
    with refused(OptionError, "8 tokens", "31"):
        step(batch)
    for ids, labels in (([1, 50], [1, 2]), ([1, 2], [1, 50]), ([1, 2], [1, -5])):
        wrong = train.pack([ids], [labels])
        for call in (step, model.loss):
            with refused(TokenizerError, "must be in the model's vocabulary 0..49"):
                call(wrong)
    with refused(OptionError, "1 to 1 batches", "got 2"):
        step(batch, batch)
    with refused(OptionError, "grad_accumulation", "got 0"):
        optimizer = train.SGD(model.parameters())
        train.compile_step(model, optimizer, tokens=8, grad_accumulation=0)
