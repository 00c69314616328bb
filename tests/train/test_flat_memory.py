"""Steps leave nothing behind, with the cycle collector off."""

import gc
import tracemalloc

import numpy as np
import pytest
from train.conftest import CONFIG

import boostr
from boostr import train

KINDS = ("full", "adapter", "accumulated", "compiled")
WARM = 4  # steps


def stepper(kind, backend, sequences):
    """A step of its kind, on a model of one layer."""
    model = boostr.create("llama", {**CONFIG, "num_hidden_layers": 1}, 3, backend=backend)
    if kind == "adapter":
        train.add_lora(model, r=4, dropout=0.1)
    optimizer = train.AdamW(model.parameters(), lr=1e-3)
    batches = [train.pack(sequences[:2]), train.pack(sequences[2:])]
    if kind == "compiled":
        step = train.compile_step(model, optimizer, tokens=21, grad_accumulation=2)
        return lambda: step(*batches).loss

    def eager():
        for batch in batches if kind == "accumulated" else batches[1:]:
            loss = model.loss(batch, "sum") / 20
            loss.backward()
        optimizer.step(train.clip_grad_norm(model.parameters(), 1.0))
        optimizer.zero_grad()
        return loss.item()

    return eager


def alive():
    """(bytes of numpy's arrays, objects that the collector knows)."""
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([arrays]).traces
    return sum(t.size for t in traces), len(gc.get_objects())


def grown(step, count):
    """(bytes, objects) that are alive after `count` steps, more than after a few."""
    seen = []
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for number in range(count):
            step()
            if number + 1 in (WARM, count):
                seen.append(alive())
    finally:
        tracemalloc.stop()
        gc.enable()
    return tuple(then - before for before, then in zip(*seen, strict=True))


def is_flat(growth, steps):
    """No byte of arrays more, and of objects less than one a step."""
    return growth[0] == 0 and growth[1] < steps / 2


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_flat(kind, sequences):
    step = stepper(kind, "numpy", sequences)
    assert is_flat(grown(step, 5 * WARM), 4 * WARM)


def held(backend):
    """Bytes that this process has of the device, in use or not. Other processes may use it, too."""
    if backend.name == "cupy":
        import cupy

        pool = cupy.get_default_memory_pool()
        return pool.used_bytes(), pool.total_bytes()
    return backend.used_memory()


def held_twice(step, backend):
    """What is held after 3 steps, and after 3 more."""
    seen = []
    gc.collect()
    backend.release_memory()  # else what is leaked may lie in what earlier tests have left
    gc.disable()
    try:
        for _ in range(2):
            for _ in range(3):
                step()
            seen.append(held(backend))
    finally:
        gc.enable()
    return seen


@pytest.mark.kernel
def test_memory_of_a_device_is_flat(backend, sequences):
    if backend.used_memory() is None:
        pytest.skip("its arrays are counted above")
    before, after = held_twice(stepper("full", backend, sequences), backend)
    assert before == after


@pytest.mark.kernel
def test_what_a_step_keeps_on_a_device_is_seen(backend, sequences):
    if backend.used_memory() is None:
        pytest.skip("its arrays are counted above")
    step, kept = stepper("full", backend, sequences), []

    def keeps():
        step()
        kept.append(backend.full((1 << 20,), 0, np.dtype("f4")))

    before, after = held_twice(keeps, backend)
    assert before != after


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_flat_over_many_steps(kind, sequences, request):
    few = kind == "adapter" and not request.config.getoption("--large")
    count = 40 if few else 200  # dropout makes many small arrays, which are traced
    step = stepper(kind, "numpy", sequences)
    assert is_flat(grown(step, count), count)


def test_what_a_step_keeps_is_seen(sequences):
    """An array of 8 kB that each step leaves behind."""
    step, kept = stepper("full", "numpy", sequences), []
    growth = grown(lambda: kept.append(np.full(2048, step(), "f4")), 2 * WARM)
    assert growth[0] == WARM * 8192 and not is_flat(growth, WARM)
