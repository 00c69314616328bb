"""Products with weights in their stored forms, and quantization."""
