"""Products with weights: tiles for many rows, GEMVs for few, quantization."""
