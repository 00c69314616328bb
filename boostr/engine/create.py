"""create: a new model from a config, with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boostr import backends
from boostr.backends.base import Backend
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.load import empty_module, weight_dtype
from boostr.engine.model import LanguageModel
from boostr.engine.sentence import Sentence, normalize
from boostr.engine.text_model import Parts
from boostr.errors import OptionError
from boostr.io.settings import read_object
from boostr.io.tokenizer import Tokenizer
from boostr.models.base import GENERATES
from boostr.models.config import RawConfig
from boostr.models.weights import WeightSource, load_parameters
from boostr.nn.init import initial
from boostr.nn.module import Module
from boostr.tensor import Tensor


def create(
    model_type: str,
    config: Mapping[str, Any] | str | Path,
    seed: int = 0,
    *,
    backend: str | Backend | None = None,
    dtype: Any = None,
    scale_residual: bool = False,
    tokenizer: Tokenizer | None = None,
) -> LanguageModel | EmbeddingModel:
    """A model with random weights, every one of which requires a gradient.

    Args:
        model_type: a family, such as "llama" or "bert".
        config: what its config.json says, as a dict or a file; `initializer_range` (0.02) is the
            standard deviation of matrices. Norms begin with 1, biases with 0.
        seed: weights are the same on every backend.
        dtype: of matrices, "float32" (default), "float16" or "bfloat16".
        scale_residual: divide the deviation of matrices that write to the residual by √(2 layers),
            as GPT-2 does.
    Raises:
        ModelFileError: an unknown family, or a config that lacks or contradicts something.
    """
    given = config if isinstance(config, Mapping) else read_object(Path(config), required=True)
    named = given.get("model_type", model_type)
    if named != model_type:
        raise OptionError(f"create: model_type is {model_type!r}, but the config says {named!r}")
    raw = RawConfig({**given, "model_type": model_type}, f"a new {model_type}")
    module, chosen = empty_module(raw), backends.get(backend)
    std = raw.get("initializer_range", float, 0.02)
    layers = module.config.num_hidden_layers if scale_residual else 0
    load_parameters(module, _Initial(module, seed, std, layers), chosen, dtype=weight_dtype(dtype))
    if GENERATES in module.capabilities:
        ends = raw.ids("eos_token_id")
        made = LanguageModel(module, tokenizer, chosen, raw.source, ends)
    else:
        parts = Parts(module, tokenizer, chosen, raw.source)
        made = EmbeddingModel(parts, Sentence(steps=(normalize,)))
    made.make_trainable()
    return made


class _Initial(WeightSource):
    """The weights of a module whose places are empty, as they begin; each has its own seed."""

    def __init__(self, module: Module, seed: int, std: float, layers: int) -> None:
        self.path = "new weights"
        self._places = {
            name: (owner, attribute, number)
            for number, (name, owner, attribute) in enumerate(module.places())
        }
        self._shapes = {n: getattr(owner, at).shape for n, (owner, at, _) in self._places.items()}
        self._seed, self._std, self._layers = seed, std, layers

    @property
    def names(self) -> Iterable[str]:
        return self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def weight(self, name: str, backend: Backend) -> Tensor:
        owner, attribute, number = self._places[name]
        values = initial(name, owner, attribute, (self._seed, number), self._std, self._layers)
        return Tensor(values, backend=backend)
