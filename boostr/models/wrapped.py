"""Wrappers: checkpoints of a language model with towers for images beside it. Its text part runs.

A wrapper's config has that of the text model in `text_config` (or, in old files, among its own
keys), and says itself whether the head is the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from boostr.models import plan
from boostr.models.base import Model
from boostr.models.config import RawConfig
from boostr.models.plan import LoadPlan


@dataclass(frozen=True)
class Wrapper:
    """How the text part lies in a wrapper.

    Attributes:
        text: the family of the text part, where its own model_type is none.
        prefixes: what its names may begin with, the more special first.
        apart: what the names of everything else begin with.
        defaults: of keys that the text part leaves out, where they are not those of its family.
    """

    text: str
    prefixes: tuple[str, ...]
    apart: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_LANGUAGE = ("language_model.model.", "model.language_model.", "model.")
WRAPPERS = {
    "gemma3": Wrapper(
        "gemma3_text",
        _LANGUAGE,
        ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
         "model.multi_modal_projector."),
    ),
    "mistral3": Wrapper(
        "mistral",
        _LANGUAGE,
        ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
         "model.multi_modal_projector."),
    ),
    "qwen2_5_vl": Wrapper(
        "qwen2",
        ("model.language_model.", "model."),
        ("visual.", "model.visual."),
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768},
    ),
    "qwen3_vl": Wrapper(
        "qwen3",
        ("model.language_model.", "model."),
        ("visual.", "model.visual."),
        {"rope_theta": 5e5, "max_position_embeddings": 128000},
    ),
    "smolvlm": Wrapper(
        "llama",
        ("model.text_model.", "model."),
        ("model.vision_model.", "model.connector."),
    ),
}  # fmt: skip


def text_part(
    wrapper: Wrapper, text_type: str, family: Callable[[str], type[Model]]
) -> type[Model]:
    """The family of the text part, which reads a wrapper's config and the names in it."""
    inner = family(text_type)

    class TextPart(inner):  # type: ignore[valid-type, misc]
        @staticmethod
        def read_config(config: RawConfig) -> Any:
            return inner.read_config(_of_text(config, wrapper, text_type, inner))

        @staticmethod
        def load_plan(config: Any) -> LoadPlan:
            """Read backwards it is the plan of the text model alone."""
            rules = LoadPlan((
                plan.leftover(wrapper.apart),
                plan.alias("language_model.lm_head", "lm_head"),
                plan.prefixes("model.", wrapper.prefixes, outside=("lm_head.",)),
            ))  # fmt: skip
            return rules + inner.load_plan(config)

    return TextPart


def _of_text(config: RawConfig, wrapper: Wrapper, text_type: str, inner: type[Model]) -> RawConfig:
    """The config of the text part as one of a model of its own."""
    raw = {**config.filled(**wrapper.defaults).raw, "model_type": text_type}
    for name in ("text_config", "vision_config", "architectures"):
        raw.pop(name, None)
    if inner.gguf:
        raw["architectures"] = [inner.gguf[0].hf_class]
    scaling = raw.get("rope_scaling")
    if isinstance(scaling, Mapping) and "mrope" in (scaling.get("type"), scaling.get("rope_type")):
        del raw["rope_scaling"]  # all three positions of a token of text are its position
    return RawConfig(raw, config.source)
