"""The values that a new model's parameters begin with: as transformers' `_init_weights`."""

from __future__ import annotations

import numpy as np

from boostr.nn.module import Module, Parameter
from boostr.nn.norm import Norm

_INTO_RESIDUAL = ("o_proj", "down_proj")


def initial(
    name: str, owner: Module, attribute: str, seed: tuple[int, ...], std: float, layers: int = 0
) -> np.ndarray:
    """float32 values for a place: normal of 0 and `std` for matrices, 1 for norms, 0 for the rest.

    Args:
        seed: of this parameter alone.
        layers: L: matrices whose product is added to the residual get std / √(2L); 0: as all.
    Source: Radford et al. 2019, GPT-2 (the scaling by depth).
    """
    place: Parameter = getattr(owner, attribute)
    if isinstance(owner, Norm) and attribute == "weight":
        return np.full(place.shape, 1 - owner.operand.offset, np.float32)
    if len(place.shape) < 2:
        return np.zeros(place.shape, np.float32)
    if layers and name.split(".")[-2] in _INTO_RESIDUAL:
        std /= (2 * layers) ** 0.5
    return np.random.default_rng(seed).standard_normal(place.shape, np.float32) * np.float32(std)
