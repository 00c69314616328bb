"""SentencePiece unigram out of GGUF metadata: `tokenizer.ggml.model` "t5" (T5, XLM-R, BGE-M3).

Of all ways to cut a text into pieces it takes the one with the best sum of scores. Before that the
text goes through the map of characters that SentencePiece compiles a normalization into.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.tokenizer_sentencepiece import (
    BYTE_TOKENS,
    EXTRA_SPACES,
    SPACE,
    decoder,
    has_bytes,
    scores_of,
)

if TYPE_CHECKING:
    import tokenizers

_NEVER = -1e9  # a score worse than of any other way to cut a text
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


def build_unigram(
    metadata: Mapping[str, Any], tokens: list[str], unknown: int | None, source: str
) -> "tokenizers.Tokenizer":
    """The tokenizer of these tokens and the file's scores, without BOS and EOS.

    Raises:
        TokenizerError: scores, a map or an unknown token that are missing or cannot be.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if unknown is None:
        raise TokenizerError(f"{source}: unigram needs tokenizer.ggml.unknown_token_id")
    scores, byte_fallback = scores_of(metadata, len(tokens), source).tolist(), has_bytes(tokens)
    if byte_fallback:  # the word <0x41> in a text is no byte
        scores = [
            _NEVER if token in BYTE_TOKENS else score
            for token, score in zip(tokens, scores, strict=True)
        ]
    vocab = list(zip(tokens, scores, strict=True))
    inner = Tokenizer(models.Unigram(vocab, unknown, byte_fallback))
    steps: list[Any] = []
    if (charsmap := _charsmap(metadata, source)) is not None:
        steps.append(charsmap)
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False):
        steps.append(normalizers.Replace(Regex(EXTRA_SPACES), ""))
    inner.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    words = pre_tokenizers.Metaspace(SPACE, "always" if prefix else "never")
    inner.pre_tokenizer = words  # type: ignore[assignment]
    inner.decoder = decoder(prefix)
    return inner


def _charsmap(metadata: Mapping[str, Any], source: str) -> Any:
    from tokenizers import normalizers

    value = metadata.get(_CHARSMAP)
    if value is None:
        return None
    try:
        if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1:
            raise TypeError("expected bytes")
        return normalizers.Precompiled(value.tobytes())
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TokenizerError(f"{source}: {_CHARSMAP} is no map of characters: {error}") from None
