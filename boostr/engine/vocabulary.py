"""Whether a tokenizer and a model belong together."""

from __future__ import annotations

from boostr.errors import ModelFileError
from boostr.io.tokenizer import Tokenizer
from boostr.models.base import Model


def check_vocabulary(module: Model, tokenizer: Tokenizer | None) -> None:
    """Every id that the tokenizer makes of ordinary text must have a row in the embedding.

    Added tokens may lie beyond it (a pad token, say, that a fine-tune never used): only a text that
    spells one out has its id, and is then refused.
    """
    rows = module.config.vocab_size
    if tokenizer is None or tokenizer.vocab_size <= rows:
        return
    spare = tokenizer.inner.get_added_tokens_decoder()
    beyond = [i for i in tokenizer.inner.get_vocab().values() if i >= rows and i not in spare]
    if beyond:
        raise ModelFileError(
            f"{tokenizer.source}: the tokenizer has {tokenizer.vocab_size} tokens, the model's "
            f"embedding only {rows}; the files do not belong together"
        )
