"""Every form of weights on the CPU: a model of a real shape with random weights.

    python benchmarks/cpu_quant.py [--model 135M] [--forms q8_0,bf16] [--threads 2] [--rounds 5]
        [--tests decode,prefill] [--gguf FOLDER]

decode: 64 tokens after a prompt of 16, batch 1; its floor is the bytes that a step must read
(weights and cache) at the bandwidth that plain reads reach in the same round. prefill: 512 tokens.
All weights of a model have the form, its embedding and head too; rows of q4_k, q5_k and q6_k are
multiples of 256 (--model 1B). Forms take turns, and figures are each form's best round, as other
work on a shared machine only ever slows one down.

With LLAMA_BENCH (see peers.py) llama.cpp takes turns with us, on a file of the nearest type that
random_gguf.py writes into FOLDER (which needs the package gguf). Nothing else should run then: on
few cores threads wait for each other.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
from model_shapes import MODELS, decoder_module, prompts, step_bytes

from boostr import backends, dtypes, env
from boostr.bench.resources import read_bandwidth
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.runner import Runner
from boostr.models.weights import Weight, WeightSource, load_parameters
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

# our form: the type of llama.cpp to set beside it
FORMS = {
    "q8_0": "Q8_0", "int8": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q4_k": "Q4_K",
    "q5_k": "Q5_K", "q6_k": "Q6_K", "int4-g128": "Q4_0", "nf4": "Q4_0", "fp8": "Q8_0",
    "bf16": "F16", "f16": "F16", "f32": "F32",
}  # fmt: skip
FLOATS = {"f32": dtypes.float32, "f16": dtypes.float16, "bf16": dtypes.bfloat16}
PROMPT, NEW, PREFILL = 16, 64, 512


class RandomWeights(WeightSource):
    """A checkpoint of random numbers in one form."""

    path = "random"

    def __init__(self, module: Any, form: str) -> None:
        self._form, self._rng = form, np.random.default_rng(0)
        self._shapes = {
            name: getattr(owner, attribute).shape for name, owner, attribute in module.places()
        }

    @property
    def names(self) -> Iterator[str]:
        yield from self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def weight(self, name: str, backend: Any) -> Weight:
        shape = self._shapes[name]
        if len(shape) == 1:
            return Tensor(np.ones(shape, np.float32), backend=backend)
        if self._form in FLOATS:
            return self._filled(shape, FLOATS[self._form], backend)
        scheme = SCHEMES[self._form]
        parts = {
            part: self._filled((shape[0], spec.columns(shape[1])), spec.dtype, backend)
            for part, spec in scheme.parts.items()
        }
        return QuantizedTensor(scheme, shape, parts)

    def _filled(self, shape: tuple[int, ...], dtype: np.dtype, backend: Any) -> Tensor:
        """A row of random numbers over and over: integers of all sizes, floats about 0.01."""
        made = backend.room(shape, dtype)
        if dtype.kind in "iu":
            made[:] = self._rng.integers(0, 127, shape[1]).astype(dtype)
        else:
            made[:] = (self._rng.standard_normal(shape[1]) * 0.01).astype(dtype)
        return Tensor.wrap(made, backend)


def random_runner(config: dict[str, Any], form: str) -> Runner:
    module, backend = decoder_module(config), backends.get("numpy")
    load_parameters(module, RandomWeights(module, form), backend)
    return Runner(module, backend)


class Model:
    """A model of one form, and the best that it has done."""

    def __init__(self, config: dict[str, Any], form: str) -> None:
        self.runner = random_runner(config, form)
        self.rows = FixedRows(self.runner, 1, max(PREFILL, PROMPT + NEW + 8))
        self.bytes = step_bytes(self.runner, 1, PROMPT + NEW // 2)
        weights = self.runner.module.weights().values()
        self.bits = 8 * sum(w.nbytes for w in weights) / sum(w.size for w in weights)
        self.best: dict[str, float] = {"decode": 0.0, "prefill": 0.0}

    def measure(self, test: str) -> None:
        rate = self._prefill() if test == "prefill" else self._decode()
        self.best[test] = max(self.best[test], rate)

    def _prefill(self) -> float:
        tokens = prompts(1, PREFILL, self.runner.module.config.vocab_size)
        start = time.perf_counter()
        self.rows.prefill(tokens)
        return PREFILL / (time.perf_counter() - start)

    def _decode(self) -> float:
        vocab = self.runner.module.config.vocab_size
        self.rows.prefill(prompts(1, PROMPT, vocab))
        self.rows.begin([1], [PROMPT])
        self.rows.step()
        start = time.perf_counter()
        for _ in range(NEW):
            self.rows.step()
        return NEW / (time.perf_counter() - start)


def peer_rates(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    """llama.cpp's best rates on a file of this type; none where it is missing."""
    if arguments.gguf is None:
        return {}
    import random_gguf  # which needs the package gguf

    path = arguments.gguf / f"{arguments.model}-{kind}.gguf"
    if not path.exists():
        random_gguf.write(arguments.model, kind, path)
    lengths = {"prompt": ("prefill", PREFILL), "generate": ("decode", NEW)}
    wanted = {key: n if test in arguments.tests else 0 for key, (test, n) in lengths.items()}
    try:
        rates = peers.llama_bench(path, threads=arguments.threads, repetitions=1, **wanted)
    except peers.PeerMissingError as missing:
        print(f"skipped {kind}: {missing}")
        return {}
    return {"prefill" if rate.test.startswith("pp") else "decode": rate.best for rate in rates}


def print_table(
    models: dict[str, Model], read: float, tests: list[str], theirs: dict[str, dict[str, float]]
) -> None:
    print(f"read bandwidth {read / 1e9:.1f} GB/s; tokens/s, best round")
    print("| form | bits a weight | decode | of the floor | llama.cpp | ratio | prefill 512 "
          "| llama.cpp | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for form, model in models.items():
        peer = theirs.get(FORMS[form], {})
        cells = [form, f"{model.bits:.2f}"]
        for test in ("decode", "prefill"):
            ours, other = model.best[test], peer.get(test)
            cells.append(f"{ours:.0f}" if test in tests else "")
            if test == "decode":
                cells.append(f"{ours * model.bytes / read:.0%}" if test in tests else "")
            cells += [f"{other:.0f}", f"{ours / other:.2f}×"] if other else ["", ""]
        print("| " + " | ".join(cells) + " |")


def _fits(config: dict[str, Any], form: str) -> bool:
    """Whether rows of all weights are as long as the form wants them."""
    multiple = 1 if form in FLOATS else SCHEMES[form].multiple
    fits = not (config["hidden_size"] % multiple or config["intermediate_size"] % multiple)
    if not fits:
        print(f"skipped {form}: rows must be multiples of {multiple}")
    return fits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="135M")
    parser.add_argument("--forms", default=",".join(list(FORMS)[:-2]))
    parser.add_argument("--tests", default="decode,prefill")
    parser.add_argument("--threads", type=int, default=env.num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gguf", type=Path, help="a folder for llama.cpp's files")
    arguments = parser.parse_args()
    config, tests = MODELS[arguments.model], arguments.tests.split(",")
    forms = [form for form in arguments.forms.split(",") if _fits(config, form)]
    os.environ[env.NUM_THREADS.name] = str(arguments.threads)
    theirs: dict[str, dict[str, float]] = {FORMS[form]: {} for form in forms}
    models = {form: Model(config, form) for form in forms}
    read = 0.0
    for _ in range(arguments.rounds + 1):  # the first compiles
        for kind in [*theirs]:
            rates = peer_rates(kind, arguments)
            if not rates:
                del theirs[kind]
            for test, rate in rates.items():
                theirs[kind][test] = max(theirs[kind].get(test, 0.0), rate)
        read = max(read, read_bandwidth(arguments.threads))
        for model in models.values():
            for test in tests:
                model.measure(test)
    print_table(models, read, tests, theirs)


if __name__ == "__main__":
    main()
