"""Typed access to the table in a config.json that says how weights are quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from boostr.errors import ModelFileError

_MISSING: Any = object()


class Table:
    """A JSON object; `source` is what messages call it. null is absent."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def get(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """The value of a key; without a default it must be there."""
        value = self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            got = "none" if value is None else f"{value!r:.80}"
            raise ModelFileError(f"{self.source}: {key!r} must be {kind.__name__}, got {got}")
        return value

    def one_of(self, key: str, known: tuple, default: Any = _MISSING) -> Any:
        """A value that must be one of those that boostr reads."""
        value = self.values.get(key)
        value = default if value is None and default is not _MISSING else value
        if value not in known or isinstance(value, bool) != isinstance(known[0], bool):
            names = ", ".join(map(str, known))
            raise ModelFileError(f"{self.source}: {key} {value!r:.80}: boostr reads {names}")
        return value

    def refuse(self, *keys: str) -> None:
        """Raises if one of some keys says anything: what it means is not read."""
        for key in keys:
            if self.values.get(key):
                raise ModelFileError(f"{self.source}: boostr does not read weights with {key!r}")

    def table(self, key: str) -> Table:
        """A table below; empty if it is not there."""
        return Table(self.get(key, dict, {}), f"{self.source}: {key}")

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if it is not there."""
        found = self.get(key, list, [])
        if not all(isinstance(name, str) for name in found):
            raise ModelFileError(f"{self.source}: {key!r} must be names, got {found!r:.80}")
        return tuple(found)


def expression(text: str, source: str) -> re.Pattern[str]:
    """A regular expression that stands in a config."""
    try:
        return re.compile(text)
    except re.error as error:
        raise ModelFileError(f"{source}: {text!r:.80} is no expression: {error}") from None


def block_of(table: Table, key: str) -> tuple[int, int]:
    """(rows, columns) of the blocks that share a scale."""
    block = table.get(key, list)
    if len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise ModelFileError(f"{table.source}: {key!r} must be [rows, columns], got {block}")
    return block[0], block[1]
