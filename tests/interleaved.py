"""Streams of one model that are read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from boostr import SamplingOptions


def read_side_by_side(
    model: Any,
    wanted: Sequence[tuple[list[int], SamplingOptions]],
    taken: Sequence[int | None],
    threads: int,
) -> list[list[int]]:
    """The token ids that so many threads read of each (prompt, options); a stream is closed once
    `taken` pieces of it were read, where that is not None."""

    def run(index: int) -> list[int]:
        prompt, options = wanted[index]
        found: list[int] = []
        stream = model.stream(prompt, options=options)
        for piece in stream:
            found.append(piece.token_id)
            if len(found) == taken[index]:
                stream.close()
                break
        return found

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(len(wanted))))
