"""A low-rank adapter over every projection of every family: the same as the dense W + s·B·A."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from cases import ENCODERS, PLAIN, close, each, named

from boostr import Tensor, autograd, dtypes, nn, ops
from boostr.dispatch import strict
from boostr.engine.engine import Engine
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.operands import LowRank
from boostr.quant.scheme import QuantizedTensor

RANK, SCALE, RTOL = 3, 0.75, 1e-4


def pair(case, tmp_path, backend, quantize=None):
    """(module with an adapter over every weight of a product or table, module of dense ones)."""
    folder = cases.checkpoint(case, tmp_path)
    dtype = "float32" if backend.activation_dtype(dtypes.bfloat16) != dtypes.float32 else None
    made, dense = (
        load_module(folder, backend=backend, dtype=dtype, quantize=quantize) for _ in range(2)
    )
    twins = {path: (owner, attribute) for path, owner, attribute in dense.places()}
    rng, count = np.random.default_rng(3), 0
    for path, owner, attribute in made.places():
        if attribute != "weight" or not isinstance(owner, nn.Linear | nn.Embedding):
            continue
        base = getattr(owner, attribute)
        N, K = base.shape
        down, up = (rng.standard_normal(s).astype(np.float32) / 4 for s in ((RANK, K), (N, RANK)))
        parts = [Tensor(a, backend=backend) for a in (down, up)]
        setattr(owner, attribute, LowRank(base, parts[0], parts[1], SCALE))
        plain = ops.dequantize(base) if isinstance(base, QuantizedTensor) else base
        whole = plain.to("float32").numpy() + SCALE * up @ down
        twin, place = twins[path]
        setattr(twin, place, Tensor(whole.astype(np.float32), backend=backend))
        count += 1
    assert count > 5
    return made, dense


def decoded(runner, prompts, steps):
    """Logits of every step of a batch, after the same tokens."""
    rows = FixedRows(runner, len(prompts), max(map(len, prompts)) + steps)
    logits = [rows.prefill(prompts).numpy()]
    first = logits[0].argmax(1).tolist()
    rows.begin(first, [*map(len, prompts)])
    logits += [rows.step()[1].numpy().copy() for _ in range(steps - 1)]
    return np.stack(logits)


@each(PLAIN)
def test_decoders(case, plain_backend, tmp_path):
    """Logits, prefill, decode programs of one and of several, and scores."""
    made, dense = (Runner(m, plain_backend) for m in pair(case, tmp_path, plain_backend))
    ids = np.random.default_rng(1).integers(3, 199, 23).tolist()
    with strict():
        close(made.logits(ids).numpy(), dense.logits(ids).numpy())
        for prompts in ([ids], [ids[:7], ids[:1], ids[:12]]):
            close(decoded(made, prompts, 6), decoded(dense, prompts, 6))
    got, want = (Engine(m).losses([ids])[0] for m in (made, dense))
    assert np.abs(got - want).max() <= RTOL * want.max()


@pytest.mark.parametrize("scheme", ["int8", "int8-g32"])
def test_over_packed_weights(scheme, plain_backend, tmp_path):
    modules = pair(named("llama/untied"), tmp_path, plain_backend, scheme)
    made, dense = (Runner(m, plain_backend) for m in modules)
    ids = list(range(5, 25))
    close(made.logits(ids).numpy(), dense.logits(ids).numpy())
    close(decoded(made, [ids, ids[:4]], 4), decoded(dense, [ids, ids[:4]], 4))


@each(case for case in ENCODERS if case.family != "mpnet")  # whose scores have no kernel
def test_encoders(case, plain_backend, tmp_path):
    made, dense = (Runner(m, plain_backend) for m in pair(case, tmp_path, plain_backend))
    batch = made.packed([[5, 6, 7, 8], [9], list(range(20, 40))])
    with autograd.no_grad(), strict():
        for ours, theirs in zip(
            made.module.hidden_states(batch), dense.module.hidden_states(batch), strict=True
        ):
            close(ours.numpy(), theirs.numpy())


def test_what_fell_apart_is_described(tmp_path):
    """A step of a plain model has its kernels; of an adapted one each site says why it has not."""
    from boostr import backends, capture

    backend = backends.get("numpy")
    made, _ = (Runner(m, backend) for m in pair(named("llama/odd"), tmp_path, backend))
    program = capture(lambda: made.module.hidden(made.packed([[1, 2, 3]])), backend)
    apart = [line for line in program.describe() if "low-rank adapter" in line]
    assert any(line.startswith("linear[numpy] fell apart") for line in apart)
    assert any("times)" in line for line in apart)
    assert len(program.calls()) == len(program)


def test_gradients_reach_the_adapter(tmp_path):
    rng = np.random.default_rng(0)
    base = Tensor(rng.standard_normal((5, 4)), backend="numpy")
    down, up = (Tensor(rng.standard_normal(s), requires_grad=True) for s in ((2, 4), (5, 2)))
    x = Tensor(rng.standard_normal((3, 4)), requires_grad=True)

    def loss(x, down, up):
        ids = Tensor(np.array([0, 3], np.int32))
        weight = LowRank(base, down, up, 0.5)
        return ops.core.sum(ops.linear(x, weight)) + ops.core.sum(ops.embedding(ids, weight) ** 2)

    autograd.gradcheck(loss, [x, down, up])
