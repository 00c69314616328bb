"""Products with weights, and quantization."""
