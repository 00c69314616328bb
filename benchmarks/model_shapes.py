"""Shapes of models to measure with random weights, and what is asked of them on every GPU."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.runner import Runner
from boostr.models import family
from boostr.models.config import RawConfig
from boostr.models.weights import WeightSource
from boostr.quant.scheme import SCHEMES, QuantizedTensor, Scheme
from boostr.tensor import Tensor

MODELS: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "tie_word_embeddings": True, "rope_theta": 100000.0,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True, "rope_theta": 500000.0,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False, "rope_theta": 500000.0,
    },
    "gemma-270M": {
        "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "vocab_size": 262144, "tie_word_embeddings": True,
        "rope_theta": 1000000.0, "sliding_window": 512,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "tie_word_embeddings": True, "rope_theta": 10000.0,
    },
}  # fmt: skip


def decoder_module(config: dict[str, Any]) -> Any:
    """A decoder of that config, by default a Llama, its weights still to be loaded."""
    raw = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **config}
    made = family(raw["model_type"], "random")
    return made(made.read_config(RawConfig(raw, "random")))


class RandomWeights(WeightSource):
    """A checkpoint of random numbers: one block is uploaded, and copied on the device.

    form: a float dtype, or a scheme; or A/B, two of them: B for embedding and head and, where A has
        super-scales, for v and down in every other layer, as in a Q4_K_M.
    fill: of (array, block), both of the device: writes the block over and over.
    """

    path = "random"

    def __init__(
        self, module: Any, form: str, backend: Any, fill: Callable[[Any, Any], None]
    ) -> None:
        self._shapes = {
            name: getattr(owner, attribute).shape for name, owner, attribute in module.places()
        }
        self._forms, self._backend, self._fill = form.split("/"), backend, fill
        self._blocks: dict[str, Any] = {}

    @property
    def names(self) -> Iterator[str]:
        yield from self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def weight(self, name: str, backend: Any) -> Tensor | QuantizedTensor:
        shape, form = self._shapes[name], self._form(name)
        if len(shape) == 1:
            return Tensor(np.ones(shape, np.float32), backend=backend)
        scheme = SCHEMES.get(form)
        if scheme is None:  # rows of length 1, about
            made = self._filled(form, shape, dtypes.parse(form))
            return (made * float(shape[1] ** -0.5)).to(made.dtype)
        (N, K), parts = shape, {}
        for name, part in scheme.parts.items():
            wide = (N, part.columns(K))
            if name in ("codes", "high"):
                parts[name] = self._filled(form, wide, part.dtype)
            else:
                full = np.full(wide, _usual(scheme, name, K), part.dtype)
                parts[name] = Tensor(full, backend=backend)
        return QuantizedTensor(scheme, (N, K), parts)

    def _form(self, name: str) -> str:
        first, *other = self._forms
        found = re.search(r"layers\.(\d+)\..*(v_proj|down_proj)", name)
        if not other:
            return first
        wide = found and int(found[1]) % 2 and SCHEMES[first].super_size
        table = "embed_tokens" in name or "lm_head" in name
        return other[0] if table or wide else first

    def _filled(self, form: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """A block over and over; rows of other lengths than its own are all different."""
        backend = self._backend
        if form not in self._blocks:
            rng, most = np.random.default_rng(0), 1 << 22
            if form in SCHEMES:  # above 126 e4m3 has its nan
                block = rng.integers(0, 127, most, np.uint8).view(dtype)
            else:
                block = rng.standard_normal(most, np.float32).astype(dtype)
            self._blocks[form] = backend.from_numpy(block)
        made = backend.empty(shape, dtype)
        self._fill(made, self._blocks[form])
        return Tensor.wrap(made, backend)


def _usual(scheme: Scheme, part: str, K: int) -> float:
    """A number of that part with which rows are of length 1, about."""
    scale = K**-0.5 * 3.5 / 2**scheme.bits
    if part == "scales" and scheme.scale in ("e8m0", "e4m3"):  # 2^-8 and 1
        return 119 if scheme.scale == "e8m0" else 0x38
    if part == "offsets" and scheme.offsets != "u8":
        return -scale * 2 ** (scheme.bits - 1)
    return 1 if scheme.parts[part].dtype.kind in "iu" else scale


def step_bytes(runner: Runner, batch: int, length: int) -> int:
    """Bytes that a decode step must read: all matrices but an untied embedding, and the cache."""
    module: Any = runner.module
    weights = module.weights()
    skipped = [] if module.lm_head is None else ["model.embed_tokens.weight"]
    matrices = sum(w.nbytes for name, w in weights.items() if name not in skipped)
    return matrices + batch * length * runner.kv_token_bytes


def prompts(batch: int, length: int, vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, (batch, length)).tolist()


def prefill_rate(runner: Runner, length: int, repetitions: int) -> float:
    """Tokens per second of one prompt of `length`, until its last logits are on the device.

    Of prompts after the first three, in which kernels are compiled and the pass is recorded.
    """
    rows = FixedRows(runner, 1, length)
    tokens = prompts(1, length, runner.module.config.vocab_size)
    seconds = []
    for _ in range(repetitions + 3):
        runner.backend.synchronize()
        start = time.perf_counter()
        rows.prefill(tokens)
        runner.backend.synchronize()
        seconds.append(time.perf_counter() - start)
    return length / statistics.median(seconds[3:])
