"""GGUF files as Hugging Face folders: the config.json, and the tensors as floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from boostr import backends, ops
from boostr.errors import ModelFileError, NumericsError
from boostr.io.mapping import release
from boostr.models.architecture import Architecture
from boostr.models.gguf_metadata import llama3_factors
from boostr.models.lazy import Indices, LazyWeight, pick
from boostr.ops.rope_tables import RopeConfig
from boostr.tensor import Tensor

_BAND_BYTES = 16 * 2**20  # of float32 rows that are decoded at once
# what only files of GGUF have otherwise than folders; the tensors are brought to the latter's form
_FILES_OWN = ("rope_layout", "norm_offset", "position_embedding_type", "rope_theta_swa")


def folder_config(
    said: Mapping[str, Any], row: Architecture, dtype: np.dtype, source: str
) -> dict[str, Any]:
    """The config.json of what `hf_config` read from a file of an architecture.

    Raises:
        ModelFileError: a rope that a config.json cannot say.
    """
    config = {k: v for k, v in said.items() if v is not None and k not in _FILES_OWN}
    if said.get("sliding_window", 0) is None:
        config["sliding_window"] = None  # none; where it is absent some families have one
    scaling = {k: v for k, v in config.pop("rope_scaling").items() if v is not None}
    factors = scaling.pop("frequency_factors", None)
    if factors is not None:
        scaling = _llama3(config, scaling, factors, source)
    if scaling["rope_type"] != "default":
        config["rope_scaling"] = scaling
    if config["partial_rotary_factor"] == 1 and "partial_rotary_factor" not in row.spelled:
        del config["partial_rotary_factor"]
    config = {row.spelled.get(key, key): value for key, value in config.items()}
    return {"architectures": [row.hf_class], **config, "torch_dtype": dtype.name}


def _llama3(
    config: dict[str, Any], scaling: dict[str, Any], factors: list[float], source: str
) -> dict[str, Any]:
    """The numbers that Llama 3's factors of frequencies were made of: all its models have bounds of
    1 and 4, contexts of powers of 2, and divide the longest waves by `factor`."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = int(width * config["partial_rotary_factor"])
    for context in (2**power for power in range(5, 21)):
        made = {
            "factor": float(max(factors)), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip
        rope = RopeConfig(rotated, config["rope_theta"], context, "llama3", made)
        want = llama3_factors(rope)
        if want.shape == np.shape(factors) and np.allclose(want, factors, rtol=1e-5, atol=0):
            if scaling["rope_type"] != "default":
                break
            return {"rope_type": "llama3", **made}
    raise ModelFileError(
        f"{source}: the factors of its rope (rope_freqs.weight) are none of Llama 3's, which are "
        "all that a config.json can say; the file can be used as it is"
    )


def shortest(value: Any) -> Any:
    """Numbers that GGUF has in 32 bits as they were meant: 1e-05, not 9.99999974e-06."""
    if isinstance(value, dict):
        return {key: shortest(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortest(item) for item in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


class Decoded(LazyWeight):
    """Another weight as floats of a dtype, with a number added to each.

    Blocks are decoded in bands of rows, in float32, which is exact.
    """

    def __init__(self, inner: LazyWeight, dtype: np.dtype, added: float = 0.0) -> None:
        self.path, self.sources, self.shape = inner.path, inner.sources, inner.shape
        self._inner, self._dtype, self._added = inner, dtype, np.float32(added)

    def read(self, indices: Indices) -> np.ndarray:
        if not indices:
            return rounded(np.asarray(self._inner.read(()), np.float32), self._dtype)
        rows, *columns = indices
        out = np.empty([len(index) for index in indices], self._dtype)
        step = max(1, _BAND_BYTES // (4 * max(int(np.prod(self.shape[1:], dtype=int)), 1)))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            try:
                out[start : start + step] = rounded(
                    self._numbers((some, *columns)) + self._added, self._dtype
                )
            except NumericsError as error:
                names = " + ".join(self.sources)
                raise ModelFileError(f"{self.path}: tensor {names}: {error}") from None
        return out

    def _numbers(self, indices: Indices) -> np.ndarray:
        """Float32."""
        inner, (rows, *columns) = self._inner, indices
        if inner.kind is None:
            array = inner.read(indices)
            numbers = array.astype(np.float32)
            release(array)
            return numbers
        weight = inner.take(0, rows).weight(backends.get("numpy"))
        numbers = weight if isinstance(weight, Tensor) else ops.dequantize(weight)
        return pick(numbers.numpy(), (range(len(rows)), *columns))


def rounded(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float32 numbers as another float.

    Raises:
        NumericsError: numbers that are nan or infinite, or would be.
    """
    if not np.isfinite(numbers).all():
        raise NumericsError("it has numbers that are nan or infinite")
    with np.errstate(over="ignore"):
        made = numbers.astype(dtype)
    if not np.isfinite(made.astype(np.float32)).all():
        raise NumericsError(f"it has numbers that are too large for {dtype.name}; take bfloat16")
    return made
