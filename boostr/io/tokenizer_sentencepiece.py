"""SentencePiece BPE out of GGUF metadata: `tokenizer.ggml.model` "llama" and "gemma4".

SentencePiece joins the two neighbours whose joined piece has the highest score, the leftmost of
equals, until none is left; a character that is no piece becomes its UTF-8 bytes. Ranked merges give
the same: all ways to cut a piece in two pieces, in the order of the scores. Gemma 4's file has
ranked merges instead of the scores.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"  # how pieces write a space
BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}
EXTRA_SPACES = r"\A +| +\z|(?<= ) +"
_NORMAL, _USER_DEFINED = 1, 4  # llama_token_type


def scores_of(metadata: Mapping[str, Any], count: int, source: str) -> np.ndarray:
    """`tokenizer.ggml.scores`: a number for each token."""
    scores = metadata.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, np.ndarray)
        or scores.shape != (count,)
        or not np.isfinite(scores.astype(np.float32)).all()
    ):
        raise TokenizerError(
            f"{source}: tokenizer.ggml.scores must be {count} numbers, one for each token"
        )
    return scores.astype(np.float32)


def has_bytes(tokens: list[str]) -> bool:
    """Whether there is a token for each byte, for characters that are no piece."""
    return set(tokens) >= BYTE_TOKENS


def merges_of_scores(
    metadata: Mapping[str, Any], tokens: list[str], types: np.ndarray, source: str
) -> list[tuple[str, str]]:
    """The ranked merges that join pieces as their scores do; `types` are llama_token_type.

    Raises:
        TokenizerError: scores that are missing, or that do not say which of two pieces comes first.
    """
    return _merges(tokens, types, scores_of(metadata, len(tokens), source), source)


def build_sentencepiece(
    metadata: Mapping[str, Any],
    tokens: list[str],
    merges: list[tuple[str, str]],
    unknown: int | None,
    source: str,
) -> "tokenizers.Tokenizer":
    """The tokenizer of these tokens and ranked merges, without BOS and EOS.

    Raises:
        TokenizerError: merges of other tokens, or characters that could become no token.
    """
    from tokenizers import Tokenizer, models, normalizers

    byte_fallback = has_bytes(tokens)
    if unknown is None and not byte_fallback:
        raise TokenizerError(f"{source}: neither 256 byte tokens nor an unknown_token_id")
    try:
        model = models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TokenizerError(f"{source}: vocabulary and merges do not fit: {error}") from None
    inner = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    trims = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    inner.normalizer = normalizers.Sequence(_normalizers(prefix, trims))  # type: ignore[assignment]
    inner.decoder = decoder(prefix)
    return inner


def decoder(prefix: bool) -> Any:
    """Text of pieces; `prefix`: the first space is not the text's."""
    from tokenizers import decoders

    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*decode, *([decoders.Strip(" ", 1, 0)] if prefix else [])])


def _normalizers(prefix: bool, trims: bool) -> list[Any]:
    from tokenizers import Regex, normalizers

    extra = normalizers.Replace(Regex(EXTRA_SPACES), "")
    return [
        *([extra] if trims else []),
        *([normalizers.Prepend(SPACE)] if prefix else []),
        normalizers.Replace(" ", SPACE),
    ]


def _merges(
    tokens: list[str], types: np.ndarray, scores: np.ndarray, source: str
) -> list[tuple[str, str]]:
    """All ways to make a piece of two others, best score first; of equals the longer left first.

    Runs of spaces share a score in Llama's and Mistral's files: there the longer left is the one
    that SentencePiece, which goes from left to right, has made by then.
    """
    normal = (types == _NORMAL).nonzero()[0]
    pieces = dict(zip([tokens[i] for i in normal], scores[normal].tolist(), strict=True))
    merges: list[tuple[str, str]] = []
    ordered = sorted(pieces, key=pieces.__getitem__, reverse=True)
    for score, equals in itertools.groupby(ordered, pieces.__getitem__):
        cuts = [
            (cut, len(piece) - cut, piece)
            for piece in equals
            for cut in range(1, len(piece))
            if piece[:cut] in pieces and piece[cut:] in pieces
        ]
        made = list(dict.fromkeys(piece for _, _, piece in cuts))
        if len(made) > 1 and len(set().union(*made)) > 1:
            raise TokenizerError(
                f"{source}: the pieces {made[0]!r} and {made[-1]!r} have one score, {score:g}, so "
                "it is not said which is joined first; a converter has left the scores out. Load "
                "the model from its folder with tokenizer.json instead"
            )
        merges += [(piece[:cut], piece[cut:]) for cut, _, piece in sorted(cuts, reverse=True)]
    return merges


def spelled(tokens: list[str], types: np.ndarray) -> list[str]:
    """The tokens, those that users defined with real spaces: they are looked for in raw text."""
    taken, tokens = set(tokens), list(tokens)
    for i in (types == _USER_DEFINED).nonzero()[0]:
        plain = tokens[i].replace(SPACE, " ")
        tokens[i] = tokens[i] if plain in taken else plain
    return tokens
