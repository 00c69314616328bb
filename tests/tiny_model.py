"""A tiny model with a tokenizer and a chat template, and how the command line is started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from boostr.io.safetensors import save
from boostr.models import FAMILIES, family
from boostr.models.config import RawConfig

ROOT = Path(__file__).parents[1]
HANG = 600  # seconds after which a process will never answer: the first one compiles its kernels
SPECIAL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "vocab_size": 256 + len(SPECIAL), "eos_token_id": 257, "tie_word_embeddings": False,
}  # fmt: skip


def make_tiny(folder: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A random model, a llama unless told otherwise, whose tokens are bytes; of a model_type that
    does not exist the weights are a llama's. It never ends by itself: its end token scores 0."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    kind = raw["model_type"] if raw["model_type"] in FAMILIES else CONFIG["model_type"]
    config, made = RawConfig(raw, "tiny"), family(kind, "tiny")
    rng = np.random.default_rng(7)
    weights = {}
    for name, owner, attribute in made(made.read_config(config)).places():
        shape = getattr(owner, attribute).shape
        vector = len(shape) == 1
        weights[name] = np.ones(shape, "f4") if vector else rng.standard_normal(shape, "f4") / 4
    weights["lm_head.weight"][-len(SPECIAL) :] = 0
    save(folder / "model.safetensors", weights)
    save_tokenizer(folder, template)
    return folder


ENCODER = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 256 + len(SPECIAL),
    "type_vocab_size": 2,
}  # fmt: skip


def make_tiny_encoder(folder: Path) -> Path:
    """A random BERT whose tokens are bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ENCODER))
    made = family("bert", "tiny")
    rng = np.random.default_rng(5)
    module = made(made.read_config(RawConfig(ENCODER, "tiny")))
    shapes = {name: getattr(owner, at).shape for name, owner, at in module.places()}
    save(folder / "model.safetensors", {n: rng.standard_normal(s, "f4") for n, s in shapes.items()})
    save_tokenizer(folder, None)
    return folder


def save_tokenizer(folder: Path, template: str | None) -> None:
    """A byte-level tokenizer without merges: a token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    inner.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>"} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def command(*args: str | bytes) -> list[str | bytes]:
    """The command line of a process."""
    return [sys.executable, "-m", "boostr", *args]


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process, in which boostr is the one under test."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(changes or {})}
