"""GGUF as checkpoints: which architectures are read, and their tensors under canonical names."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np

from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.io.gguf import PLAIN_TYPES, GGUFTensor
from boostr.io.gguf_split import GGUFSource
from boostr.models import ARCHITECTURES, WITHOUT, family, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig
from boostr.models.lazy import FromFile, Index, Indices, LazyWeight, pick
from boostr.models.plan import LoadPlan
from boostr.nn.module import Weight
from boostr.quant.gguf import BLOCK_TYPES
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

# One table for all architectures: names in the file and canonical ones, and what is below them.
_TOP = {
    "token_embd": "model.embed_tokens", "position_embd": "model.embed_positions",
    "token_types": "model.embed_types", "token_embd_norm": "model.embed_norm",
    "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm": "attention_output_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "mlp_output_norm",
}
# tensors that the config reads (see gguf_config)
_TENSOR_SCALES = (".scale", ".input_scale")  # of NVFP4; that of inputs is for 4-bit products
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def architecture_of(file: GGUFSource) -> tuple[str, Architecture]:
    """(model_type, row) of a file's `general.architecture`."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path}: unknown architecture {name!r:.80}; boostr reads GGUF of "
            f"{', '.join(ARCHITECTURES)}"
        )
    tensor, other = WITHOUT.get(name, ("", ""))
    model_type = other if tensor and tensor not in file.tensors else ARCHITECTURES[name]
    rows = family(model_type, str(file.path)).gguf
    return model_type, next(row for row in rows if row.name == name)


def gguf_plan(config: ModelConfig, row: Architecture, writing: bool = False) -> LoadPlan:
    """From the names of GGUF to the canonical ones; read backwards with `writing`.

    Any file may have q, k and v packed end to end; only some architectures are written so.
    """
    own = row.names(config)
    rules = [plan.leftover(ROPE_TENSORS)]
    rules += [plan.rename(name, canonical) for name, canonical in own.items()]
    rules += [plan.rename(name, canonical) for name, canonical in _TOP.items()]
    for i, layer in enumerate(config.layers):
        mixer, hidden = layer.mixer, layer.mlp.hidden
        parts = {"attn_q": mixer.heads, "attn_k": mixer.kv_heads, "attn_v": mixer.kv_heads}
        if "attn_qkv" in row.packed or not writing:
            rows = [(f"blk.{i}.{part}", heads * mixer.head_dim) for part, heads in parts.items()]
            rules.append(plan.rows(f"blk.{i}.attn_qkv", rows))
        if "ffn_up" in row.packed:
            gated = [(f"blk.{i}.{part}", hidden) for part in ("ffn_gate", "ffn_up_half")]
            rules.append(plan.rows(f"blk.{i}.ffn_up", gated))
            rules.append(plan.rename(f"blk.{i}.ffn_up_half", f"blk.{i}.ffn_up"))
    layer = {f"blk.{{i}}.{name}": f"model.layers.{{i}}.{part}" for name, part in _LAYER.items()}
    rules += [plan.rename(name, part) for name, part in layer.items() if part not in own.values()]
    return LoadPlan(tuple(rules))


def reordered(
    name: str, weight: LazyWeight, config: ModelConfig, layout: str, wanted: str
) -> LazyWeight:
    """A parameter whose rows, if it is that of q or k, go from one layout of rotated pairs to the
    other: halves of a head, or pairs side by side."""
    part = name.rpartition("self_attn.")[2].partition("_proj.")[0]
    if part not in ("q", "k") or layout == wanted:
        return weight
    D = config.layers[0].mixer.head_dim
    lying = (2, D // 2) if layout == "split-half" else (D // 2, 2)
    order = np.arange(D).reshape(lying).T.reshape(-1)
    rows = np.arange(0, weight.shape[0], D)[:, None] + order
    return weight.take(0, rows.reshape(-1))


def gguf_weights(file: GGUFSource) -> dict[str, LazyWeight]:
    """The tensors of a model under their names in it.

    Raises:
        ModelFileError: a tensor of a type that boostr does not compute with.
    """
    for tensor in file.tensors.values():
        tensor.check_readable()
    path, tensors = str(file.path), file.tensors
    inert = [n.removesuffix(".weight") + end for n in tensors for end in _TENSOR_SCALES]
    return {
        name: _weight(path, tensor, tensors.get(name.removesuffix("weight") + "scale"))
        for name, tensor in tensors.items()
        if name not in inert
    }


def layer_numbers(file: GGUFSource, row: Architecture, layers: int) -> dict[str, LazyWeight]:
    """The parameters that are numbers in the metadata, under canonical names.

    Raises:
        ModelFileError: numbers that are not there, or are not obeyed.
    """
    path, weights = str(file.path), {}
    for key, what in row.numbers.items():
        numbers = np.asarray(file.metadata.get(key))
        if numbers.dtype.kind not in "fiu" or numbers.shape not in ((), (layers,)):
            raise ModelFileError(f"{path}: {key} must be {layers} numbers, got {numbers!r:.80}")
        if not np.isfinite(numbers).all():
            raise ModelFileError(f"{path}: {key} has numbers that are nan or infinite")
        if not isinstance(what, tuple):
            if not np.allclose(numbers, what, rtol=1e-6, atol=0):
                raise ModelFileError(f"{path}: {key} must be {what}, got {numbers!r:.80}")
            continue
        name, shape = what
        for i, number in enumerate(np.broadcast_to(numbers, layers).astype(np.float32)):
            array = np.full(shape, number)
            named = FromFile(path, f"{key}[{i}]", shape, partial(np.asarray, array))
            weights[f"model.layers.{i}.{name}"] = named
    return weights


def _weight(path: str, tensor: GGUFTensor, scale: GGUFTensor | None) -> LazyWeight:
    if tensor.type in PLAIN_TYPES:
        return FromFile(path, tensor.name, tensor.shape, lambda: tensor.data)
    blocks = Blocks(path, tensor)
    return blocks if scale is None else ScaledBlocks(blocks, _tensor_scale(path, tensor, scale))


class Blocks(LazyWeight):
    """A tensor in blocks of so many inputs; what is read are their bytes, `[..., N, bytes]`."""

    kind: str

    def __init__(self, path: str, tensor: GGUFTensor) -> None:
        self.path, self.sources, self.shape = path, (tensor.name,), tensor.shape
        self.kind, self._tensor = tensor.type, tensor

    def read(self, indices: Indices) -> np.ndarray:
        inputs, nbytes = BLOCK_TYPES[self.kind].size, BLOCK_TYPES[self.kind].nbytes
        columns = indices[-1]
        if (
            not isinstance(columns, range)
            or columns.step != 1
            or columns.start % inputs
            or (columns.stop % inputs and columns.stop != self.shape[-1])
        ):
            raise ModelFileError(
                f"{self.path}: tensor {self._tensor.name!r} is {self.kind}; its columns can be cut "
                f"at multiples of {inputs}, got {columns}"
            )
        data = self._tensor.data.reshape(*self.shape[:-1], self.shape[-1] // inputs * nbytes)
        span = range(columns.start // inputs * nbytes, -(-columns.stop // inputs) * nbytes)
        return pick(data, (*indices[:-1], span))


class ScaledBlocks(LazyWeight):
    """Blocks under a scale float32 [1] of NVFP4, or [X] of each expert of a stack [X, N, K]."""

    def __init__(self, blocks: LazyWeight, scale: np.ndarray) -> None:
        self.path, self.sources, self.shape = blocks.path, blocks.sources, blocks.shape
        self.kind, self._blocks, self._scale = blocks.kind, blocks, scale

    def weight(self, backend: Backend) -> Weight:
        weight = cast(QuantizedTensor, self._blocks.weight(backend))
        supers = weight.parts["supers"]
        scale = self._scale.reshape(-1, *[1] * (len(self.shape) - 1))
        scaled = (supers * Tensor(scale, backend=supers.backend)).reshape(*supers.shape)
        return QuantizedTensor(weight.scheme, weight.shape, {**weight.parts, "supers": scaled})

    def take(self, axis: int, index: Index) -> LazyWeight:
        of_each = axis == 0 and len(self._scale) > 1
        scale = pick(self._scale, (index,)) if of_each else self._scale
        return ScaledBlocks(self._blocks.take(axis, index), scale)

    def read(self, indices: Indices) -> np.ndarray:
        raise ModelFileError(
            f"{self.path}: tensor {self.sources[0]!r} has a scale of its own, and cannot be "
            "turned, stacked or joined with others"
        )


def _tensor_scale(path: str, tensor: GGUFTensor, scale: GGUFTensor) -> np.ndarray:
    """The scale of a whole tensor of NVFP4, float32 [1] or of each expert [X]."""
    numbers, X = scale.data, tensor.shape[0] if len(tensor.shape) == 3 else 1
    if tensor.type != "NVFP4" or numbers.dtype != np.float32 or numbers.shape not in ((1,), (X,)):
        raise ModelFileError(
            f"{path}: {scale.name} is a scale of all of {tensor.name}; expected F32 of 1 number "
            f"(or of {X}) for NVFP4, got {scale.type} {list(numbers.shape)} for {tensor.type}"
        )
    if not np.isfinite(numbers).all():
        raise ModelFileError(f"{path}: {scale.name} has numbers that are nan or infinite")
    return numbers
