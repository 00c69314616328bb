"""Loaded: the calls that every loaded model knows, of which it refuses those it is not for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from boostr.backends.base import Backend
from boostr.engine.trainable import Trainable
from boostr.errors import OptionError
from boostr.models import adapters
from boostr.models.base import GENERATES, Model
from boostr.models.heads import Classifier


class Loaded(Trainable):
    """What `boostr.load` makes.

    Attributes:
        is_a: what it is, for refusals.   source: where it came from.
        module, backend: the model, and where it is.   classifier: its head, where it classifies.
    """

    is_a: ClassVar[str]
    source: str
    module: Model
    backend: Backend
    classifier: Classifier | None = None

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter that is over the weights as peft writes it: adapter_config.json and
        adapter_model.safetensors, in float32.

        Args:
            folder: made if need be; an adapter that is there is written over.
        Raises:
            OptionError: no weight has an adapter, or it is none of whole modules of the family.
        """
        if GENERATES in self.module.capabilities and self.classifier is None:
            task = "CAUSAL_LM"
        else:
            task = "FEATURE_EXTRACTION" if self.classifier is None else "SEQ_CLS"
        adapters.save(self.module, folder, self.source, task, self.classifier)

    def merge_adapter(self) -> None:
        """Add the adapter to the weights that it is over, in float32, and round to their dtype.

        Raises:
            OptionError: no weight has an adapter, or one has it over packed numbers.
        """
        adapters.merge_adapter(self.module)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OptionError(
            f"{self.source}: a loaded model cannot be copied or pickled; load it again, or from "
            "what save or save_adapter wrote"
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(w.nbytes for w in self.module.weights().values())

    @property
    def parameter_count(self) -> int:
        """Weights counted as numbers; packed ones by their logical shape."""
        weights = self.module.weights().values()
        return sum(w.size for w in weights)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("generate")

    def stream(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("stream")

    def generate_batch(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("generate_batch")

    def score(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("score")

    def embed(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("embed")

    def rerank(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("rerank")

    def classify(self, *arguments: Any, **named: Any) -> Any:
        raise self._refusal("classify")

    def _refusal(self, call: str) -> OptionError:
        return OptionError(f"{call}: {self.source} is {self.is_a}")
