"""Ranks on NVIDIA GPUs: how NCCL is called, without one; on two, that they train as one."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import open_backend

import boostr
from boostr import train
from boostr.backends.collectives import Group
from boostr.errors import BackendError

CONFIG = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": 128,
    "initializer_range": 0.2,
}  # fmt: skip


class FakeNccl:
    """What of `cupy.cuda.nccl` is used; notes the calls."""

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


def fake_array(address, shape, dtype):
    values = np.zeros(shape, dtype)
    pointer = SimpleNamespace(ptr=address)
    return SimpleNamespace(data=pointer, size=values.size, itemsize=values.itemsize)


def test_arrays_are_one_group_of_nccl(monkeypatch):
    pytest.importorskip("cupy")
    from boostr.backends.cupy.runtime import nccl

    fake = FakeNccl()
    monkeypatch.setattr(nccl, "library", lambda: fake)
    backend = SimpleNamespace(stream_pointer=lambda: 77, device="cupy:1")
    group = Group(2)
    rank = nccl.NcclRank(group, 1, backend, fake)
    rank.all_reduce([fake_array(640, (3, 5), "f4"), fake_array(1280, (), "f8")])
    assert fake.calls == [
        ("groupStart",),
        ("allReduce", 640, 640, 15, 7, 0, 77),
        ("allReduce", 1280, 1280, 1, 8, 0, 77),
        ("groupEnd",),
    ]
    fake.calls.clear()
    rank.close()
    assert fake.calls == [("destroy",)]


def test_a_failure_aborts_what_waits_on_the_device(monkeypatch):
    pytest.importorskip("cupy")
    from boostr.backends.cupy.runtime import nccl

    fakes, group = [FakeNccl(), FakeNccl()], Group(2)
    threads = []
    apart = nccl._apart
    monkeypatch.setattr(nccl, "_apart", lambda do: threads.append(apart(do)) or threads[-1])
    monkeypatch.setattr(nccl, "library", FakeNccl)
    ranks = [nccl.NcclRank(group, i, SimpleNamespace(), fakes[i]) for i in range(2)]
    group.fail(1, ValueError())
    for rank, fake in zip(ranks, fakes, strict=True):
        rank.close()
        assert fake.calls == [("abort",)]
    for thread in threads:
        thread.join()
    assert [fake.calls for fake in fakes] == [[("abort",)]] * 2


def test_a_communicator_ends_once(monkeypatch):
    """A rank that fails when another has ended does not end that one again."""
    pytest.importorskip("cupy")
    from boostr.backends.cupy.runtime import nccl

    monkeypatch.setattr(nccl, "library", FakeNccl)
    fake, group = FakeNccl(), Group(2)
    rank = nccl.NcclRank(group, 0, SimpleNamespace(), fake)
    rank.close()
    group.fail(1, KeyboardInterrupt())
    rank.close()
    assert fake.calls == [("destroy",)]


def test_a_missing_nccl_names_the_pip_line(monkeypatch):
    cupy = pytest.importorskip("cupy")
    from boostr.backends.cupy.runtime import nccl

    monkeypatch.setattr(cupy.cuda, "nccl", SimpleNamespace(available=False), raising=False)
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 13020)
    with pytest.raises(BackendError, match=r"pip install 'boostr\[nccl13\]'"):
        nccl.library()


# -- on two GPUs ---------------------------------------------------------------------------------


@pytest.fixture
def two_gpus():
    open_backend("cupy")
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one CUDA device, these tests need two")
    from boostr.backends.cupy.runtime import nccl

    nccl.library()  # missing, it is a failure: the machine is for this


def trained(rank=None, dtype="float32"):
    """Metrics of captured steps on two batches each, and the weights then."""
    backend = "cupy:0" if rank is None else rank.backend
    model = boostr.create("llama", CONFIG, 3, backend=backend, dtype=dtype)
    optimizer = train.AdamW(model.parameters(), lr=3e-3)
    step = train.compile_step(
        model, optimizer, tokens=48, max_sequences=4, rank=rank,
        grad_accumulation=2 if rank is None else 1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    found = [
        train.pack([rng.integers(0, 128, n).tolist() for n in lengths])
        for lengths in ((9, 1, 30), (48,), (2, 2, 20), (40,), (3,), (12, 18)) * 3
    ]
    pairs = [found[i : i + 2] for i in range(0, len(found), 2)]
    metrics = [step(*(pair if rank is None else [pair[rank.rank]])) for pair in pairs]
    weights = [p.to("float32").numpy().copy() for p in model.parameters()]
    return [(m.loss, m.grad_norm, m.target_count) for m in metrics], weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_are_one_with_two_batches(two_gpus, dtype):
    one, weights = trained(dtype=dtype)
    both = train.run_ranks(lambda rank: rank.gather(trained(rank, dtype)), "0,1", "cupy")
    for (metrics, own), (_, first) in zip(both, (both[0], both[0]), strict=True):
        np.testing.assert_allclose(metrics, one, rtol=1e-5 if dtype == "float32" else 2e-2)
        for a, b, c in zip(own, first, weights, strict=True):
            np.testing.assert_array_equal(a, b)  # the ranks have the same bits
            np.testing.assert_allclose(a, c, rtol=1e-3, atol=1e-4 if dtype == "float32" else 3e-2)


def test_a_gpu_that_fails_ends_the_other(two_gpus):
    """Which waits on its device for a sum that never comes."""

    def fn(rank):
        x = rank.backend.full((1 << 20,), 1.0, np.dtype("f4"))
        rank.wait()
        if rank.rank == 1:
            raise MemoryError("the cause")
        rank.all_reduce([x])
        rank.backend.synchronize()
        rank.wait()

    with pytest.raises(MemoryError, match="the cause"):
        train.run_ranks(fn, "0,1", "cupy")
