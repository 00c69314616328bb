"""The engine under load, in process: tokens a second, waiting times, and what the host does a step.

    python benchmarks/engine_load.py [--backend numpy] [--models 135M,1B] [--weights q8_0]
        [--tests rows,batch,ragged,prefix,choices,poisson] [--rows 1,4,8,16,32] [--peer]

rows:    decode steps of so many rows at a depth of --depth tokens, and what the host needs for one
         through the scheduler.
batch:   --requests prompts of 32 to 512 tokens at once, 128 new each; a second time it captures
         nothing. With --peer transformers' `generate_batch` does the same beside it.
ragged:  16 rows of random lengths that join and leave, against 16 equal ones, in new tokens/s;
         and what a device that steps 16 rows in one time could reach, as rows run dry at the end.
prefix:  time to the first token of a prompt of which all but the end is known, against a cold one.
choices: several continuations of a prompt, against one and against as many prompts of its length.
poisson: requests of 1024 tokens, 256 new, at 0.7 of the rate that all at once reach: percentiles of
         the time to the first token and between tokens.

Weights are random, of the model's shapes; `--weights` as in model_shapes.
"""

from __future__ import annotations

import argparse
import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from model_shapes import MODELS, prompts

from boostr.engine.engine import Engine
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.launches import Reading
from boostr.engine.options import SamplingOptions
from boostr.engine.runner import Runner
from boostr.engine.scoring import Scored
from boostr.engine.sequence import Sequence as Generation

NEW = 128


def runner_of(backend: str, model: str, form: str) -> Runner:
    """A model of random weights; each backend has its own way to fill them fast."""
    if backend == "cupy":
        from cuda_models import random_runner
    elif backend == "wgpu":
        from wgpu_models import random_runner
    else:
        from cpu_quant import random_runner
    return random_runner(MODELS[model], form)


def sequences(lengths: Sequence[int], new: Sequence[int], vocab: int) -> list[Generation]:
    rng = np.random.default_rng(len(lengths))
    return [
        Generation.start(
            i, rng.integers(0, vocab, n).tolist(), SamplingOptions(max_tokens=k), k, frozenset(),
            None,
        )
        for i, (n, k) in enumerate(zip(lengths, new, strict=True))
    ]  # fmt: skip


def run(engine: Engine, wanted: Sequence[Generation]) -> tuple[float, int]:
    """(seconds, new tokens) of these together."""
    start = time.perf_counter()
    count = sum(1 for _ in engine.pieces(wanted))
    return time.perf_counter() - start, count


def full_rows(lengths: Sequence[int], rows: int) -> float:
    """The share of steps x rows that have a sequence, when each row takes the next one in turn."""
    ends = [0] * rows
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return sum(lengths) / rows / max(ends)


class Watched(Engine):
    """An engine that knows how long it has waited for the device, and in how many rounds."""

    waited, rounds = 0.0, 0

    def _deliver(self, reading: Reading | Scored) -> None:
        if isinstance(reading, Reading):
            self.rounds += 1
            reading = reading._replace(reads=[self._timed(read) for read in reading.reads])
        super()._deliver(reading)

    def _timed(self, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def timed() -> np.ndarray:
            start = time.perf_counter()
            found = read()
            self.waited += time.perf_counter() - start
            return found

        return timed


class Load:
    """One model under every test."""

    def __init__(self, name: str, runner: Runner, options: argparse.Namespace) -> None:
        self.name, self.runner, self.options = name, runner, options
        self.vocab = runner.module.config.vocab_size
        self.engine = Engine(runner)

    def rows(self) -> Iterator[str]:
        one = 0.0
        for count in map(int, self.options.rows.split(",")):
            depth, steps = self.options.depth, self.options.steps
            fixed = FixedRows(
                self.runner, count, depth + steps * 4 + 16, self.runner.backend.run_ahead
            )
            fixed.begin([1] * count, [depth] * count)
            best = min(self._timed(fixed, steps) for _ in range(3))
            one = one or best
            rate = count / best
            yield (
                f"{count} rows at {depth}: {best * 1e3:.2f} ms a step, {rate:.0f} tok/s, "
                f"{count * one / best:.2f}x one row{self._host(count)}"
            )
            del fixed
            self.runner.backend.release_memory()

    @staticmethod
    def _timed(fixed: FixedRows, steps: int) -> float:
        fixed.step()
        start = time.perf_counter()
        for _ in range(steps):
            fixed.step()
        return (time.perf_counter() - start) / steps

    def _host(self, count: int) -> str:
        """What planning, launching and delivering a step of so many rows takes, on a GPU."""
        if self.runner.backend.name == "numpy":
            return ""
        engine = Watched(self.runner)
        for _ in range(2):  # the second time everything is recorded
            engine.waited, engine.rounds = 0.0, 0
            seconds, _ = run(engine, sequences([4] * count, [64] * count, self.vocab))
        micro = (seconds - engine.waited) / engine.rounds * 1e6
        return f"; host {micro:.0f} us a step"

    def batch(self) -> Iterator[str]:
        lengths = np.random.default_rng(0).integers(32, 513, self.options.requests).tolist()
        rates = []
        for _ in range(3):
            captures = self.engine.steps.captures
            wanted = sequences(lengths, [NEW] * len(lengths), self.vocab)
            seconds, count = run(self.engine, wanted)
            rates.append(count / seconds)
            captures = self.engine.steps.captures - captures
        line = f"{len(lengths)} prompts of 32-512, {NEW} new: {max(rates):.0f} new tok/s"
        yield f"{line}, first time {rates[0]:.0f}; captures the third time: {captures}"
        if self.options.peer:
            yield f"transformers generate_batch: {peer_rate(self.name, lengths):.0f} new tok/s"

    def ragged(self) -> Iterator[str]:
        rng, count = np.random.default_rng(3), 4 * self.options.requests
        lengths = [64] * count
        new = rng.integers(16, 2 * NEW - 16, count).tolist()
        equal = [int(np.mean(new))] * 16
        backend = self.runner.backend
        known, backend.sequence_rows = backend.sequence_rows, 16
        engine, rates = Engine(self.runner), {"equal": 0.0, "one caller": 0.0, "16 threads": 0.0}
        for _ in range(3):  # at first much is recorded
            for how in rates:
                wanted = sequences(lengths, new, self.vocab)
                if how == "equal":
                    wanted = sequences([64] * 16, equal, self.vocab)
                timed = self._in_sixteens if how == "16 threads" else run
                seconds, found = timed(engine, wanted)
                rates[how] = max(rates[how], found / seconds)
        backend.sequence_rows = known
        even = rates.pop("equal")
        shares = ", ".join(
            f"{how} {rate:.0f} tok/s ({rate / even:.2f})" for how, rate in rates.items()
        )
        yield (
            f"16 rows that join and leave, of {even:.0f} tok/s of equal ones: {shares}; "
            f"bound {full_rows(new, 16):.2f}"
        )

    @staticmethod
    def _in_sixteens(engine: Engine, wanted: Sequence[Generation]) -> tuple[float, int]:
        """Sixteen threads that ask for one after another until all are done."""
        queue, counts, lock = list(wanted), [0], threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    if not queue:
                        return
                    own = queue.pop()
                count = sum(1 for _ in engine.pieces([own], whole=True))
                with lock:
                    counts[0] += count

        threads = [threading.Thread(target=client) for _ in range(16)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start, counts[0]

    def prefix(self) -> Iterator[str]:
        whole, known = (4096, 4000) if self.runner.backend.name != "numpy" else (512, 448)
        shared = prompts(1, known, self.vocab)[0]
        cold, warm = [], []
        for i in range(5):
            fresh = np.random.default_rng(i + 9).integers(0, self.vocab, whole).tolist()
            cold.append(self._first(fresh))
            self._first([*shared, *fresh[: whole - known]])
            warm.append(self._first([*shared, *fresh[known - whole :]]))
        cold_time, warm_time = min(cold[1:]), min(warm[1:])
        yield (
            f"{known} of {whole} tokens known: first token {warm_time * 1e3:.1f} ms, cold "
            f"{cold_time * 1e3:.1f}: {warm_time / cold_time:.2f}"
        )

    def choices(self) -> Iterator[str]:
        length, count = (4000, 16) if self.runner.backend.name != "numpy" else (250, 4)
        for new in (1, 64):
            one, same, apart = (
                min(self._drawn(length, new, *counts) for _ in range(3)) * 1e3
                for counts in ((1, 1), (1, count), (count, 1))
            )
            yield (
                f"{length} tokens, {new} new: one {one:.1f} ms, {count} choices {same:.1f}, "
                f"{count} prompts {apart:.1f}"
            )

    def _drawn(self, length: int, new: int, count: int, each: int) -> float:
        """Seconds of so many fresh prompts, each continued so often."""
        options = SamplingOptions(max_tokens=new, temperature=1.0)
        rng = np.random.default_rng()
        ids = [rng.integers(0, self.vocab, length).tolist() for _ in range(count)] * each
        wanted = [
            Generation.start(i, own, options, new, frozenset(), None) for i, own in enumerate(ids)
        ]
        return run(self.engine, wanted)[0]

    def _first(self, ids: list[int]) -> float:
        own = Generation.start(0, ids, SamplingOptions(max_tokens=1), 1, frozenset(), None)
        return run(self.engine, [own])[0]

    def poisson(self) -> Iterator[str]:
        count = min(self.options.requests, 64)
        for _ in range(2):
            seconds, _ = run(self.engine, sequences([1024] * count, [256] * count, self.vocab))
        rate = 0.7 * count / seconds
        rng = np.random.default_rng(7)
        firsts: list[float] = []
        gaps: list[float] = []
        lock = threading.Lock()

        def client(own: Generation, at: float) -> None:
            time.sleep(max(0.0, at - time.perf_counter()))
            last, times = time.perf_counter(), []
            for _ in self.engine.pieces([own]):
                now = time.perf_counter()
                times.append(now - last)
                last = now
            with lock:
                firsts.append(times[0])
                gaps.extend(times[1:])

        begin = time.perf_counter() + 0.2
        arrivals = begin + np.cumsum(rng.exponential(1 / rate, count))
        wanted = sequences([1024] * count, [256] * count, self.vocab)
        threads = [
            threading.Thread(target=client, args=pair)
            for pair in zip(wanted, arrivals.tolist(), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, gap = (np.percentile(x, (50, 99)) * 1e3 for x in (firsts, gaps))
        yield (
            f"{rate:.2f} requests/s of 1024 + 256: first token p50 {first[0]:.0f} p99 "
            f"{first[1]:.0f} ms, between tokens p50 {gap[0]:.1f} p99 {gap[1]:.1f} ms"
        )


def peer_rate(model: str, lengths: Sequence[int]) -> float:
    """New tokens a second of transformers' continuous batching, same shapes and prompts."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    settings = LlamaConfig(
        **MODELS[model], max_position_embeddings=8192, attn_implementation="paged|sdpa"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    rng = np.random.default_rng(len(lengths))
    ids = [rng.integers(0, MODELS[model]["vocab_size"], n).tolist() for n in lengths]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    made.generate_batch(inputs=ids[:2], generation_config=config)
    start = time.perf_counter()
    made.generate_batch(inputs=ids, generation_config=config)
    return len(lengths) * NEW / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("numpy", "wgpu", "cupy"), default="numpy")
    parser.add_argument("--models", default="135M")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--tests", default="rows,batch,ragged,prefix,poisson")
    parser.add_argument("--rows", default="1,4,8,16,32")
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    for name in options.models.split(","):
        load = Load(name, runner_of(options.backend, name, options.weights), options)
        for test in options.tests.split(","):
            for line in getattr(load, test)():
                print(f"{name} {options.weights} {options.backend} {test}: {line}", flush=True)


if __name__ == "__main__":
    main()
