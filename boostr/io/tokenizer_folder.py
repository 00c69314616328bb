"""The tokenizer of a Hugging Face model folder: tokenizer.json, or what there is instead of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from boostr.errors import TokenizerError
from boostr.io.settings import Settings, read_json_file, read_settings
from boostr.io.special_tokens import SpecialTokens, surround
from boostr.io.text_file import read_text
from boostr.io.tokenizer_files import class_of

if TYPE_CHECKING:
    import tokenizers

_NO_LENGTH = 2**31  # model_max_length is a number such as 1e30 where there is no limit
_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


def load_folder(folder: Path) -> tuple["tokenizers.Tokenizer", SpecialTokens]:
    """The tokenizer and special tokens of a folder.

    Raises:
        TokenizerError: a file is missing or malformed, or names a token that does not exist.
    """
    config = read_settings(folder / "tokenizer_config.json", error=TokenizerError)
    inner, files = _read_tokenizer(folder), None
    if inner is None:
        files = class_of(folder, config)
        inner = files.build(folder, config)
    _normalize(inner, config)
    _add_tokens(inner, config, folder)
    names = _names(inner, config, folder, {} if files is None else files.usual(inner))
    _mark_special(inner, [*names.values(), *_more_special(config)])
    if files is not None:
        files.surround(inner, names, str(folder))
    _surround(inner, config, names)
    eos = inner.token_to_id(names["eos_token"]) if "eos_token" in names else None
    eos_ids, templates = () if eos is None else (eos,), _templates(folder, config)
    side = config.get("truncation_side", "right")
    if side not in ("right", "left"):
        raise TokenizerError(f"{config.source}: truncation_side must be right or left, got {side}")
    return inner, SpecialTokens(names, eos_ids, templates, _max_length(config), side)


def _read_tokenizer(folder: Path) -> "tokenizers.Tokenizer | None":
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    text = read_text(path)
    if text is None:
        return None
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TokenizerError(f"{path}: not a tokenizer: {error}") from None


def _normalize(inner: "tokenizers.Tokenizer", config: Settings) -> None:
    """BERT's normalizer does what tokenizer_config.json says, as in transformers."""
    from tokenizers import normalizers

    bert = inner.normalizer
    if not isinstance(bert, normalizers.BertNormalizer):
        return
    for key, attribute in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if (value := config.get(key)) is not None:
            setattr(bert, attribute, value)
    inner.normalizer = bert


def _add_tokens(inner: "tokenizers.Tokenizer", config: Settings, folder: Path) -> None:
    """Tokens of `added_tokens_decoder`, at exactly their ids; what it says of one wins.

    In older folders added_tokens.json has them, as ids by token.
    """
    from tokenizers import AddedToken

    older = read_json_file(folder / "added_tokens.json", TokenizerError)
    older = {id_: {"content": token} for token, id_ in (older or {}).items()}
    table = config.get("added_tokens_decoder", older)
    try:
        rows = sorted((int(id_), row["content"], row) for id_, row in table.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{config.source}: added_tokens_decoder must map ids to objects with 'content'"
        ) from None
    known = inner.get_added_tokens_decoder()
    for id_, content, row in rows:
        special = bool(row.get("special"))
        flags = {flag: bool(row.get(flag)) for flag in ("lstrip", "rstrip", "single_word")}
        normalized = bool(row.get("normalized", not special))
        token = AddedToken(content, special=special, normalized=normalized, **flags)
        if inner.token_to_id(content) in (None, id_) and repr(known.get(id_)) != repr(token):
            (inner.add_special_tokens if special else inner.add_tokens)([token])
        if inner.token_to_id(content) != id_:
            raise TokenizerError(
                f"{config.source}: added token {content!r:.80} must have id {id_}, but "
                f"tokenizer.json gives {inner.token_to_id(content)}; the two files are of "
                "different models"
            )


def _names(
    inner: "tokenizers.Tokenizer", config: Settings, folder: Path, usual: dict[str, str]
) -> dict[str, str]:
    """The named special tokens; each is a string, or an object with its text in 'content'.

    Where the files say nothing of one, it is the one that is `usual`.
    """
    file = folder / "special_tokens_map.json"
    older = read_settings(file, "tokenizer_config.json", TokenizerError)
    names = {}
    for name in _NAMES:
        value = config.get(name) if name in config else older.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if (
            text is None
            and name not in config
            and inner.token_to_id(usual.get(name, "")) is not None
        ):
            text = usual[name]
        if text is None:
            continue
        if not isinstance(text, str):
            raise TokenizerError(f"{folder}: {name} must be a string, got {value!r:.80}")
        if inner.token_to_id(text) is not None:
            names[name] = text
        elif name == "eos_token":
            raise TokenizerError(f"{folder}: eos_token {text!r} is not in the vocabulary")
    return names


def _more_special(config: Settings) -> list[str]:
    """Texts of special tokens without a name of their own."""
    more: list[Any] = [*config.get("additional_special_tokens", [])]
    extra = config.get("extra_special_tokens", [])
    more += extra.values() if isinstance(extra, dict) else extra
    texts = [row.get("content") if isinstance(row, dict) else row for row in more]
    return [text for text in texts if isinstance(text, str)]


def _mark_special(inner: "tokenizers.Tokenizer", texts: list[str]) -> None:
    """Special tokens of the vocabulary that tokenizer.json lists as plain ones."""
    from tokenizers import AddedToken

    added = {token.content: token.special for token in inner.get_added_tokens_decoder().values()}
    known = [text for text in dict.fromkeys(texts) if inner.token_to_id(text) is not None]
    plain = [text for text in known if not added.get(text)]
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in plain])


def _surround(inner: "tokenizers.Tokenizer", config: Settings, names: dict[str, str]) -> None:
    """`add_bos_token` and `add_eos_token` where they say so, else as in tokenizer.json."""
    around, bare = (inner.encode("", add_special_tokens=flag).ids for flag in (True, False))
    ends: list[tuple[str, int] | None] = []
    changed = False
    for name, at in (("bos_token", 0), ("eos_token", -1)):
        text = names.get(name)
        id_ = None if text is None else inner.token_to_id(text)
        there = around != bare and around[at] == id_
        wanted = config.get(f"add_{name}", there)
        changed |= wanted != there and (id_ is not None)
        ends.append((text, id_) if wanted and text is not None and id_ is not None else None)
    if changed:
        surround(inner, ends[0], ends[1])


def _max_length(config: Settings) -> int | None:
    length = config.get("model_max_length")
    if length is None or length >= _NO_LENGTH:
        return None
    if length < 1:
        raise TokenizerError(f"{config.source}: model_max_length must be 1 or more, got {length}")
    return int(length)


def _templates(folder: Path, config: Settings) -> dict[str, str]:
    """Chat templates by name: chat_template.jinja wins over tokenizer_config.json."""
    value = config.get("chat_template")
    if value is None:
        older = read_json_file(folder / "chat_template.json", TokenizerError)
        value = older.get("chat_template") if isinstance(older, dict) else None
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
    file = read_text(folder / "chat_template.jinja")
    if file is not None:
        templates["default"] = file
    for path in sorted(
        (folder / "additional_chat_templates").glob("[!.]*.jinja")
    ):  # no ._x of macOS
        templates[path.stem] = read_text(path) or ""
    return templates
