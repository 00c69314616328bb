"""modules.json of sentence-transformers: what a folder is made of. Nothing in it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from boostr.engine.inputs import text_list
from boostr.errors import ModelFileError, OptionError
from boostr.io.settings import TABLES, Settings, read_json_file, read_settings

AFTER = ("Dense", "LayerNorm", "Normalize", "Dropout")  # modules that take and give vectors
# What a folder may begin with. `Transformer` alone is a classifier, with `LogitScore` a reranker.
_BEGINNINGS = (("Transformer", "Pooling"), ("StaticEmbedding",))
_WHOLES = (("Transformer",), ("Transformer", "LogitScore"))
_KNOWN = ("Transformer", "Pooling", "StaticEmbedding", "LogitScore", *AFTER)


@dataclass(frozen=True)
class Module:
    """A row of modules.json: a name of `_KNOWN`, and its folder."""

    kind: str
    path: str


def read_modules(folder: Path) -> list[Module]:
    """The rows of modules.json; [] without it.

    Raises:
        ModelFileError: modules that are not known, in another order, or out of the folder.
    """
    file = folder / "modules.json"
    rows = read_json_file(file)
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ModelFileError(f"{file}: expected a list of objects")
    modules = [_module(Settings(row, str(file), TABLES["modules.json"])) for row in rows]
    kinds = tuple(module.kind for module in modules)
    begins = next((b for b in _BEGINNINGS if kinds[: len(b)] == b), None)
    if kinds not in _WHOLES and (begins is None or not {*kinds[len(begins) :]} <= {*AFTER}):
        orders = "; ".join(", ".join(order) for order in (*_BEGINNINGS, *_WHOLES))
        raise ModelFileError(
            f"{file}: expected a Transformer, a Pooling and what follows (or one of: {orders}), "
            f"got {list(kinds)}"
        )
    return modules


def transformer_folder(folder: Path) -> Path:
    """Where the model itself lies: a subfolder in older sentence-transformers folders."""
    modules = read_modules(folder)
    return folder / modules[0].path if modules else folder


def _module(row: Settings) -> Module:
    kind, path = row.get("type", ""), row.get("path", "")
    package, _, name = kind.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or name not in _KNOWN:
        raise ModelFileError(
            f"{row.source}: module {kind!r} is not known; of sentence_transformers boostr has "
            f"{', '.join(_KNOWN)}"
        )
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or Path(path).is_absolute() or "\\" in path:
        raise ModelFileError(f"{row.source}: path {path!r} leaves the folder")
    return Module(name, path)


_LENGTH_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def transformer_settings(folder: Path, table: str = _LENGTH_FILES[0]) -> Settings:
    """The settings of the module Transformer, under whichever of its names the file has."""
    inner = transformer_folder(folder)
    files = [path / name for path in (inner, folder) for name in _LENGTH_FILES]
    found = next((path for path in files if path.is_file()), files[0])
    return read_settings(found, table)


@dataclass(frozen=True)
class Prompts:
    """Texts to put before a text.

    Attributes:
        texts: by name.   default: the one that is put unasked.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    @classmethod
    def from_settings(cls, config: Settings) -> Prompts:
        """Those of a config_sentence_transformers.json."""
        texts = {name: text or "" for name, text in config.get("prompts", {}).items()}
        if not all(isinstance(text, str) for text in texts.values()):
            raise ModelFileError(f"{config.source}: prompts must map names to texts")
        name = config.get("default_prompt_name")
        if name is not None and name not in texts:
            raise ModelFileError(
                f"{config.source}: default_prompt_name {name!r} is not in prompts {list(texts)}"
            )
        return cls(texts, "" if name is None else texts[name])

    def of_pair(self) -> tuple[str, str]:
        """What stands before a query, and before what answers it: those of these names, else the
        default. Source: sentence-transformers' encode_query and encode_document."""

        def first(*names: str) -> str:
            return next((self.texts[n] for n in names if n in self.texts), self.default)

        return first("query"), first("document", "passage", "corpus")

    def choose(self, call: str, name: str | None, prompt: str | None) -> str:
        """The prompt that is asked for, by its name or as a text; else the default.

        Raises:
            OptionError: both, or a name that there is not; `call` is what the message begins with.
        """
        if name is not None and prompt is not None:
            raise OptionError(f"{call}: expected a prompt or a prompt_name, got both")
        if prompt is not None:
            return text_list([prompt], f"{call}: prompt")[0]
        if name is None:
            return self.default
        if not isinstance(name, str) or name not in self.texts:
            known = ", ".join(self.texts) or "none"
            raise OptionError(f"{call}: no prompt {name!r:.80}; the model has {known}")
        return self.texts[name]
