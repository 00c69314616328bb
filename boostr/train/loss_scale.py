"""LossScale: what losses of float16 are multiplied by, so that small gradients are not lost."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Backend
from boostr.ops import core
from boostr.tensor import Tensor, full

FLOOR = 1.0  # a step that fails with it fails for another reason than the scale
_START, _MOST = 2.0**16, 2.0**24
_PATIENCE = 2000  # steps


class LossScale:
    """A factor of the loss, and so of all gradients: float16 knows nothing below 6e-8.

    It is halved after a step whose gradients are not finite, which moves nothing, and doubled after
    2000 in a row whose are. All of it lies on the device, and nothing is read there.

    Attributes:
        value: float32 scalar.   finite: int32 scalar, steps in a row since it changed.
    Source: Micikevicius et al. 2018, Mixed Precision Training; torch.amp.GradScaler.
    """

    def __init__(self, backend: Backend) -> None:
        self.value = full((), _START, "float32", backend)
        self.finite = full((), 0, "int32", backend)

    def update(self, norm: Tensor) -> None:
        """After a step with gradients of this norm."""
        good = norm - norm == 0
        count = core.where(good, self.finite + 1, 0)
        doubles = count >= _PATIENCE
        grown = core.where(doubles, core.minimum(self.value * 2, _MOST), self.value)
        shrunk = core.maximum(self.value * 0.5, FLOOR)
        self.value.assign(core.where(good, grown, shrunk))
        self.finite.assign(core.where(doubles, 0, count))

    def tensors(self) -> dict[str, Tensor]:
        """What a run needs to go on with it, by name."""
        return {"loss_scale": self.value, "loss_scale_finite": self.finite}


def needs_scale(activations: np.dtype, params: list[Tensor]) -> bool:
    """Whether gradients are float16 anywhere."""
    return dtypes.float16 in (activations, *(p.dtype for p in params))
