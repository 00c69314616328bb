"""Every decoder family against transformers: logits, greedy ids, prefill = decode = chunked."""

from __future__ import annotations

import gc
import weakref

import cases
import numpy as np
import pytest
from cases import DECODERS, PLAIN, close, each, named

from boostr import backends, dtypes
from boostr.engine import programs as programs_module
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.program import capture


def make_runner(case, tmp_path, backend, **options) -> Runner:
    """With float32 activations, which transformers' logits were made with."""
    if backend.activation_dtype(dtypes.bfloat16) != dtypes.float32:
        options.setdefault("dtype", "float32")
    return Runner(
        load_module(cases.checkpoint(case, tmp_path), backend=backend, **options), backend
    )


def greedy(runner, prompts, count):
    """Greedy ids [len(prompts)][count], all prompts decoded together."""
    rows = FixedRows(runner, len(prompts), max(map(len, prompts)) + count)
    ids = [rows.prefill(prompts).numpy().argmax(1).tolist()]
    rows.begin(ids[0], [len(p) for p in prompts])
    while len(ids) < count:
        ids.append(rows.step()[0].tolist())
    return np.array(ids).T.tolist()


@each(DECODERS)
def test_logits_equal_transformers(case, backend, tmp_path):
    runner = make_runner(case, tmp_path, backend)
    logits = [runner.logits(ids).numpy() for ids in cases.sequences(case)]
    close(cases.kept(logits), cases.expected(case, "logits"))


def test_activations_in_the_dtype_of_the_checkpoint(backend, tmp_path):
    """A bf16 checkpoint on a GPU: logits differ by the rounding of activations, cached or not."""
    case = named("llama/bf16")
    folder, truth = cases.checkpoint(case, tmp_path), cases.expected(case, "logits")
    runner, found = Runner(load_module(folder, backend=backend), backend), []
    assert runner.module.activation_dtype == backend.activation_dtype(dtypes.bfloat16)
    for ids in cases.sequences(case):
        found.append(ours := runner.logits(ids).numpy())
        assert ours.dtype == np.float32
        cached = FixedRows(runner, 1, len(ids)).prefill([ids.tolist()]).numpy()
        assert np.linalg.norm(cached[0] - ours[-1]) <= 2e-2 * np.linalg.norm(ours[-1])
    assert np.linalg.norm(cases.kept(found) - truth) <= 2e-2 * np.linalg.norm(truth)


@each(DECODERS)
def test_greedy_ids_equal_transformers(case, backend, tmp_path):
    """Exactly: make_tiny.py takes no run with a near tie in it."""
    runner, ids = make_runner(case, tmp_path, backend), cases.expected(case, "greedy_ids").tolist()
    assert greedy(runner, [cases.prompt(case)], len(ids)) == [ids]


def test_bf16_weights_are_within_bf16_of_transformers_in_bf16(backend, tmp_path):
    case = named("llama/bf16")
    runner, truth = make_runner(case, tmp_path, backend), cases.expected(case, "logits_bf16")
    ours = cases.kept([runner.logits(ids).numpy() for ids in cases.sequences(case)])
    # In norm: the largest single error, 2.3e-2, is that of transformers' own bf16 arithmetic
    # (our logits are within 1e-4 of its float32 ones, see test_logits_equal_transformers).
    assert np.linalg.norm(ours - truth) <= 2e-2 * np.linalg.norm(truth)


@each(DECODERS)
def test_chunked_prefill_equals_whole(case, backend, tmp_path):
    runner, ids = make_runner(case, tmp_path, backend), cases.sequences(case)[-1]
    whole = runner.logits(ids).numpy()[-1:]
    for chunk in (1, 5, len(ids)):
        rows = FixedRows(runner, 1, len(ids))
        close(rows.prefill([ids], chunk=chunk).numpy(), whole)


@each(PLAIN)
def test_decoding_step_by_step_equals_prefill(case, backend, tmp_path):
    """The logits of every step of the captured program are those of the sequence as one prompt."""
    runner, prompt = make_runner(case, tmp_path, backend), cases.prompt(case)
    rows = FixedRows(runner, 1, len(prompt) + 24)
    first = int(rows.prefill([prompt]).numpy()[0].argmax())
    rows.begin([first], [len(prompt)])
    sequence, steps = [*prompt, first], []
    for _ in range(20):
        ids, logits = rows.step()
        sequence.append(int(ids[0]))
        steps.append(logits.numpy()[0].copy())
    whole = runner.logits(sequence[:-1]).numpy()[len(prompt) :]
    close(np.stack(steps), whole)


@each(PLAIN)
def test_batch_of_eight_lengths_equals_each_alone(case, backend, tmp_path):
    runner, ids = make_runner(case, tmp_path, backend), cases.sequences(case)[-1].tolist()
    spans = ((0, 1), (3, 5), (0, 8), (2, 13), (1, 18), (5, 28), (0, 33), (7, 40))
    prompts = [ids[a:b] for a, b in spans]
    together = FixedRows(runner, 8, 48).prefill(prompts).numpy()
    for row, prompt in zip(together, prompts, strict=True):
        alone = FixedRows(runner, 1, 48).prefill([prompt]).numpy()[0]
        close(row, alone)
    assert greedy(runner, prompts, 12) == [greedy(runner, [p], 12)[0] for p in prompts]


@pytest.mark.parametrize("scheme", ["int8", "int8-g32", "int8-g64", "int8-g128", "w8a8"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_quantized_models_stay_close(scheme, embeddings, backend, tmp_path):
    """int8 weights change logits by about the size of their rounding, never more."""
    case, options = named("llama/untied"), {"quantize_embeddings": embeddings}
    runner = make_runner(case, tmp_path, backend, quantize=scheme, **options)
    actual = cases.kept([runner.logits(ids).numpy() for ids in cases.sequences(case)])
    truth = cases.expected(case, "logits")
    assert np.linalg.norm(actual - truth) <= 0.06 * np.linalg.norm(truth)
    packed = {n for n, w in runner.module.weights().items() if hasattr(w, "scheme")}
    assert ("lm_head.weight" in packed) == embeddings
    assert "model.layers.0.self_attn.q_proj.weight" in packed


@each(PLAIN)
def test_recorded_chunks_equal_eager_ones(case, backend, tmp_path, monkeypatch):
    """Prompts that need several chunks, of sizes that have been seen before."""
    runner = make_runner(case, tmp_path, backend)
    rng = np.random.default_rng(2)
    lengths = (23, 12, 8, 3)
    prompts = [rng.integers(0, runner.module.config.vocab_size, n).tolist() for n in lengths]
    monkeypatch.setattr(type(backend), "prefill_chunk", 4)
    found = []
    for recorded in (False, True):
        monkeypatch.setattr(type(backend), "records_prefill", recorded)
        rows = FixedRows(runner, len(prompts), 32)
        for _ in range(2):  # the second time over what the first has left
            logits = rows.prefill(prompts)
        assert bool(rows.steps.captures) == recorded
        found.append(logits.numpy())
    close(found[1], found[0])


def test_a_cache_is_freed_without_the_garbage_collector(monkeypatch, tmp_path):
    """Also where a program keeps the function that it was recorded from, as on a GPU."""
    backend = backends.get("numpy")

    def keeping(fn, chosen, **options):
        program = capture(fn, chosen, **options)
        program.keep = fn  # type: ignore[attr-defined]
        return program

    monkeypatch.setattr(programs_module, "capture", keeping)
    monkeypatch.setattr(type(backend), "records_prefill", True)
    monkeypatch.setattr(type(backend), "prefill_chunk", 4)
    runner = make_runner(named("llama/tied"), tmp_path, backend)
    gc.collect()
    gc.disable()
    try:
        rows = FixedRows(runner, 1, 20)
        rows.prefill([list(range(1, 13))])
        rows.begin([1], [12])
        rows.step()
        assert rows.steps.captures > 1
        gone = weakref.ref(rows.steps.pool)
        del rows
        assert gone() is None
    finally:
        gc.enable()
