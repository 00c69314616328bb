"""Training: what a loop of one's own is made of."""

from boostr.train.adapters import add_lora

__all__ = ["add_lora"]
