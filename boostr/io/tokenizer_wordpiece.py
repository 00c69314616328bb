"""WordPiece out of GGUF metadata: `tokenizer.ggml.model` "bert".

The file marks the pieces that begin a word with "▁", and writes those that go on without BERT's
"##"; control tokens are as they are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.tokenizer_sentencepiece import SPACE

if TYPE_CHECKING:
    import tokenizers

GOES_ON = "##"
_CONTROL = 3  # llama_token_type


def as_written(tokens: list[str], types: np.ndarray) -> list[str]:
    """The pieces as BERT's vocab.txt has them."""
    return _turned(tokens, types, SPACE, GOES_ON)


def as_marked(tokens: list[str], types: np.ndarray) -> list[str]:
    """The pieces of a vocab.txt as a GGUF file has them."""
    return _turned(tokens, types, GOES_ON, SPACE)


def _turned(tokens: list[str], types: np.ndarray, mark: str, other: str) -> list[str]:
    """Pieces with a mark lose it, those without one get the other; a mark alone counts as none."""

    def turn(token: str) -> str:
        marked = token.startswith(mark) and token != mark
        return token.removeprefix(mark) if marked else other + token

    controls = (types == _CONTROL).tolist()
    pairs = zip(tokens, controls, strict=True)
    return [token if control else turn(token) for token, control in pairs]


def build_wordpiece(
    metadata: Mapping[str, Any], tokens: list[str], unknown: int | None, source: str
) -> "tokenizers.Tokenizer":
    """The tokenizer of these tokens, written as in a vocab.txt, without [CLS] and [SEP].

    Raises:
        TokenizerError: the file does not say which token is the unknown one.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if unknown is None:
        raise TokenizerError(f"{source}: WordPiece needs tokenizer.ggml.unknown_token_id")
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token=tokens[unknown]))
    prefix = "tokenizer.ggml.normalizer."
    inner.normalizer = normalizers.BertNormalizer(  # type: ignore[assignment]
        lowercase=metadata.get(f"{prefix}lowercase", True),
        strip_accents=metadata.get(f"{prefix}strip_accents"),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    return inner
