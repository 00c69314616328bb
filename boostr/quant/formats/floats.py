"""Layouts of weights of 8-bit and 4-bit floats, which several methods share. Source: OCP 8-bit
floating point; OCP microscaling formats; NVIDIA's NVFP4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from boostr import dtypes
from boostr.quant.formats.fields import ALL, EACH, FLOATS, UINT8, Axis, Field, dense
from boostr.quant.formats.layout import KERNEL_GROUP, Layout, Numbers
from boostr.quant.scheme import PACK, SCHEMES, Scheme

_E4M3 = (dtypes.float8_e4m3,)
SCALES_8 = (*_E4M3, dtypes.uint8)  # of 8-bit floats; MLX has no dtype for them
SCALE_FLOATS = (*FLOATS, np.dtype("float8_e8m0fnu"))


def fp8(
    shape: tuple[int, int],
    scale: str,
    rows: Axis,
    columns: Axis,
    floats: np.dtype,
    weight: str = "weight",
) -> Layout:
    """e4m3 and scales that multiply: one for all, for rows, for groups or for blocks."""
    group = columns.group
    kept = group % KERNEL_GROUP == 0
    return Layout(
        shape,
        Scheme(f"fp8-g{group}" if group else "fp8", group, values="e4m3"),
        {
            "codes": Field(weight, EACH, EACH, _E4M3, view=dtypes.uint8),
            "scales": Field(scale, rows, columns, SCALE_FLOATS),
        },
        _wide_scales,
        lambda numbers: numbers,
        floats=None if kept else floats,
    )


def scale_axes(
    shape: tuple[int, ...], N: int, K: int, block: tuple[int, int] | None
) -> tuple[Axis, Axis]:
    """The axes of a tensor of scales, told by its shape: for all, for rows, or for blocks."""
    if all(n == 1 for n in shape):
        return ALL, ALL
    if block is not None and shape != (N, 1):
        return Axis(block[0]), Axis(block[1])
    return EACH, ALL


def _wide_scales(numbers: Numbers) -> Numbers:
    return {**numbers, "scales": numbers["scales"].astype(np.float32)}


def mxfp8(shape: tuple[int, int], codes: Field, scale: str) -> Layout:
    """e4m3 and a power of two for 32 inputs."""
    scales = Field(scale, EACH, Axis(32), UINT8)
    scheme = Scheme("mxfp8", 32, values="e4m3", scale="e8m0")
    return Layout(shape, scheme, {"codes": codes, "scales": scales}, stored=lambda n: n)


def mxfp4(shape: tuple[int, int], codes: Field, scale: str) -> Layout:
    """e2m1 and a power of two for 32 inputs."""
    scales = Field(scale, EACH, Axis(32), (*UINT8, SCALE_FLOATS[-1]), view=dtypes.uint8)
    return _fp4(shape, SCHEMES["mxfp4"], codes, scales, None, "")


def nvfp4(
    shape: tuple[int, int], codes: Field, scale: str, tensor_scale: str = "", divides: bool = False
) -> Layout:
    """e2m1, an e4m3 for 16 inputs, and a float32 for the tensor that multiplies or divides."""
    scales = Field(scale, EACH, Axis(16), SCALES_8, view=dtypes.uint8)
    supers = Field(tensor_scale, ALL, ALL, (dtypes.float32,)) if tensor_scale else None
    scheme = replace(SCHEMES["nvfp4"], multiple=PACK)
    return _fp4(shape, scheme, codes, scales, supers, "divides" if divides else "multiplies")


def _fp4(
    shape: tuple[int, int], scheme: Scheme, codes: Field, scales: Field, supers: Field | None,
    how: str,
) -> Layout:  # fmt: skip
    as_bytes = shape[1] % PACK != 0
    numbers, over = np.array(scheme.values, np.int8), scheme.super_size
    if as_bytes:
        scheme = replace(scheme, bits=8, values=(), multiple=1)

    def loaded(found: Numbers) -> Numbers:
        out = {**found, "codes": numbers[found["codes"]]} if as_bytes else dict(found)
        if how:
            N, K = found["codes"].shape
            tensor = found.get("supers", np.ones((N, 1), np.float32))
            with np.errstate(divide="ignore"):
                tensor = 1 / tensor if how == "divides" else tensor
            out["supers"] = np.repeat(tensor, -(-K // over), 1)
        return out

    fields = {"codes": codes, "scales": scales}
    return Layout(shape, scheme, fields | ({"supers": supers} if supers else {}), loaded)


def nibbles(name: str) -> Field:
    """Bytes of two codes each, the even input low."""
    return Field(name, EACH, Axis(packing=dense(4, 1)), UINT8)
