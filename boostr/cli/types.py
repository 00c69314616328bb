"""Types of command line values. The library says what is valid; here it becomes a usage error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from boostr.errors import BoostrError
from boostr.io.settings import read_json_file


class _Checked(click.ParamType):
    """A text that `check` accepts; what it raises is shown with the option's name."""

    def __init__(self, name: str, check: Callable[[str], None]) -> None:
        self.name, self._check = name, check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            self._check(value)
        except BoostrError as error:
            self.fail(str(error), param, ctx)
        return value


class _Text(click.ParamType):
    """Text for a model: bytes of the command line that are not UTF-8 are refused."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            self.fail(f"not valid UTF-8 at character {error.start}", param, ctx)
        return value


class _JsonFile(click.ParamType):
    """A file that holds a JSON list."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = read_json_file(Path(value))
        except BoostrError as error:
            self.fail(str(error), param, ctx)
        if found is None:
            self.fail(f"{value}: no such file, or an empty one", param, ctx)
        if not isinstance(found, list):
            self.fail(f"{value}: expected a JSON list, got a {type(found).__name__}", param, ctx)
        return found


class _Assignment(click.ParamType):
    """NAME=VALUE; the value is JSON (true, 3, "x"), or else a text as it stands."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        name, equals, text = TEXT.convert(value, param, ctx).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class _TableScheme(click.ParamType):
    """A scheme for embedding and head as the library takes it: none is False, same True."""

    name = "scheme"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bool:
        words = {"none": False, "same": True}
        return words[value] if value in words else SCHEME.convert(value, param, ctx)


class Counts(click.ParamType):
    """Whole numbers with commas between them, each `least` or more: "128,512"."""

    name = "N[,N...]"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers with commas between them", param, ctx)
        if min(numbers) < self.least:
            self.fail(f"must be {self.least} or more, got {min(numbers)}", param, ctx)
        return numbers


def _check_backend(value: str) -> None:
    from boostr import backends
    from boostr.errors import BackendError

    name = value.partition(":")[0]
    if name not in (*backends.names(), "auto"):
        raise BackendError(f"no backend {name!r}; there is {', '.join(backends.names())} and auto")


def _check_dtype(value: str) -> None:
    from boostr.dtypes import bfloat16, float16, float32, parse
    from boostr.errors import DTypeError

    try:
        known = parse(value) in (float32, float16, bfloat16)
    except DTypeError:  # its message lists dtypes that weights cannot have
        known = False
    if not known:
        raise DTypeError(f"must be float32, float16 or bfloat16, got {value!r}")


def _check_scheme(value: str) -> None:
    from boostr.quant.scheme import parse_scheme

    parse_scheme(value)


def _check_kv_form(value: str) -> None:
    from boostr.quant.kv import parse_kv_form

    parse_kv_form(value)


def _check_amount(value: str) -> None:
    from boostr.env import parse_bytes

    parse_bytes(value, "kv_memory")


TEXT = _Text()
JSON_FILE = _JsonFile()
ASSIGNMENT = _Assignment()
BACKEND = _Checked("backend", _check_backend)
DTYPE = _Checked("dtype", _check_dtype)
SCHEME = _Checked("scheme", _check_scheme)
TABLE_SCHEME = _TableScheme()
KV_FORM = _Checked("kv_dtype", _check_kv_form)
AMOUNT = _Checked("amount", _check_amount)
