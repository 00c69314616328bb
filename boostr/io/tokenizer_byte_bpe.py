"""Byte-level BPE: the bytes of a text, written as letters and cut into pieces, are merged."""

from typing import TYPE_CHECKING, Any

from boostr.errors import TokenizerError
from boostr.io.pre_tokenizers import PreTokenizer

if TYPE_CHECKING:
    import tokenizers


def build_byte_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], pre: PreTokenizer, source: str
) -> "tokenizers.Tokenizer":
    """The tokenizer of a vocabulary and ranked merges, without BOS and EOS.

    Raises:
        TokenizerError: merges of tokens that are not in the vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TokenizerError(f"{source}: vocabulary and merges do not fit: {error}") from None
    inner = Tokenizer(model)

    def cut(patterns: tuple[str, ...]) -> list[Any]:
        return [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in patterns]

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = [*cut(pre.patterns), to_bytes, *cut(pre.of_bytes)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if pre.nfc:
        inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
    return inner
