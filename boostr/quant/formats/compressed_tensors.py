"""compressed-tensors, what llm-compressor writes: integers in words or bytes, 8- and 4-bit floats.

Source: github.com/vllm-project/compressed-tensors (its formats and QuantizationConfig).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError
from boostr.quant.formats import floats
from boostr.quant.formats.fields import (
    ALL,
    EACH,
    FLOATS,
    WORDS,
    Axis,
    Field,
    Packing,
    dense,
    spaced,
)
from boostr.quant.formats.layout import Integers, Layout, Numbers, Tensors, narrows, scale_name
from boostr.quant.formats.table import Table, block_of, expression
from boostr.quant.scheme import QuantizedTensor

_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense",
)  # fmt: skip
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class Group:
    """A group of the config: which modules, and how their weights are stored.

    Attributes:
        targets: names and classes of modules.   expressions: of names.
        rows, columns: what shares a scale.   rounds_input: whether activations are int8 by token.
    """

    targets: tuple[str, ...]
    expressions: tuple[re.Pattern[str], ...]
    format: str
    bits: int
    kind: str
    symmetric: bool
    rows: Axis
    columns: Axis
    rounds_input: bool

    def fit(self, module: str) -> int:
        """How well it names a module: 3 by its name, 2 by an expression, 1 by a class, 0 not."""
        if module in self.targets:
            return 3
        if any(expression.match(module) for expression in self.expressions):
            return 2
        return int(any(target[:1].isupper() for target in self.targets))  # such as "Linear"


class CompressedTensors:
    """See `layout.Method`."""

    name = "compressed-tensors"
    marks: tuple[str, ...] = ("weight_packed", "weight_scale")
    parts = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
        "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point",
        "input_global_scale", "output_scale", "output_zero_point",
    )  # fmt: skip

    def __init__(self, config: Table, dtype: np.dtype) -> None:
        default = config.one_of("format", _FORMATS, "dense")
        sparsity = config.table("sparsity_config")
        if sparsity.values:
            sparsity.one_of("format", ("dense",))
        config.refuse("transform_config")
        self.dtype = dtype
        groups = config.table("config_groups")
        self.groups = [_group(groups.table(name), default) for name in groups.values]
        if not self.groups:
            self.marks = ()

    def layout(self, module: str, tensors: Tensors) -> Layout:
        group, shape, scale = self._group_of(module), _shape(tensors), tensors.get("weight_scale")
        if scale is None:
            raise ModelFileError("weight_scale missing")
        if group.kind == "float":
            return _floats(group, shape, tensors, self.dtype)
        packing = None
        if "weight_packed" in tensors:
            words = tensors["weight_packed"].shape[-1]
            before = spaced(group.bits)  # how 3, 5, 6 and 7 bits lay until 2026-06
            packing = before if words == before.words(shape[1]) else dense(group.bits)
        made = _integers(group, shape, scale_name(scale.dtype), packing, self.dtype)
        if "weight_g_idx" not in tensors:
            return made
        return made.ordered(tensors["weight_g_idx"], group.columns.group)

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        group, (N, K) = self._group_of(module), weight.shape
        if group.kind == "float":
            made = floats.fp8((N, K), "weight_scale", group.rows, group.columns, self.dtype)
            return made.written(weight) if group.bits == 8 else None
        scale = weight.scheme.scale
        if not group.columns.group and narrows(weight, self.dtype):
            scale = scale_name(self.dtype)
        packing = dense(group.bits) if group.format == "pack-quantized" else None
        return _integers(group, (N, K), scale, packing, self.dtype).written(weight)

    def _group_of(self, module: str) -> Group:
        fits = [(group.fit(module), -i) for i, group in enumerate(self.groups)]
        best, place = max(fits, default=(0, 0))
        if not best:
            raise ModelFileError(f"no config group has {module!r} among its targets")
        return self.groups[-place]


def _group(table: Table, default: str) -> Group:
    """A group of the config."""
    name = table.one_of("format", _FORMATS, default)
    weights, inputs = table.table("weights"), table.table("input_activations")
    bits, kind = weights.get("num_bits", int, 8), weights.one_of("type", ("int", "float"), "int")
    weights.one_of("num_bits", (4, 8) if kind == "float" else tuple(range(1, 9)), 8)
    size = weights.get("group_size", int, None)
    default = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.one_of("strategy", _STRATEGIES, default)
    rows, columns = EACH, ALL
    if strategy == "tensor":
        rows = ALL
    elif strategy == "block":
        high, wide = block_of(weights, "block_structure")
        rows, columns = Axis(high), Axis(wide)
    elif strategy != "channel":
        if size is None or size < 1:
            raise ModelFileError(f"{weights.source}: group_size must be 1 or more, got {size}")
        columns = Axis(size)
    rounds = False
    if inputs.get("type", str, "int") == "int" and inputs.values:
        inputs.one_of("num_bits", (8,), 8)
        rounds = bool(inputs.values.get("dynamic")) and kind == "int"
        if rounds:
            inputs.one_of("strategy", ("token",), "token")
            inputs.one_of("symmetric", (True,), True)
    symmetric = weights.get("symmetric", bool, True)
    targets = table.names("targets")
    found = tuple(expression(t[3:], table.source) for t in targets if t.startswith("re:"))
    names = tuple(target for target in targets if not target.startswith("re:"))
    return Group(names, found, name, bits, kind, symmetric, rows, columns, rounds)


def _shape(tensors: Tensors) -> tuple[int, int]:
    """[N, K], which the headers of packed weights do not say."""
    packed, told = tensors.get("weight_packed"), tensors.get("weight_shape")
    tensor = packed or tensors.get("weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelFileError("no weight [N, K]")
    N, K = tensor.shape
    if packed is None:
        return N, K
    if told is None:
        if packed.dtype != dtypes.uint8:
            raise ModelFileError("weight_shape missing")
        return N, 2 * K
    if told.shape != (2,) or told.dtype.kind not in "iu":
        raise ModelFileError(f"weight_shape: expected two integers, got {list(told.shape)}")
    rows, columns = (int(n) for n in told.array())
    if rows != N or columns < 1:
        raise ModelFileError(f"weight_shape: {[rows, columns]}, but weight_packed has {N} rows")
    return rows, columns


def _integers(
    group: Group, shape: tuple[int, int], scale: str, packing: Packing | None, dtype: np.dtype
) -> Layout:
    N, K = shape
    ints = Integers(
        group.bits, group.columns.group, K, scale, "" if group.symmetric else "zeros",
        signed=packing is None, activations_int8=group.rounds_input,
    )  # fmt: skip
    fields = {"scales": Field("weight_scale", group.rows, group.columns, FLOATS)}
    zero, extra = "weight_zero_point", {}
    if packing is None:
        fields["codes"] = Field("weight", EACH, EACH, (dtypes.int8,))
        zeros = Field(zero, group.rows, group.columns, (dtypes.int8,))
    else:
        fields["codes"] = Field("weight_packed", EACH, Axis(packing=packing), WORDS)
        zeros = Field(zero, Axis(packing=packing), group.columns, WORDS)
        extra = {"weight_shape": np.array([N, K])}
    if not group.symmetric:
        fields["zeros"] = zeros
    return Layout(
        shape, ints.scheme, fields, ints.loaded, ints.stored, extra,
        floats=None if ints.is_kept else dtype,
    )  # fmt: skip


def _floats(group: Group, shape: tuple[int, int], tensors: Tensors, dtype: np.dtype) -> Layout:
    scale = tensors["weight_scale"]
    if group.bits == 8:
        if scale.dtype == dtypes.uint8:
            codes = Field("weight", EACH, EACH, (dtypes.float8_e4m3,), view=dtypes.uint8)
            return floats.mxfp8(shape, codes, "weight_scale")
        return floats.fp8(shape, "weight_scale", group.rows, group.columns, dtype)
    codes = floats.nibbles("weight_packed")
    if group.columns.group == 32:
        return floats.mxfp4(shape, codes, "weight_scale")
    return floats.nvfp4(shape, codes, "weight_scale", "weight_global_scale", divides=True)
