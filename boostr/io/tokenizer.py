"""Text to token ids and back, from the files of a model folder or a GGUF file's metadata."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from boostr.errors import TokenizerError
from boostr.io.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer_folder import load_folder
from boostr.io.tokenizer_gguf import build_from_gguf

if TYPE_CHECKING:
    import tokenizers


def required(tokenizer: "Tokenizer | None", source: str) -> "Tokenizer":
    """The tokenizer of a model, for what needs text.

    Raises:
        TokenizerError: the model was loaded without one.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"{source}: this model has no tokenizer, so token ids in and out work and text does "
            "not; it would be read from the GGUF file, or from tokenizer.json (or what it is made "
            "of), which transformers writes with AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder)"
        )
    return tokenizer


class Tokenizer:
    """A `tokenizers.Tokenizer` with what generation needs beside it.

    Text is never truncated or padded, whatever the files say. `source` names the file in errors.
    """

    def __init__(
        self, inner: "tokenizers.Tokenizer", special: SpecialTokens, source: str = "tokenizer"
    ) -> None:
        self.inner, self.special, self.source = inner, special, source
        inner.no_truncation()
        inner.no_padding()
        added = inner.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.vocab_size: int = max(inner.get_vocab_size(), max(added, default=-1) + 1)
        """One more than the largest id. The model's embedding may have more rows than that."""

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Reads tokenizer.json and the files around it, or a vocabulary (docs/tokenizers.md).

        Raises:
            TokenizerError: a file is missing or malformed, or names a token that does not exist.
        """
        inner, special = load_folder(Path(path))
        return cls(inner, special, str(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF metadata") -> Self:
        """Builds the tokenizer that a GGUF file describes.

        Raises:
            TokenizerError: another kind of tokenizer, or metadata that is not whole or not known.
        """
        inner, special = build_from_gguf(metadata, source)
        return cls(inner, special, source)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written out in it become their ids.

        `add_special_tokens` adds what the model expects around a text (a BOS, [CLS] and [SEP], or
        nothing); turn it off for text that came out of `apply_chat_template`.

        Raises:
            TokenizerError: not a str, or one with half surrogate pairs (bytes that are not UTF-8).
        """
        try:
            return self.inner.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:
            raise TokenizerError(self._why_not(text, error)) from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; no spaces are "cleaned up".

        Bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary, which padded embeddings
        have, give no text.

        Raises:
            TokenizerError: an id that is negative or no integer.
        """
        try:
            ids = [operator.index(id_) for id_ in ids]
        except TypeError:
            raise TokenizerError(
                f"{self.source}: expected a list of whole numbers to decode, got {ids!r:.80}"
            ) from None
        if any(not 0 <= id_ < 2**32 for id_ in ids):
            bad = next(id_ for id_ in ids if not 0 <= id_ < 2**32)
            raise TokenizerError(f"{self.source}: token ids must be >= 0, got {bad}")
        if skip_special_tokens:
            ids = [id_ for id_ in ids if id_ not in self._special_ids]
        return self.inner.decode(ids, skip_special_tokens=False)

    def stream(self, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for one sequence: `.add(id)` gives text as it completes.

        `.finish()` gives the rest. The pieces joined are what `decode` gives for all ids together,
        or, where the sequence goes on `after` other ids, what that text then has more: a decoder of
        Llama 2 drops the space before the first token only.
        """
        skip = self._special_ids if skip_special_tokens else frozenset[int]()
        if type(self.inner.decoder).__name__ == "ByteLevel":
            return ByteLevelDetokenizer(self.inner, skip)
        return WindowDetokenizer(self.inner, skip, after)

    @property
    def bos_id(self) -> int | None:
        """The id that starts a sequence, if the model declares one."""
        return self._id_of("bos_token")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation. A generation_config.json may know more of them."""
        return self.special.eos_ids

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest text that the files say it is for; `encode` does not cut."""
        return self.special.max_length

    def lower_case(self) -> None:
        """From now on every text is lower-cased first; special tokens written out stay."""
        from tokenizers import normalizers

        inner, first = self.inner, normalizers.Lowercase()
        before = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = normalizers.Sequence([first, *before])  # type: ignore[assignment]

    @property
    def pad_id(self) -> int | None:
        """The padding id, if the model declares one. boostr itself never pads."""
        return self._id_of("pad_token")

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it (byte-level: "Ġthe"), or None."""
        return self.inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id as the vocabulary writes it, or None."""
        return self.inner.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def is_special(self, token_id: int) -> bool:
        """True for control tokens: those that `decode` leaves out."""
        return token_id in self._special_ids

    def special_text(self, token_id: int) -> str | None:
        """The text of a special token, which `decode` leaves out; None for any other."""
        return self.inner.id_to_token(token_id) if token_id in self._special_ids else None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation; encode it with `add_special_tokens=False`.

        `template` picks one of several named templates; without it, "tool_use" is taken for
        `tools` where there is one, else "default". Other keywords reach the template as variables.
        `continue_final_message` ends the prompt where the text of the last message ends, or that of
        the key it names ("reasoning_content"), so that it is continued; there is no generation
        prompt then. As in transformers, keys of messages
        that are None are left out, reasoning is found under each of its names, and `documents` is
        None unless given.

        Raises:
            TokenizerError: no template, an unknown name, `tools` that the default template never
                mentions, or the template failed or refused.
        """
        from boostr.io.chat_template import render, render_unfinished

        source, variables, name = self._chat(messages, tools, template, kwargs)
        variables["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        if not continue_final_message:
            return render(source, variables, name)
        part = "content" if continue_final_message is True else continue_final_message
        return render_unfinished(source, variables, name, part)

    def chat_spans(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The text of a whole conversation, and where (start, end) of its characters the template
        says that the assistant's are, by `{% generation %}`; None if it never does.

        Raises:
            TokenizerError: as `apply_chat_template`.
        """
        from boostr.io.chat_template import render_spans

        source, variables, name = self._chat(messages, tools, None, kwargs)
        return render_spans(source, {**variables, "add_generation_prompt": False}, name)

    def _chat(
        self, messages: Any, tools: Any, template: str | None, arguments: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any], str]:
        """(source of a template, its variables, what to call it)."""
        from boostr.io.chat_template import normalized

        templates = self.special.templates
        if template is None:
            template = "tool_use" if tools and "tool_use" in templates else "default"
        if template not in templates:
            known = ", ".join(sorted(templates)) or "none"
            raise TokenizerError(
                f"{self.source}: no chat template {template!r} (it has: {known}); give plain text, "
                "or on the command line --raw"
            )
        if tools and template == "default" and "tools" not in templates[template]:
            raise TokenizerError(
                f"{self.source}: its chat template takes no tools: the model was not taught to "
                "call functions; describe them in a message, or take another model"
            )
        self._check_messages(messages)
        variables = {
            **self.special.names,
            "documents": None,
            **arguments,
            "messages": [normalized(message) for message in messages],
            "tools": tools,
        }
        return templates[template], variables, f"{self.source}: chat template {template!r}"

    def _check_messages(self, messages: Any) -> None:
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise TokenizerError(
                f"{self.source}: messages must be a list of dicts, got {type(messages).__name__}"
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TokenizerError(
                    f"{self.source}: messages[{i}] must be a dict with a 'role' (and 'content'), "
                    f"got {message!r:.80}"
                )

    def _id_of(self, name: str) -> int | None:
        token = self.special.names.get(name)
        return None if token is None else self.inner.token_to_id(token)

    def _why_not(self, text: object, error: Exception) -> str:
        if not isinstance(text, str):
            return f"{self.source}: expected a str to encode, got {type(text).__name__}"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as bad:
            return (
                f"{self.source}: the text is not valid UTF-8: character {bad.start} is "
                f"{text[bad.start]!r}, half of a surrogate pair; decode the input as UTF-8 first"
            )
        return f"{self.source}: the text cannot be encoded: {error}"
