"""Every decoder family at one size: what a step of decoding costs, and in how many launches.

    python benchmarks/families.py [--backend numpy] [--families llama,gemma3_text] [--layers 16]
        [--hidden 2048] [--steps 256] [--rounds 3] [--why]

All have the width, the layers, the heads and the vocabulary of Llama 3.2 1B, bf16 weights of random
numbers, and whatever else their own defaults say. GB/s: the matrices that a step reads (and the
cache, of about 50 tokens); the last column is that beside Llama's in the same run, families taking
turns in each round. Launches are those of a decode step for each layer beyond the eighth, kernels
or (on numpy) calls. `--why` prints what fell apart into its parts, and the reason. A GPU needs its
256 steps: at first its clocks are low.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from model_shapes import prompts, step_bytes

from boostr import backends, dtypes
from boostr.backends.base import Backend
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.runner import Runner
from boostr.models import FAMILIES, family
from boostr.models.config import RawConfig
from boostr.models.weights import WeightSource, load_parameters
from boostr.tensor import Tensor

PROMPT, HEAD_DIM, VOCAB = 16, 64, 32768
# what a family must have otherwise
OWN: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "granitemoehybrid": {"num_local_experts": 0, "shared_intermediate_size": 8192},
}


class RandomWeights(WeightSource):
    """A checkpoint of random bf16 numbers, rows of length 1, about; vectors are ones."""

    path = "random"

    def __init__(self, module: Any) -> None:
        self._places = {n: getattr(owner, at) for n, owner, at in module.places()}
        self._block = np.random.default_rng(0).standard_normal(1 << 20, np.float32)

    @property
    def names(self) -> Iterator[str]:
        yield from self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def weight(self, name: str, backend: Backend) -> Tensor:
        place = self._places[name]
        if place.role == "vector":
            return Tensor(np.ones(place.shape, np.float32), backend=backend)
        block = (self._block * place.shape[-1] ** -0.5).astype(dtypes.bfloat16)
        return Tensor(np.resize(block, place.shape), backend=backend)


def config_of(model_type: str, hidden: int, layers: int) -> RawConfig:
    """One size for all; heads are of 64, a head of keys for four."""
    heads = hidden // HEAD_DIM
    said = {
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": hidden, "n_embd": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "n_layer": layers,
        "num_attention_heads": heads, "n_head": heads, "num_key_value_heads": max(heads // 4, 1),
        "head_dim": HEAD_DIM, "max_position_embeddings": 4096, "n_positions": 4096,
        "layer_types": None, "tie_word_embeddings": True,
    }  # fmt: skip
    if model_type == "granitemoehybrid":
        said["layer_types"] = ["attention"] * layers
    if model_type == "gpt_neo":
        kinds = [[["global", "local"], layers // 2]]
        said |= {"num_layers": layers, "num_heads": heads, "attention_types": kinds}
    return RawConfig(said | OWN.get(model_type, {}), model_type)


class Step:
    """A family whose decode steps can be taken."""

    def __init__(self, model_type: str, backend: Backend, hidden: int, layers: int) -> None:
        made = family(model_type, "families.py")
        module: Any = made(made.read_config(config_of(model_type, hidden, layers)))  # type: ignore
        load_parameters(module, RandomWeights(module), backend)
        self.runner, self.best = Runner(module, backend), float("inf")
        self.loop: Any = None

    def start(self, steps: int) -> FixedRows:
        """Room for so many steps, the first of which has been taken."""
        ahead = self.runner.backend.run_ahead
        rows = FixedRows(self.runner, 1, PROMPT + steps + 8, ahead)
        rows.prefill(prompts(1, PROMPT, VOCAB))
        rows.begin([1], [PROMPT])
        rows.step()
        return rows

    def measure(self, steps: int) -> None:
        """Take steps; the best rate counts."""
        self.loop = self.start(steps)
        begin = time.perf_counter()
        for _ in range(steps):
            self.loop.step()
        self.best = min(self.best, (time.perf_counter() - begin) / steps)


def launches(model_type: str, backend: Backend) -> float:
    """Of a layer, in a narrow model of the same form."""
    counts = [len(Step(model_type, backend, 256, n).start(2).program.calls()) for n in (8, 16)]
    return (counts[1] - counts[0]) / 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    decoders = sorted(n for n in FAMILIES if "generate" in family(n, "").capabilities)
    parser.add_argument("--backend", default=None)
    parser.add_argument("--families", default=",".join(decoders))
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--steps", type=int, help="32 on numpy, else 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--why", action="store_true")
    arguments = parser.parse_args()
    backend = backends.get(arguments.backend)
    steps = arguments.steps or (32 if backend.name == "numpy" else 256)
    print(f"{backend.name}: E {arguments.hidden}, {arguments.layers} layers, bf16, batch 1")
    print("| family | launches a layer | tokens/s | GB/s | beside Llama |")
    print("|---|---|---|---|---|")
    llama = Step("llama", backend, arguments.hidden, arguments.layers)
    for name in arguments.families.split(","):
        step = Step(name, backend, arguments.hidden, arguments.layers)
        for _ in range(arguments.rounds):
            llama.measure(steps)
            step.measure(steps)
        length = PROMPT + steps
        rates = [step_bytes(s.runner, 1, length) / s.best / 1e9 for s in (step, llama)]
        print(
            f"| {name} | {launches(name, backend):.1f} | {1 / step.best:.0f} | {rates[0]:.0f} | "
            f"{rates[0] / rates[1]:.0%} |",
            flush=True,
        )
        for line in step.loop.describe() if arguments.why else ():
            print(f"  {line}")


if __name__ == "__main__":
    main()
