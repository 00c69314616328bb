"""How weights are quantized, packed and described. No maths here: that is `ops/quant.py`."""

from boostr.quant.scheme import SCHEMES, QuantizedTensor, Scheme, parse_scheme

__all__ = ["SCHEMES", "QuantizedTensor", "Scheme", "parse_scheme"]
