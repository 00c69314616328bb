"""What a run is said to take, against what it takes."""

import subprocess
import sys

import numpy as np
import pytest
from tiny_model import ROOT, environment

import boostr
from boostr import train
from boostr.train.memory import predicted_memory

CONFIG = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 2,
    "max_position_embeddings": 1024, "vocab_size": 512,
}  # fmt: skip


def made(adapter, recompute):
    model = boostr.create("llama", CONFIG, seed=0, backend="numpy")
    if adapter:
        train.add_lora(model, r=4)
    model.recompute = recompute
    return model, train.AdamW(model.parameters())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_step_takes_what_was_said(adapter):
    """Within a tenth; weights and states to the byte. No weight moves for it."""
    rng = np.random.default_rng(0)
    for recompute in ("none", "layer"):
        model, optimizer = made(adapter, recompute)
        before = {name: p.numpy().copy() for name, p in model.named_parameters()}
        said = predicted_memory(model, optimizer, tokens=1024, max_length=300)
        assert all(np.array_equal(p.numpy(), before[n]) for n, p in model.named_parameters())
        assert said.weights == sum(p.nbytes for p in model.parameters())
        assert said.optimizer == 2 * said.gradients == 2 * sum(p.nbytes for p in optimizer.params)
        assert optimizer.lr == 1e-3
        step = train.compile_step(model, optimizer, tokens=1024)
        step(train.pack([rng.integers(0, 512, n).tolist() for n in (300, 20, 300, 290)]))
        taken = said.gradients + said.activations
        assert taken == pytest.approx(step.program.memory, rel=0.1)


SEEN = """
import numpy as np
from boostr import train
from boostr.bench.resources import PeakMemory
from test_memory import made
model, optimizer = made(False, "none")
train.compile_step(model, optimizer, tokens=64)(train.pack([[1] * 64]))  # which loads kernels
peak = PeakMemory()
step = train.compile_step(model, optimizer, tokens=4096)
step(train.pack([[1] * 512] * 8)).loss
print(step.program.memory, peak.above_start())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are forgotten on Linux alone")
def test_memory_of_a_program_is_what_the_process_takes():
    path = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/train"}
    done = subprocess.run(
        [sys.executable, "-c", SEEN], env={**environment(), **path}, cwd=ROOT, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    said, seen = map(int, done.stdout.split())
    assert said == pytest.approx(seen, rel=0.1) and said > 64 << 20
