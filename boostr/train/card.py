"""README.md of a run: what it was made of, and how to load it."""

from __future__ import annotations

from boostr.train.config import TrainConfig


def card(config: TrainConfig, base: str, steps: int, key: str) -> str:
    """Its text.

    Args:
        base: the model that was trained.   key: of the data, see `Dataset`.
    """
    tokens = config.batch_tokens * config.grad_accumulation
    if config.full:
        what, load = "A model", 'boostr.load("model")  # of this folder'
    else:
        what, load = "A LoRA adapter", f'boostr.load({base!r}, adapter=".")  # "." is this folder'
    return f"""# {what} trained by boostr

- base: {base}
- data: {config.data} (key {key[:16]})
- {steps} steps of up to {tokens} tokens; every option is in config.toml, every loss in log.jsonl

```python
import boostr

model = {load}
```
"""
