"""Layouts: the tensors of one packed weight, and the planes of the scheme that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError
from boostr.quant.formats.fields import Field, Index, Stored
from boostr.quant.pack import pack_codes, unpack_codes
from boostr.quant.scheme import FIELDS, PACK, SCALES, QuantizedTensor, Scheme

Numbers = dict[str, np.ndarray]  # by plane of a scheme; codes one an element
Tensors = Mapping[str, Stored]  # by what their names end with
KERNEL_GROUP = 16  # groups of other sizes than multiples of it are read by no kernel


def _same(numbers: Numbers) -> Numbers:
    return numbers


@dataclass(frozen=True)
class Layout:
    """How a weight lies in a checkpoint, and what it is kept as.

    Attributes:
        shape: [N, K].   scheme: what its numbers mean.
        fields: plane of the scheme -> the tensor that it is read from.
        loaded: from the numbers in the tensors to those of the scheme.
        stored: back again; None if the weight cannot be written in this layout.
        extra: tensors that are written as they are; reading is done with them.
        made: what is read in place of tensors of the checkpoint, by their names.
        order: int32 [K]: the inputs in the order in which groups share scales, None for their own.
        floats: the dtype that it is decoded to, where kernels have no form for the scheme.
    """

    shape: tuple[int, int]
    scheme: Scheme
    fields: Mapping[str, Field]
    loaded: Callable[[Numbers], Numbers] = _same
    stored: Callable[[Numbers], Numbers] | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    made: Tensors = field(default_factory=dict)
    order: np.ndarray | None = None
    floats: np.dtype | None = None

    def check(self, tensors: Tensors) -> None:
        """Raises ModelFileError if a tensor is missing, misshapen or of another dtype."""
        absent = [f.name for f in self.fields.values() if f.name not in tensors]
        if absent:
            raise ModelFileError(f"{' and '.join(absent)} missing")
        N, K = self.shape
        for f in self.fields.values():
            tensor = self.made.get(f.name, tensors[f.name])
            if tensor.dtype not in f.dtypes:
                names = " or ".join(map(str, f.dtypes))
                raise ModelFileError(f"{f.name}: expected {names}, got {tensor.dtype}")
            if not f.fits(tensor.shape, N, K):
                raise ModelFileError(
                    f"{f.name}: expected {list(f.shape(N, K))} for a weight {[N, K]}, "
                    f"got {list(tensor.shape)}"
                )

    def read(
        self, tensors: Tensors, rows: Index, columns: range, used: Callable[[np.ndarray], None]
    ) -> Numbers:
        """The planes of some rows and columns; `used` is given what is read of each tensor.

        Raises:
            ModelFileError: a number that is NaN or infinite, by its tensor's name.
        """
        tensors = {**tensors, **self.made}
        numbers = self.loaded({
            plane: f.read(tensors[f.name], rows, columns, used) for plane, f in self.fields.items()
        })  # fmt: skip
        for plane, f in self.fields.items():
            if not _is_finite(numbers[plane], self._kind(plane)):
                raise ModelFileError(f"{tensors[f.name].name} has numbers that are not finite")
        codes = numbers.pop("codes")
        if self.order is not None:
            codes = np.take(codes, self.order, 1)
        bits = self.scheme.bits
        packed = {"codes": codes} if bits == 8 else pack_codes(codes, bits)
        return {name: (packed | numbers)[name] for name in self.scheme.parts}

    def written(self, weight: QuantizedTensor) -> Numbers | None:
        """The tensors of a weight; None if it is not of this layout."""
        if self.stored is None or weight.scheme != self.scheme or self.order is not None:
            return None
        parts = {name: part.numpy() for name, part in weight.parts.items()}
        bits = self.scheme.bits
        codes = parts["codes"] if bits == 8 else unpack_codes(parts, bits)
        numbers = self.stored({**parts, "codes": codes})
        if not all(f.holds(numbers[plane]) for plane, f in self.fields.items()):
            return None
        made = {f.name: f.written(numbers[plane]) for plane, f in self.fields.items()}
        return {**made, **self.extra}

    def ordered(self, g_idx: Stored, group: int) -> Layout:
        """This layout, where input k belongs to group g_idx[k] of so many (GPTQ's desc_act)."""
        return replace(self, order=_input_order(g_idx, group, self.shape[1]))

    def _kind(self, plane: str) -> str:
        """What bytes of a plane are, where they are floats."""
        if plane == "codes":
            return self.scheme.values if isinstance(self.scheme.values, str) else ""
        return self.scheme.scale if plane == "scales" else ""


class Method(Protocol):
    """A method of quantization, as a config.json says it.

    Attributes:
        name: that of the config.
        marks: what the names of tensors end with that only packed weights have; () if there are
            none.
        parts: what all tensors of a packed weight may end with.
    """

    @property
    def name(self) -> str: ...
    @property
    def marks(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> tuple[str, ...]: ...

    def layout(self, module: str, tensors: Tensors) -> Layout:
        """How the weight of a module lies in its tensors; their headers and small ones are read.

        Raises:
            ModelFileError: tensors that are not what the config says.
        """
        ...

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        """The tensors of a module's weight; None if the method has no form for it."""
        ...


def _is_finite(numbers: np.ndarray, kind: str = "") -> bool:
    """Whether all numbers are; of bytes that are floats of a `kind`, "e4m3" or "e8m0"."""
    if kind == "e4m3":
        return not np.any(numbers.view(np.uint8) & 0x7F == 0x7F)
    if kind == "e8m0":
        return not np.any(numbers.view(np.uint8) == 0xFF)
    return numbers.dtype.kind in "iu" or bool(
        np.isfinite(numbers.astype(np.float32, copy=False)).all()
    )


def _input_order(g_idx: Stored, group: int, K: int) -> np.ndarray | None:
    """Inputs sorted by group; None if they lie so."""
    if g_idx.shape != (K,) or g_idx.dtype.kind not in "iu":
        raise ModelFileError(f"g_idx: expected {K} integers, got {g_idx.dtype}{list(g_idx.shape)}")
    groups, size = g_idx.array(), group or K
    count = -(-K // size)
    if groups.min() < 0 or groups.max() >= count:
        raise ModelFileError(
            f"g_idx: groups must be 0 to {count - 1}, got {groups.min()} to {groups.max()}"
        )
    order = np.argsort(groups, kind="stable").astype(np.int32)
    uneven = np.flatnonzero(groups[order] != np.arange(K) // size)
    if len(uneven):
        raise ModelFileError(
            f"g_idx: group {uneven[0] // size} has not {size} inputs; boostr reads groups of one "
            "size"
        )
    return None if np.array_equal(order, np.arange(K)) else order


def narrows(weight: QuantizedTensor, dtype: np.dtype) -> bool:
    """Whether all scales of a weight are numbers of a dtype."""
    scales = weight.parts["scales"].numpy()
    return np.array_equal(scales.astype(dtype).astype(scales.dtype), scales)


# -- integers ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Integers:
    """Weights scale · (q - z) or scale · q + offset of integers of `bits`, and how they are kept.

    Codes lie in planes of their width, rounded up; as bytes, signed, where rows are no multiple of
    32 inputs. Scales of rows are float32; a zero for each row is repeated by groups.

    Attributes:
        group: inputs that share a scale, 0 for a row.   K: inputs.
        scale: a key of SCALES.   offsets: "" (z is 2^(bits-1)), "zeros", or a key of OFFSETS.
        signed: whether 2^(bits-1) is subtracted from q and z in the checkpoint.
        activations_int8: see Scheme.
    """

    bits: int
    group: int
    K: int
    scale: str
    offsets: str = ""
    signed: bool = False
    activations_int8: bool = False

    @property
    def width(self) -> int:
        """Bits of a code in its planes."""
        if self.K % PACK or not self.is_kept:
            return 8
        return min(width for width in FIELDS if width >= self.bits)

    @property
    def is_kept(self) -> bool:
        """Whether kernels have a form for it."""
        return self.group % KERNEL_GROUP == 0

    @property
    def scheme(self) -> Scheme:
        """What the numbers become."""
        group = self.group or (self._repeats if self.offsets else 0)
        middle = 0 if self.width == 8 else 1 << self.bits - 1
        if self.offsets:
            middle = 0 if self.offsets == "zeros" or self.width < 8 else -(1 << self.bits - 1)
        name = f"w{self.bits}a8" if self.activations_int8 else f"int{self.bits}"
        name += f"-g{group}" if group else ""
        if self.offsets:
            name += "-zeros" if self.offsets == "zeros" else "-offsets"
        return Scheme(
            name, group, self.width, middle, scale=self.scale if group else "f32",
            offsets=self.offsets, activations_int8=self.activations_int8,
            multiple=1 if self.width == 8 else PACK,
        )  # fmt: skip

    @property
    def _repeats(self) -> int:
        return next((g for g in (128, 64, 32) if self.K % g == 0), 128)

    @property
    def _shift(self) -> int:
        """What is added to codes and zeros when they are loaded."""
        return (self.signed - (self.width == 8)) * (1 << self.bits - 1)

    def loaded(self, numbers: Numbers) -> Numbers:
        """See Layout."""
        scheme, K = self.scheme, numbers["codes"].shape[1]
        codes = shifted(numbers["codes"], self._shift)
        out = {**numbers, "codes": codes.view(scheme.parts["codes"].dtype)}
        out["scales"] = numbers["scales"].astype(SCALES[scheme.scale])
        if self.offsets == "zeros":
            out["zeros"] = shifted(numbers["zeros"], self._shift).view(np.int8)
        if self.offsets and not self.group:
            G = scheme.parts["scales"].columns(K)
            out |= {n: np.repeat(out[n], G, 1) for n in out if n != "codes"}
        return out

    def stored(self, numbers: Numbers) -> Numbers:
        """See Layout."""
        out = {**numbers, "codes": shifted(numbers["codes"], -self._shift)}
        if self.offsets == "zeros":
            out["zeros"] = shifted(numbers["zeros"], -self._shift)
        if self.offsets and not self.group:
            out |= {n: out[n][:, :1] for n in out if n != "codes"}
        out["scales"] = out["scales"].astype(SCALES[self.scale])
        return out


def integers(
    ints: Integers, N: int, fields: Mapping[str, Field], tensors: Tensors, floats: np.dtype,
    *, less_one: bool = False, symmetric: bool = False,
) -> Layout:  # fmt: skip
    """The layout of integers with zeros, which is that without them where all are 2^(bits-1).

    Args:
        less_one: whether zeros are stored less 1, modulo 2^bits.
        symmetric: whether the config says that all zeros are 2^(bits-1). Then they say themselves
            how they are stored: files that claim to store them less 1, and do not, are about.
    """
    K, middle, mask = ints.K, 1 << ints.bits - 1, (1 << ints.bits) - 1
    made = Layout((N, K), ints.scheme, fields, floats=None if ints.is_kept else floats)
    made.check(tensors)
    found = fields["zeros"]
    zeros = found.read(tensors[found.name], range(N), range(K), lambda used: None)
    add = int(less_one)
    if symmetric and (zeros == zeros[0, 0]).all() and middle - int(zeros[0, 0]) in (0, 1):
        add = middle - int(zeros[0, 0])
    if (zeros + np.uint8(add) & mask == middle).all():
        ints = replace(ints, offsets="")
        fields = {plane: f for plane, f in fields.items() if plane != "zeros"}
        return replace(made, scheme=ints.scheme, fields=fields, loaded=ints.loaded)

    def loaded(numbers: Numbers) -> Numbers:
        return ints.loaded({**numbers, "zeros": numbers["zeros"] + np.uint8(add) & mask})

    return replace(made, loaded=loaded)


def shifted(numbers: np.ndarray, by: int) -> np.ndarray:
    """Bytes plus a number, modulo 256."""
    raw = numbers.view(np.uint8)
    return raw + np.uint8(by % 256) if by else raw


def scale_name(dtype: np.dtype) -> str:
    """The key of SCALES for scales of a float dtype."""
    return {dtypes.float16: "f16", dtypes.bfloat16: "bf16"}.get(dtype, "f32")
