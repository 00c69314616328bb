"""Loaded: the calls that every loaded model knows, of which it refuses those it is not for."""

from __future__ import annotations

from typing import Any, ClassVar

from boostr.errors import OptionError


class Loaded:
    """What `boostr.load` makes.

    Attributes:
        is_a: what it is, for refusals.   source: where it came from.
    """

    is_a: ClassVar[str]
    source: str

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
