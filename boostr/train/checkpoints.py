"""Checkpoints: states of a run, step by step, in folders of which each is whole or not there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boostr.errors import OptionError
from boostr.io.disk import room_for
from boostr.io.scratch import alone_in
from boostr.train.optimizers import Optimizer
from boostr.train.state import load_state, save_state

if TYPE_CHECKING:
    from boostr.engine.trainable import Trainable

_NAME = re.compile(r"step-(\d+)")


@contextlib.contextmanager
def own_folder(out: Path, resume: bool, optimizer: Optimizer, keep: int) -> Iterator[None]:
    """While the folder of a run, which is made if need be, is one process's alone, and has room for
    a checkpoint, those that are kept, and what is trained.

    Raises:
        OptionError: it is another's, or a file; or there is a run in it, without `resume`.
        DiskFullError: there is no room, at first or on the way.
    """
    if not resume and (out / "config.toml").exists():
        raise OptionError(f"{out}: there is a run in this folder; resume it, or take another")
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out}: the folder of a run is to be there, and a file is")
    out.mkdir(parents=True, exist_ok=True)
    trained = sum(p.nbytes for p in optimizer.params)
    states = (t for own in optimizer.tensors().values() for t in own if t is not None)
    count = 1 if resume else 1 + keep  # what a run has kept is there already
    needed = count * (trained + sum(t.nbytes for t in states)) + trained
    with alone_in(out), room_for(out / "checkpoints", needed):
        yield


class Checkpoints:
    """Those of a run.

    Args:
        folder: where they lie, `step-000200` each.   keep: how many of the last stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep

    def save(self, step: int, model: Trainable, optimizer: Optimizer, **values: Any) -> Path:
        """Write one, which a process that is killed leaves whole or not at all; then remove those
        that are too old."""
        path = self._folder / f"step-{step:06d}"
        save_state(path, model, optimizer, **values, step=step)
        for _, old in self._all()[: -self._keep]:
            shutil.rmtree(old)
        return path

    def load(self, model: Trainable, optimizer: Optimizer) -> dict[str, Any] | None:
        """Put back the last one; its values, `step` among them. None if there is none."""
        found = self._all()
        return load_state(found[-1][1], model, optimizer) if found else None

    def _all(self) -> list[tuple[int, Path]]:
        """(step, folder), in order; scratch of runs that were killed is hidden, and none."""
        named = ((_NAME.fullmatch(path.name), path) for path in self._folder.glob("step-*"))
        return sorted((int(name[1]), path) for name, path in named if name is not None)
