"""Smoothing: what a product reads is made even, and its weights take up what was taken away.

Inputs x of a linear layer are divided by factors s, in the rows of whatever makes them, and its
weights multiplied by them, s_j = max|x_j|^α / max|w_j|^(1 - α), so that an int8 scale for all of a
row of x loses less. As floats nothing changes. α is chosen for each product by what int8 then
makes of inputs that were seen. Source: Xiao et al. 2023, "SmoothQuant".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from boostr import ops
from boostr.engine.calibrate import Calibration
from boostr.errors import NumericsError, OptionError
from boostr.models.lazy import Held, LazyWeight, Scaled, whole
from boostr.nn import Feed, Norm
from boostr.ops import core
from boostr.quant.scheme import Scheme
from boostr.tensor import Tensor

EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ROWS = 32  # of each chunk, that an exponent is judged by
_LEAST = 1e-5  # of the largest input or weight: what is as good as never seen


class Sample:
    """The largest |x_j| of all inputs x [..., K] that it is called with, and some of them."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self.largest = np.zeros(0, np.float32)

    def __call__(self, x: Tensor) -> None:
        flat = core.cast(x.reshape(-1, x.shape[-1]), "float32").numpy()
        largest = np.abs(flat).max(0)
        self.largest = np.maximum(self.largest, largest) if self._rows else largest
        step = max(len(flat) // _ROWS, 1)
        self._rows.append(flat[step // 2 :: step])  # a first token's inputs are like no other's

    @property
    def rows(self) -> np.ndarray:
        """float32 [rows, K].

        Raises:
            NumericsError: inputs that are nan or infinite.
        """
        if not self._rows or not np.isfinite(self.largest).all():
            raise NumericsError("inputs on the calibration text are nan or infinite")
        return np.concatenate(self._rows)


def smooth(
    weights: Mapping[str, LazyWeight], calibration: Calibration, scheme: Scheme
) -> dict[str, LazyWeight]:
    """The parameters of a model, by canonical names, that are the same model smoothed.

    What nothing can be taken from stays: the inputs of layers without a norm before them, and those
    of a down projection that is not gated.

    Args:
        weights: as they are.   calibration: at its start.   scheme: of the linear weights.
    Raises:
        OptionError: layers of a form of their own that have no `feeds`.
    """
    if not any(True for block in calibration.layers for _ in block.feeds()):
        raise OptionError("this model's layers do not say what can be scaled (Module.feeds)")
    out = dict(weights)
    for layer, block in enumerate(calibration.layers):
        names = calibration.names(layer)
        seen = calibration.seen(layer, Sample)
        for name in seen:  # all in float32: a tensor of the checkpoint may be made of several
            out[name] = Scaled(out[name], 0, np.ones(out[name].shape[0], np.float32))
        calibration.advance(layer, {})
        for feed in block.feeds():
            sample = seen[f"{names[id(feed.readers[0])]}.weight"]
            factors = _chosen(feed, sample, scheme)
            if factors is not None:
                factors = _divide(out, feed.source, names[id(feed.source)], factors)
                for reader in feed.readers:
                    name = f"{names[id(reader)]}.weight"
                    out[name] = Scaled(out[name], 1, factors[feed.outputs])
    return out


def _chosen(feed: Feed, sample: Sample, scheme: Scheme) -> np.ndarray | None:
    """Factors float32, one for each output of a feed's source; None if none are better."""
    weights = [core.cast(reader.weight, "float32") for reader in feed.readers]
    x = Tensor(sample.rows, backend=weights[0].backend)
    count = int(feed.outputs.max()) + 1
    inputs, columns = np.zeros(count, np.float32), np.zeros(count, np.float32)
    np.maximum.at(inputs, feed.outputs, sample.largest)
    for weight in weights:
        np.maximum.at(columns, feed.outputs, np.abs(weight.numpy()).max(0))
    if not (inputs.any() and columns.any()):
        return None
    inputs, columns = (np.maximum(v, v.max() * _LEAST) for v in (inputs, columns))
    best, least = None, _error(x, weights, np.ones(len(feed.outputs), np.float32), scheme)
    for exponent in EXPONENTS:
        factors = inputs**exponent / columns ** (1 - exponent)
        factors /= np.exp(np.log(factors).mean())
        error = _error(x, weights, factors[feed.outputs], scheme)
        if error < least:
            best, least = factors, error
    return best


def _error(x: Tensor, weights: Sequence[Tensor], factors: np.ndarray, scheme: Scheme) -> float:
    """Σ |y' - y|² / |y|² over weights, of y = x @ weightᵀ and y', what a scheme makes of it."""
    by = Tensor(factors, backend=x.backend)
    total = 0.0
    for weight in weights:
        want = ops.linear(x, weight).numpy().astype(np.float64)
        got = ops.linear(x / by, ops.quantize(weight * by, scheme)).numpy()
        total += float(np.square(got - want).sum() / max(np.square(want).sum(), 1e-30))
    return total


def _divide(
    out: dict[str, LazyWeight], source: object, path: str, factors: np.ndarray
) -> np.ndarray:
    """Divide what `source` makes; returns by what it has been divided, as its dtype rounds."""
    name, bias = f"{path}.weight", f"{path}.bias"
    if isinstance(source, Norm):
        offset = source.operand.offset
        stored = out[name].read(whole(out[name].shape))
        before = stored.astype(np.float64) + offset
        made = (before / factors - offset).astype(stored.dtype)
        after = made.astype(np.float64) + offset
        is_zero = (before == 0) | (after == 0)
        factors = np.where(is_zero, 1, before / np.where(is_zero, 1, after)).astype(np.float32)
        out[name] = Held(out[name].sources[0], np.where(is_zero, stored, made))
    else:
        out[name] = Scaled(out[name], 0, 1 / factors)
    if bias in out:
        stored = out[bias].read(whole(out[bias].shape))
        made = (stored.astype(np.float32) / factors).astype(stored.dtype)
        out[bias] = Held(out[bias].sources[0], made)
    return factors
