"""Measuring a decoder the way llama-bench does: prompts of p tokens, then n tokens one at a time.

Tokens are synthetic and always the same. One warm-up run, then `repetitions` timed ones; rates are
tokens per second, mean and standard deviation. `EXCLUDED` says what is not in the times.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from boostr import __version__, env, ops
from boostr.bench.resources import PeakMemory, read_bandwidth
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.model import LanguageModel
from boostr.errors import OptionError
from boostr.operands import LowRank, Ordered
from boostr.quant.scheme import QuantizedTensor

EXCLUDED = (
    "loading, compiling kernels, tokenization, text, any sampling but argmax, and the capture of "
    "the decode step as a program (capture_seconds, once for each generation)"
)
_OVERHEAD_STEPS = 32


@dataclass(frozen=True)
class Workload:
    """What to measure: every combination. 0 in `prompt` or `generate` leaves that kind out."""

    prompt: tuple[int, ...] = (512,)
    generate: tuple[int, ...] = (128,)
    depth: tuple[int, ...] = (0,)
    batch: tuple[int, ...] = (1,)
    repetitions: int = 5

    def cases(self) -> Iterator[tuple[int, int, int, int]]:
        """(prompt, generate, depth, batch); one of the first two is 0."""
        for depth, batch in itertools.product(self.depth, self.batch):
            yield from ((p, 0, depth, batch) for p in self.prompt if p)
            yield from ((0, n, depth, batch) for n in self.generate if n)


@dataclass(frozen=True)
class StepCost:
    """Where the time of a decode step goes, in seconds.

    Attributes:
        outside: spent outside of native kernel calls: Python, and numpy where there is no kernel.
        kernel_calls, numpy_calls: recorded in the program.
    """

    seconds: float
    outside: float
    kernel_calls: int
    numpy_calls: int


@dataclass(frozen=True)
class Row:
    """One case: `rates` in tokens per second of each repetition.

    Attributes:
        first_token_seconds: mean, of a prompt case: until the first token is chosen.
        capture_seconds, step: of a decode case.
    """

    n_prompt: int
    n_gen: int
    n_depth: int
    n_batch: int
    rates: tuple[float, ...]
    first_token_seconds: float | None = None
    capture_seconds: float | None = None
    step: StepCost | None = None

    @property
    def test(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096"; with the batch if it is not 1."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        batch = f" x{self.n_batch}" if self.n_batch > 1 else ""
        return f"{name}{batch}{f' @ d{self.n_depth}' if self.n_depth else ''}"

    @property
    def mean(self) -> float:
        return statistics.mean(self.rates)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


@dataclass(frozen=True)
class Report:
    """All rows, and what they were measured on. Sizes in bytes.

    Attributes:
        weights: the stored form of most weights ("q4_1", "bfloat16", "int8").
        step_weight_bytes: weights that a decode step reads: all but an embedding with its own head.
        peak_bytes: resident memory above the start, with loading (on a GPU: its memory taken); None
            if the system does not say.
        compiled_kernels: in this run; if not 0, the compiler is in peak_bytes.
        kv_dtype: of keys and values in the cache.   kv_token_bytes: of both, of a token.
        read_bandwidth: bytes/s, read by the CPU or copied by the GPU; None where not measured.
    """

    model: str
    architecture: str
    weights: str
    parameters: int
    weight_bytes: int
    step_weight_bytes: int
    kv_dtype: str
    kv_token_bytes: int
    backend: str
    threads: int
    load_seconds: float
    peak_bytes: int | None
    compiled_kernels: int
    read_bandwidth: float | None
    versions: dict[str, str]
    rows: list[Row]

    def weight_bandwidth(self, row: Row) -> float | None:
        """Bytes of weights per second that a decode case read."""
        return row.mean / row.n_batch * self.step_weight_bytes if row.n_gen else None


def bench(
    load: Callable[[], LanguageModel],
    workload: Workload,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Load a model and measure it. `on_row` gets each row when it is done.

    Raises:
        OptionError: a case that the model's context does not hold.
    """
    memory, start = PeakMemory(), time.perf_counter()
    model = load()
    load_seconds = time.perf_counter() - start
    _check_context(model, workload)
    rows = []
    for prompt, generate, depth, batch in workload.cases():
        case = _Case(model, depth, batch, max(prompt, generate + 1))
        measure = case.prompt if prompt else case.decode
        rows.append(measure(prompt or generate, workload.repetitions))
        if on_row is not None:
            on_row(rows[-1])
    form = model.runner.kv_form
    backend, threads = model.backend, env.num_threads()
    on_device = backend.used_memory()
    peak = memory.above_start() if on_device is None else on_device
    return Report(
        model=model.source,
        architecture=model.config.model_type,
        weights=_stored_form(model),
        parameters=model.parameter_count,
        weight_bytes=model.weight_bytes,
        step_weight_bytes=_step_weight_bytes(model),
        kv_dtype=form.name if form else str(model.module.activation_dtype),
        kv_token_bytes=model.runner.kv_token_bytes,
        backend=backend.device,
        threads=threads,
        load_seconds=load_seconds,
        peak_bytes=peak,
        compiled_kernels=backend.compiled_kernels,
        read_bandwidth=backend.memory_bandwidth() or read_bandwidth(threads),
        versions=versions(),
        rows=rows,
    )


class _Case:
    """A batch of sequences that have `depth` tokens in the cache, and room for `length` more."""

    def __init__(self, model: LanguageModel, depth: int, batch: int, length: int) -> None:
        self._runner, self._depth, self._batch = model.runner, depth, batch
        self._vocab = model.config.vocab_size
        tokens = np.random.default_rng(0).integers(0, self._vocab, (batch, depth + length))
        self._tokens: list[list[int]] = tokens.tolist()
        self._rows = FixedRows(self._runner, batch, depth + length)
        self._filled = False

    def prompt(self, count: int, repetitions: int) -> Row:
        """Rates of `count` tokens of prompt behind the depth."""
        prompts = [tokens[: self._depth + count] for tokens in self._tokens]
        rates, firsts = [], []
        for run in range(repetitions + 1):
            self._to_depth()
            start = time.perf_counter()
            logits = self._rows.prefill(prompts, [self._depth] * self._batch)
            self._runner.backend.synchronize()
            end = time.perf_counter()
            ops.greedy(logits).numpy()
            if run:  # the first is the warm-up
                rates.append(count * self._batch / (end - start))
                firsts.append(time.perf_counter() - start)
        return Row(
            count, 0, self._depth, self._batch, tuple(rates),
            first_token_seconds=statistics.mean(firsts),
        )  # fmt: skip

    def decode(self, count: int, repetitions: int) -> Row:
        """Rates of `count` decode steps behind the depth."""
        _, capture = self._steps(min(count, 8))
        runs = [self._steps(count) for _ in range(repetitions)]
        rates = tuple(count * self._batch / seconds for seconds, _ in runs)
        return Row(
            0, count, self._depth, self._batch, rates,
            capture_seconds=capture,
            step=self._step_cost(min(count, _OVERHEAD_STEPS)),
        )  # fmt: skip

    def _steps(self, count: int) -> tuple[float, float]:
        """Seconds of `count` steps, and of the step before them that is captured."""
        self._begin(self._runner.backend.run_ahead)
        rows, start = self._rows, time.perf_counter()
        rows.step()
        captured = time.perf_counter()
        for _ in range(count):
            rows.step()
        return time.perf_counter() - captured, captured - start

    def _step_cost(self, count: int) -> StepCost | None:
        timed = self._runner.backend.timed_kernels()
        if timed is None:
            return None
        self._begin(0)
        rows = self._rows
        rows.step()
        with timed as clock:
            start = time.perf_counter()
            for _ in range(count):
                rows.step()
            seconds = (time.perf_counter() - start) / count
        calls = rows.program.calls()
        in_numpy = sum(call.startswith("numpy ") for call in calls)
        return StepCost(seconds, seconds - clock.seconds / count, len(calls) - in_numpy, in_numpy)

    def _begin(self, run_ahead: int) -> None:
        self._to_depth()
        self._rows.run_ahead = run_ahead
        ids = [tokens[self._depth] for tokens in self._tokens]
        self._rows.begin(ids, [self._depth] * self._batch)

    def _to_depth(self) -> None:
        """The first `depth` tokens are kept; a run may write the positions behind them again."""
        if self._depth and not self._filled:
            self._rows.prefill([tokens[: self._depth] for tokens in self._tokens])
            self._filled = True


def _check_context(model: LanguageModel, workload: Workload) -> None:
    context = model.config.max_position_embeddings
    for prompt, generate, depth, _ in workload.cases():
        need = depth + max(prompt, generate + 1)
        if need > context:
            raise OptionError(
                f"bench: {f'pp{prompt}' if prompt else f'tg{generate}'} at depth {depth} needs "
                f"{need} positions, the model's context holds {context}"
            )


def _step_weight_bytes(model: LanguageModel) -> int:
    weights = model.module.weights()
    untied = "lm_head.weight" in weights  # then only rows of the embedding are read
    skipped = weights["model.embed_tokens.weight"].nbytes if untied else 0
    return model.weight_bytes - skipped


def _stored_form(model: LanguageModel) -> str:
    totals: dict[str, int] = {}
    for weight in model.module.weights().values():
        stored = weight.base if isinstance(weight, LowRank) else weight
        stored = stored.base if isinstance(stored, Ordered) else stored
        form = stored.scheme.name if isinstance(stored, QuantizedTensor) else str(stored.dtype)
        totals[form] = totals.get(form, 0) + weight.nbytes
    return max(totals, key=totals.__getitem__)


def versions(packages: Sequence[str] = ("numpy", "numba", "llvmlite")) -> dict[str, str]:
    """Installed versions of boostr and of some packages; those that are missing are left out."""
    found = {"boostr": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
