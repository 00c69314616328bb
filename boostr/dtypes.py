"""The dtypes of tensors: numpy dtypes, with bf16 and fp8 from `ml_dtypes`, and their names."""

import ml_dtypes
import numpy as np

from boostr.errors import DTypeError

float64 = np.dtype(np.float64)
float32 = np.dtype(np.float32)
float16 = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8_e4m3 = np.dtype(ml_dtypes.float8_e4m3fn)
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)
int64 = np.dtype(np.int64)
int32 = np.dtype(np.int32)
int16 = np.dtype(np.int16)
int8 = np.dtype(np.int8)
uint8 = np.dtype(np.uint8)
uint16 = np.dtype(np.uint16)
uint32 = np.dtype(np.uint32)
uint64 = np.dtype(np.uint64)
bool_ = np.dtype(np.bool_)

FLOATS = (float64, float32, float16, bfloat16, float8_e4m3, float8_e5m2)
MODEL_FLOATS = (float32, float16, bfloat16)  # of weights, activations and caches
LOW_PRECISION = (float16, bfloat16, float8_e4m3, float8_e5m2)

_ALIASES = {
    "f64": float64, "float64": float64, "double": float64,
    "f32": float32, "float32": float32, "float": float32,
    "f16": float16, "float16": float16, "half": float16,
    "bf16": bfloat16, "bfloat16": bfloat16,
    "float8_e4m3fn": float8_e4m3, "float8_e4m3": float8_e4m3, "float8_e5m2": float8_e5m2,
    "int64": int64, "int32": int32, "int16": int16, "int8": int8,
    "uint8": uint8, "uint16": uint16, "uint32": uint32, "uint64": uint64, "bool": bool_,
}  # fmt: skip


def parse(dtype: object) -> np.dtype:
    """The numpy dtype named by `dtype`: a dtype, a numpy scalar type, or a name such as "bf16"."""
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.").lower()
        if name not in _ALIASES:
            raise DTypeError(f"unknown dtype {dtype!r}; known: {', '.join(sorted(_ALIASES))}")
        return _ALIASES[name]
    try:
        return np.dtype(dtype)  # type: ignore[arg-type]
    except TypeError as error:
        raise DTypeError(f"not a dtype: {dtype!r}") from error


def is_float(dtype: np.dtype) -> bool:
    """True for every floating dtype, also bf16 and fp8 (whose numpy `kind` is "V")."""
    return dtype in FLOATS


def eps(dtype: np.dtype) -> float:
    """The distance from 1.0 to the next larger number of a floating dtype."""
    return float(ml_dtypes.finfo(dtype).eps)
