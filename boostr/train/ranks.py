"""run_ranks: a function on several devices at once, a thread for each."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from boostr import backends
from boostr.backends.collectives import Communicator
from boostr.errors import OptionError

T = TypeVar("T")


def run_ranks(
    fn: Callable[[Communicator], T], devices: str | Sequence[int], backend: str | None = None
) -> T:
    """Call `fn(rank)` for each device, all at the same time; what rank 0 returns, which the calling
    thread is.

    Each loads a model on `rank.backend`, which a thread must not touch of another rank, and gives
    `rank` to `compile_step` or `Trainer`. A rank that fails ends the others, and its error is
    raised here; so does Ctrl-C. Models and steps are to end with `fn`.

    Args:
        devices: numbers of GPUs, such as "0,1" or [0, 1]; with numpy ranks share the CPU.
        backend: "cupy" or "numpy"; default as BOOSTR_BACKEND says.
    Raises:
        OptionError, BackendError: see `backends.open_ranks`.
    """
    numbers = device_numbers(devices) if isinstance(devices, str) else list(devices)
    ranks = backends.open_ranks(backend, numbers)
    results: dict[int, T] = {}

    def work(rank: Communicator) -> None:
        try:
            rank.begin()
            results[rank.rank] = fn(rank)
            rank.end()
        except BaseException as error:  # also Ctrl-C: nobody may wait for this rank
            rank.group.fail(rank.rank, error)
        finally:
            rank.close()

    others = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(work, rank), daemon=True,
            name=f"boostr-rank-{rank.rank}",
        )
        for rank in ranks[1:]
    ]  # fmt: skip
    for thread in others:
        thread.start()
    work(ranks[0])
    for thread in others:
        thread.join()
    if ranks[0].group.failure is not None:
        number, error = ranks[0].group.failure
        error.add_note(f"in rank {number} of {len(ranks)}, on {ranks[number].backend.device}")
        raise error
    return results[0]


def device_numbers(text: str) -> list[int]:
    """ "0,1" is [0, 1]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"devices must be numbers with commas between, got {text!r}") from None
