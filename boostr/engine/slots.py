"""Slots: the rows of state on the device that decode steps work on, one for each sequence.

The host changes rows only between programs: it notes what is to be written, and `flush` uploads
what the next pass reads at once and writes it in a launch for each tensor. What a step changes
(ids, positions, lengths, ends) the device changes itself, see `ops.advance_rows`; the host may be
some steps late and never needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from boostr import dtypes
from boostr.backends.base import Backend
from boostr.engine.options import SamplingOptions
from boostr.ops import core
from boostr.ops import rows as fields
from boostr.ops.sampling import seed_words
from boostr.tensor import Tensor, full, zeros

_FLOATS = ("temperature", "top_p", "min_p")
# behind the fields of `ops.advance_rows`, int32 like these: bits of floats, then of two words a row
_TEMPERATURE = fields.FIELDS
_TOP_K = _TEMPERATURE + len(_FLOATS)
_SEEDS = _TOP_K + 1
_ALL = _SEEDS + 2


class Slots:
    """`rows` rows, all empty.

    Args:
        columns: of the block table of each group, for sequences as long as the context.
    Attributes:
        state: int32 [FIELDS, rows], see `ops.advance_rows`.
    """

    def __init__(self, backend: Backend, rows: int, columns: int, groups: int) -> None:
        self.backend, self.rows, self.columns = backend, rows, columns
        empty = np.zeros((_ALL, rows), np.int32)
        empty[[fields.OWNERS, *range(fields.ENDS, fields.FIELDS)]] = -1
        self._memory = Tensor(empty, backend=backend)
        self._flat = self._memory.reshape(-1)
        self._changes: dict[int, int] = {}  # of its elements
        self.state = self._memory[: fields.FIELDS]
        self._mirror = [np.full((rows, columns), -1, np.int32) for _ in range(groups)]
        # by width and group, and the rows of each that are not what the mirror says
        self._tables: dict[int, dict[int, tuple[Tensor, set[int]]]] = {}

    def field(self, number: int, count: int) -> Tensor:
        """A field of the first rows, int32 [count]: a view."""
        return self.state[number, :count]

    def sampling(self) -> dict[str, Tensor]:
        """What `ops.sample` takes, of all rows: views."""
        memory = self._memory
        floats = self._seen_as(memory[_TEMPERATURE:_TOP_K], dtypes.float32)
        found = {name: floats[i] for i, name in enumerate(_FLOATS)}
        seeds = self._seen_as(memory[_SEEDS:].reshape(self.rows, 2), dtypes.uint32)
        return found | {"top_k": memory[_TOP_K], "seeds": seeds, "counters": memory[fields.DRAWS]}

    def _seen_as(self, part: Tensor, dtype: np.dtype) -> Tensor:
        return Tensor.wrap(self.backend.bitcast(part.data, dtype), self.backend)

    def table(self, group: int, width: int) -> Tensor:
        """The first `width` columns of a group's block table, int32 [rows, width]."""
        known = self._tables.setdefault(width, {})
        if group not in known:
            made = Tensor(self._mirror[group][:, :width].copy(), backend=self.backend)
            known[group] = made, set()
        return known[group][0]

    # -- what the host writes --------------------------------------------------------------------
    def place(self, row: int, group: int, column: int, block: int) -> None:
        """Give a row a block; -1 takes it away."""
        self._mirror[group][row, column] = block
        self._placed(row)

    def admit(self, row: int, options: SamplingOptions, seed: int) -> None:
        """Note how the row draws."""
        floats = np.array([getattr(options, name) for name in _FLOATS], np.float32)
        bits = floats.view(np.int32).tolist()
        self._write(row, dict(enumerate(bits, _TEMPERATURE)) | {_TOP_K: options.top_k})
        place = _SEEDS * self.rows + row * 2
        words = seed_words([seed])[0].view(np.int32).tolist()
        self._changes |= {place: words[0], place + 1: words[1]}

    def activate(
        self, row: int, length: int, drawn: int, limit: int, end_ids: Sequence[int]
    ) -> None:
        """From now on the row takes part: `length` tokens are computed, the next is chosen.

        drawn: tokens chosen so far.   limit: the position of the last token that it may have.
        """
        ends = [*end_ids][: fields.END_IDS]
        ends += [-1] * (fields.END_IDS - len(ends))
        values = {
            fields.IDS: 0, fields.POSITIONS: length - 1, fields.LENGTHS: length,
            fields.OWNERS: row, fields.DRAWS: drawn, fields.LIMITS: limit,
        }  # fmt: skip
        values |= {fields.ENDS + i: token for i, token in enumerate(ends)}
        self._write(row, values)

    def give(self, row: int, field: int, value: int) -> None:
        """Write one field of a row."""
        self._write(row, {field: value})

    def move(self, source: int, target: int) -> None:
        """The sequence in row `source` goes on in row `target`, wherever it stands by now."""
        self.flush()
        state, backend = self.state, self.backend
        column = state[:, source]
        owner = column[fields.OWNERS : fields.OWNERS + 1]
        owner = core.where(owner >= 0, target, owner)
        new = core.concat([column[: fields.OWNERS], owner, column[fields.OWNERS + 1 :]])
        places = np.arange(fields.FIELDS, dtype=np.int32) * self.rows + target
        at = Tensor(places, backend=backend)
        backend.put_rows(state.reshape(-1).data, at.data, new.data)
        for mirror in self._mirror:
            mirror[target] = mirror[source]
        self._placed(target)
        self.clear(source)

    def clear(self, row: int) -> None:
        """The row stops: it writes nothing and sees nothing."""
        self._write(row, {fields.OWNERS: -1, fields.LENGTHS: 0})
        for mirror in self._mirror:
            mirror[row] = -1
        self._placed(row)

    def _placed(self, row: int) -> None:
        for known in self._tables.values():
            for _, rows in known.values():
                rows.add(row)

    def _write(self, row: int, values: dict[int, int]) -> None:
        for field, value in values.items():
            self._changes[field * self.rows + row] = value

    def flush(self, width: int | None = None) -> None:
        """Write what was noted, of tables those of this width that there are; launched behind the
        programs that were started before."""
        targets, parts, changes, backend = [], [], self._changes, self.backend
        if changes:
            targets.append(self._flat)
            parts += (np.fromiter(part, np.int32) for part in (changes, changes.values()))
        for group, (table, dirty) in self._tables.get(width or 0, {}).items():
            if dirty:
                rows = np.fromiter(dirty, np.int32)
                targets.append(table)
                parts += rows, self._mirror[group][rows, :width]
                dirty.clear()
        if not parts:
            return
        packed = Tensor(np.concatenate([part.ravel() for part in parts]), backend=backend)
        spans = pairwise(accumulate((part.size for part in parts), initial=0))
        pieces = [backend.slice(packed.data, (slice(*span, 1),)) for span in spans]
        for target, at, new, values in zip(
            targets, pieces[::2], pieces[1::2], parts[1::2], strict=True
        ):
            backend.put_rows(target.data, at, backend.reshape(new, values.shape))
        changes.clear()


class Penalties:
    """What `ops.penalize` and `ops.add_bias` take, of `rows` rows with up to `biases` biases:
    neutral until a row is admitted."""

    _OF_TOKENS = ("seen", "counts", "repetition", "presence", "frequency")
    _PARTS = (*_OF_TOKENS, "bias_ids", "bias")

    def __init__(self, backend: Backend, rows: int, vocab_size: int, biases: int) -> None:
        wide, few = (rows, vocab_size), (rows, biases)
        self.rows, self.biases = rows, biases
        self.seen, self.counts = zeros(wide, dtypes.uint8, backend), zeros(wide, "int32", backend)
        self.repetition = full((rows,), 1.0, dtypes.float32, backend)
        self.presence, self.frequency = (zeros((rows,), "float32", backend) for _ in range(2))
        self.bias_ids = full(few, -1, dtypes.int32, backend)
        self.bias = zeros(few, dtypes.float32, backend)
        self._dirty: set[int] = set()

    def of_tokens(self) -> list[Tensor]:
        """In the order of `ops.penalize`."""
        return [getattr(self, name) for name in self._OF_TOKENS]

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._PARTS]

    def first(self, rows: int) -> Penalties:
        """Those of the first rows, as views."""
        return self._made(rows, [tensor[:rows] for tensor in self._tensors()])

    def of(self, rows: Tensor) -> Penalties:
        """Copies of those of some rows int32 [B]."""
        return self._made(rows.size, [core.take(tensor, rows) for tensor in self._tensors()])

    def _made(self, rows: int, parts: Sequence[Tensor]) -> Penalties:
        found = object.__new__(Penalties)
        found.rows, found.biases, found._dirty = rows, self.biases, set()
        for name, tensor in zip(self._PARTS, parts, strict=True):
            setattr(found, name, tensor)
        return found

    def take_over(self, smaller: Penalties) -> None:
        """Be in these rows what that was."""
        self._dirty = smaller._dirty
        for mine, its in zip(self._tensors(), smaller._tensors(), strict=True):
            corner = tuple(slice(0, size) for size in its.shape)
            mine[corner].assign(its)

    def admit(
        self, row: int, options: SamplingOptions, tokens: Sequence[int], prompt_length: int
    ) -> None:
        """A row begins that has these tokens, of which those behind the prompt were generated."""
        if not options.penalizes and row not in self._dirty:
            return
        vocab, biases = self.seen.shape[1], len(options.logit_bias)
        seen = np.zeros(vocab, np.uint8)
        seen[list(tokens)] = 1
        output = np.asarray(tokens[prompt_length:], np.int64)
        bias_ids, bias = np.full(self.biases, -1, np.int32), np.zeros(self.biases, np.float32)
        bias_ids[:biases] = list(options.logit_bias)
        bias[:biases] = list(options.logit_bias.values())
        values = (
            seen, np.bincount(output, minlength=vocab).astype(np.int32),
            *(np.float32(getattr(options, f"{name}_penalty")) for name in self._OF_TOKENS[2:]),
            bias_ids, bias,
        )  # fmt: skip
        for tensor, value in zip(self._tensors(), values, strict=True):
            tensor[row : row + 1].assign(np.asarray(value)[None])
        self._dirty.discard(row)
        if options.penalizes:
            self._dirty.add(row)

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        if source >= self.rows:  # it has none: neutral
            if target < self.rows:
                self.admit(target, SamplingOptions(), (), 0)
            return
        for tensor in self._tensors():
            tensor[target : target + 1].assign(tensor[source : source + 1])
        self._dirty.discard(target)
        if source in self._dirty:
            self._dirty.add(target)
