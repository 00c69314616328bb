"""File formats: safetensors, GGUF, tokenizers, chat templates, and finding models.

No knowledge of models here. Every reader treats a file as hostile: sizes are checked before memory
is taken, names from files never become paths unchecked, and nothing in a file is executed.
"""
