"""How methods of quantization store a weight in a Hugging Face folder, one file a method: tensors
and their axes (`fields.py`), and the scheme that they become (`layout.py`)."""
