"""The special tokens of a tokenizer, and how `encode` puts them around a text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class SpecialTokens:
    """What the files around a tokenizer declare.

    `names` maps bos_token, eos_token, pad_token, unk_token, ... to their text, as chat templates
    see them; `eos_ids` are all ids that end a generation; `templates` maps names to the source of
    chat templates, the usual one under "default". `max_length` is the length of a text in tokens
    that the tokenizer was made for, None if the files do not say; `truncation_side` is
    where it cuts longer ones.
    """

    names: dict[str, str] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    truncation_side: str = "right"


def surround(
    inner: "tokenizers.Tokenizer",
    bos: tuple[str, int] | None,
    eos: tuple[str, int] | None,
    pair: list[str] | None = None,
) -> None:
    """Makes `encode` put BOS before and EOS behind a text, each given as (token, id) or None.

    `pair` is the template of two texts; without it each of the two has BOS and EOS.
    """
    from tokenizers import processors

    before, behind = [bos[0]] if bos else [], [eos[0]] if eos else []
    second = [*(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in behind)]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *second] if pair is None else pair,
        special_tokens=[token for token in (bos, eos) if token],
    )
