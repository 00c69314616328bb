"""How a GEMV is cut: a weight as it lies, and the tile of threads and rows for its shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from boostr.backends.wgpu.products import planes as stored_planes
from boostr.backends.wgpu.products.planes import Planes, Weight, cut, planes_of, stored_form
from boostr.backends.wgpu.runtime.device import Caps
from boostr.quant.forms import Form

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_ROW_BYTES = 16  # of a load
# inputs that a thread takes at a time; 8 floats
_CHUNK = {"c8": 16, "e4m3": 16} | dict.fromkeys(stored_planes.PACKED, 32)


class Stored(NamedTuple):
    """A weight [N, K] as the kernels know it.

    Attributes:
        planes: of N rows each, contiguous.
        slow: whether it is read an element at a time, as rows or x are off 16 bytes.
    """

    form: Form
    planes: Planes
    N: int
    K: int
    slow: bool

    @property
    def chunks(self) -> int:
        """Pieces of a row that are dealt out to threads."""
        return self.K if self.slow else self.K // _CHUNK.get(self.form.codes, 8)

    def bases(self, backend: WgpuBackend) -> list[int]:
        """Where the planes begin, as kernels count."""
        load = self.planes[0].dtype.itemsize if self.slow else _ROW_BYTES
        return stored_planes.bases(backend, self.form, self.planes, load)

    def parts(self, backend: WgpuBackend) -> Iterator[tuple[int, Stored]]:
        """(first row, those rows) in pieces that a binding can hold, of even length."""
        width = max(p.nbytes for p in self.planes) // max(self.N, 1)
        most = backend.caps.binding_bytes // max(width, 1)
        if most >= self.N:
            yield 0, self
            return
        most = max(most // 64 * 64, 2)
        for first in range(0, self.N, most):
            count = min(most, self.N - first)
            yield first, self._replace(planes=cut(self.planes, first, count), N=count)


def stored(backend: WgpuBackend, weight: Weight, off: bool = False) -> Stored:
    """How a weight lies in memory; `off`: rows of x do not begin at 16 bytes."""
    form, planes, (N, K) = stored_form(weight), planes_of(backend, weight), weight.shape
    begin = planes[0].offset * planes[0].dtype.itemsize  # windows begin at multiples of 256 bytes
    slow = off or K % _CHUNK.get(form.codes, 8) != 0 or begin % _ROW_BYTES != 0
    return Stored(form, planes, N, K, slow)


def joined(backend: WgpuBackend, weights: list[Stored]) -> Stored | None:
    """Weights that lie end to end in one buffer, as one; None if they do not."""
    first, N = weights[0], sum(w.N for w in weights)
    if len({(w.form, w.K) for w in weights}) > 1:
        return None
    made = []
    for arrays in zip(*(w.planes for w in weights), strict=True):
        end = arrays[0].offset
        for array in arrays:
            if array.buffer is not arrays[0].buffer or array.offset != end:
                return None
            end += array.size
        made.append(arrays[0].view(shape=(N, *arrays[0].shape[1:])))
    whole = first._replace(planes=tuple(made), N=N)
    return whole if made[0].nbytes <= backend.caps.binding_bytes else None


def padded_rows(M: int) -> int:
    """Rows of x that a kernel for M of them is written for."""
    return 1 << (M - 1).bit_length()


@dataclass(frozen=True)
class Tile:
    """How a workgroup shares rows out (see `gemv_rows.wgsl`).

    Attributes:
        threads: of a workgroup.   team: threads that share rows.   rows: of a team.
        unroll: chunks of every row whose loads are in flight together; 0: one, and the text has
            no second copy for the first or last of them, which is quick to compile.
        lanes: of a subgroup; 0 where only the device knows.
        batch: rows at a time where x is in digits; 0: all of them.
    """

    threads: int
    team: int
    rows: int
    unroll: int
    lanes: int = 0
    batch: int = 0

    @property
    def group(self) -> int:
        """Rows of a workgroup."""
        return self.threads // self.team * self.rows

    def values(self) -> dict[str, Any]:
        """What sources are specialised by."""
        names = {"rows": "R"}
        known = {**asdict(self), "batch": self.batch or self.rows}
        return {names.get(name, name.upper()): value for name, value in known.items()}


_GROUPS = 264  # workgroups that a discrete GPU should have to do
_SUMS, _OTHER = 4096, 2048  # bytes of shared memory beside digits of x


def in_digits(caps: Caps, w: Stored, rows: int) -> bool:
    """Whether a product with x of 16 bits multiplies bytes of it (`gemv_digits.wgsl`)."""
    able = caps.dot4_native and caps.subgroup_max > 0 and rows <= 4 and not w.slow
    room = rows * (2 * w.K + 4 * w.chunks) + _SUMS + _OTHER <= caps.workgroup_bytes
    return able and room and takes_digits(w.form)


def takes_digits(form: Form) -> bool:
    """Whether its codes are whole numbers, and x is not rounded to bytes anyway."""
    return form.codes in ("c8", *stored_planes.PACKED) and not (form.table or form.rounds_input)


def choose(caps: Caps, w: Stored, rows: int, least: int = 2, digits: bool = False) -> Tile:
    """The tile for `rows` rows of x; `least`: what the rows of a team must be a multiple of.

    Measured on an H100 (packed codes on an H200): a row is best read at once by as many threads as
    it has chunks, up to 512 of floats, else 256; and workgroups of one team beat larger ones where
    there are few rows.
    """
    if not caps.subgroup_max or caps.kind == "software":
        return Tile(32, 8, 4, 0 if caps.kind == "software" else 1)
    known = lanes(caps)
    if digits:
        return _tile_in_digits(caps, w, rows, known)
    floats = known and rows == 1 and w.form.is_float
    most_team = min(512 if floats else 256, caps.workgroup_threads)
    if known and w.chunks <= most_team:
        team = -(-w.chunks // known) * known
    else:
        team = most_team
        while team > 32 and w.chunks < 0.9 * (-(-w.chunks // team) * team):
            team //= 2
    each = 4
    if least < each and _GROUPS * each > w.N:
        each = least
    steps = -(-w.chunks // team)
    # what is done once for a chunk of x weighs more with few bytes of weights
    if rows == 1 and w.N >= 8192 and w.form.codes == "c8" and team <= 128 and steps == 1:
        each = 8
    if rows == 1 and w.form.codes in stored_planes.PACKED and w.N >= 4096:
        each = 16 if w.N >= 8192 or steps > 1 else 8
    most = 16 // (each * rows)
    if steps > most and (rows > 1 or each != 4):
        most //= 2
    unroll = min(steps, max(most, 1))
    return Tile(team if known else max(team, 128), team, each, unroll, lanes=known)


def _tile_in_digits(caps: Caps, w: Stored, rows: int, known: int) -> Tile:
    """Measured on an H200: more rows at a time where codes are short, and as many threads as two
    workgroups of 256 on each of its multiprocessors; twice as many where little is kept of x."""
    most, unit = min(512, caps.workgroup_threads), known or caps.subgroup_max
    held = -(-w.chunks // most)
    team = -(-w.chunks // (held * unit)) * unit
    little = 16 * team >= w.K
    teams, batch = max(256 // team, 1), 8 if rows * held == 1 and not little else 4
    if 0.9 * teams * batch * _GROUPS > w.N:
        batch = 4
    while teams > 1 and 0.9 * teams * batch * _GROUPS > w.N:
        teams //= 2
    groups = (2 if little else 1) * _GROUPS // (1 if team <= 256 else 2)
    batches = round(w.N / (teams * batch * groups))
    shares = team * teams // (known or caps.subgroup_min)
    most_rows = min(_SUMS // (4 * shares * rows), 64)
    batches = max(min(batches, most_rows // batch), 1)
    return Tile(team * teams, team, batch * batches, 1, known, batch)


def lanes(caps: Caps) -> int:
    """Lanes of every subgroup of a device, 0 if they are not known; WebGPU's limits may be wide."""
    if caps.subgroup_max and "nvidia" in caps.vendor.lower():
        return 32
    return caps.subgroup_max if caps.subgroup_min == caps.subgroup_max else 0
