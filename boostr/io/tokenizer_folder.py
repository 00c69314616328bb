"""The tokenizer of a Hugging Face model folder: tokenizer.json and the files around it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boostr.errors import TokenizerError
from boostr.io.special_tokens import SpecialTokens, surround

if TYPE_CHECKING:
    import tokenizers

_MAX_FILE = 256 * 1024 * 1024
_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


def load_folder(folder: Path) -> tuple["tokenizers.Tokenizer", SpecialTokens]:
    """The tokenizer and special tokens of a folder.

    Raises:
        TokenizerError: a file is missing or malformed, or names a token that does not exist.
    """
    config = _read_json(folder / "tokenizer_config.json")
    inner = _read_tokenizer(folder)
    _add_missing(inner, config, folder)
    names = _names(inner, {**_read_json(folder / "special_tokens_map.json"), **config}, folder)
    _mark_special(inner, names)
    _surround(inner, config, names)
    eos = inner.token_to_id(names["eos_token"]) if "eos_token" in names else None
    return inner, SpecialTokens(names, () if eos is None else (eos,), _templates(folder, config))


def _read_text(path: Path) -> str | None:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise TokenizerError(f"{path}: over the limit of {_MAX_FILE} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    text = _read_text(path)
    try:
        value = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    text = _read_text(path)
    if text is None:
        found = [n for n in ("tokenizer.model", "vocab.txt", "vocab.json") if (folder / n).exists()]
        raise TokenizerError(
            f"{path}: no such file{f' (only {found[0]})' if found else ''}; boostr reads "
            "tokenizer.json, which transformers writes with AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder)"
        )
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TokenizerError(f"{path}: not a tokenizer: {error}") from None


def _add_missing(inner: "tokenizers.Tokenizer", config: dict[str, Any], folder: Path) -> None:
    """Adds tokens of `added_tokens_decoder` that tokenizer.json lacks, at exactly their ids."""
    from tokenizers import AddedToken

    path, table = folder / "tokenizer_config.json", config.get("added_tokens_decoder") or {}
    try:
        rows = sorted((int(id_), row["content"], row) for id_, row in table.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{path}: added_tokens_decoder must map ids to objects with 'content'"
        ) from None
    for id_, content, row in rows:
        if inner.token_to_id(content) is None:
            flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
            token = AddedToken(content, **{flag: bool(row.get(flag)) for flag in flags})
            (inner.add_special_tokens if token.special else inner.add_tokens)([token])
        if inner.token_to_id(content) != id_:
            raise TokenizerError(
                f"{path}: added token {content!r:.80} must have id {id_}, but tokenizer.json gives "
                f"{inner.token_to_id(content)}; the two files are of different models"
            )


def _names(inner: "tokenizers.Tokenizer", config: dict[str, Any], folder: Path) -> dict[str, str]:
    """The named special tokens; each is a string, or an object with its text in 'content'."""
    names = {}
    for name in _NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise TokenizerError(f"{folder}: {name} must be a string, got {value!r:.80}")
        if inner.token_to_id(text) is not None:
            names[name] = text
        elif name == "eos_token":
            raise TokenizerError(f"{folder}: eos_token {text!r} is not in the vocabulary")
    return names


def _mark_special(inner: "tokenizers.Tokenizer", names: dict[str, str]) -> None:
    """Named special tokens are special even where tokenizer.json lists them as plain ones."""
    from tokenizers import AddedToken

    added = {token.content: token.special for token in inner.get_added_tokens_decoder().values()}
    plain = [text for text in dict.fromkeys(names.values()) if not added.get(text)]
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in plain])


def _surround(inner: "tokenizers.Tokenizer", config: dict[str, Any], names: dict[str, str]) -> None:
    """`add_bos_token` and `add_eos_token`, where set, win (as in transformers)."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    ends = []
    for name in ("bos_token", "eos_token"):
        text = names.get(name) if config.get(f"add_{name}") else None
        id_ = None if text is None else inner.token_to_id(text)
        ends.append(None if text is None or id_ is None else (text, id_))
    surround(inner, *ends)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name: chat_template.jinja wins over tokenizer_config.json."""
    value = config.get("chat_template")
    if value is None:
        value = _read_json(folder / "chat_template.json").get("chat_template")
    rows = value if isinstance(value, list) else [{"name": "default", "template": value}]
    templates = {}
    for row in rows if value is not None else ():
        name, text = (row.get("name"), row.get("template")) if isinstance(row, dict) else (0, 0)
        if not isinstance(name, str) or not isinstance(text, str):
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: chat_template must be a string, or a list of "
                "objects with 'name' and 'template'"
            )
        templates[name] = text
    file = _read_text(folder / "chat_template.jinja")
    if file is not None:
        templates["default"] = file
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_text(path) or ""
    return templates
