"""Limits on the work of one rendering of a chat template.

jinja2's sandbox keeps a template from reaching Python, not from looping for ever or making a string
of gigabytes. Here every loop turn, call, filter and piece of text is charged to a budget, and what
could grow by more than its inputs is checked before it is made. Counts come first, so that the
same template fails in the same way on every machine; the clock is the last resort.
"""

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

MAX_STEPS = 500_000  # loop turns, calls and filters
MAX_CHARS = 16 * 1024 * 1024  # of one string (or items of one list)
MAX_WORK = 4 * MAX_CHARS  # of all strings made
MAX_SECONDS = 5.0
MAX_WIDTH = 10_000  # to pad or indent text to
MAX_JSON_INDENT = 16
_MAX_BITS = 4096  # of a product or power

# Everything else that a built-in type offers is refused: `translate`, `to_bytes`, `expandtabs`, ...
_STR_METHODS = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum",
    "isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper",
    "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace",
    "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper", "zfill",
})  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    float: frozenset({"is_integer"}),
}
_WIDE_FORMAT = re.compile(r"\d{6,}|\*|\{[^{}]*\{")  # a width of 100000 or one taken from the data


class BudgetError(Exception):
    """A template asked for more than a rendering may use."""


class Budget:
    """What is left for one rendering.

    Attributes:
        mark: what `{% generation %}` blocks begin and end with, where their places are wanted.
    """

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        self.steps = MAX_STEPS
        self.work = MAX_WORK
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """One loop turn, call or filter."""
        self.steps -= 1
        if self.steps < 0:
            raise BudgetError(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise BudgetError(f"it takes more than {MAX_SECONDS:g} seconds")

    def charge(self, value: Any) -> Any:
        """Takes the size of a new string or container off the budget, and returns it."""
        if isinstance(value, str | list | tuple | dict):
            self.reserve(len(value))
            self.work -= len(value)
            if self.work < 0:
                raise BudgetError(f"it makes more than {MAX_WORK} characters of text")
        return value

    def reserve(self, size: int) -> None:
        """Refuses what is about to be made if it is too large."""
        if size > MAX_CHARS:
            raise BudgetError(f"it makes a value of more than {MAX_CHARS} characters or items")

    def measure(self, value: Any, indent: int = 0, depth: int = 0) -> int:
        """About how long `value` is as text; stops with an error as soon as that is too long.

        Lists may hold one list many times, so their text can be exponential in their memory.
        """
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, dict):
            size = 2
            for key, item in value.items():
                size += self.measure(key) + self.measure(item, indent, depth + 1)
                self.reserve(size := size + 4 + indent * depth)
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            size = 2
            for item in value:
                size += self.measure(item, indent, depth + 1)
                self.reserve(size := size + 2 + indent * depth)
        elif type(value).__name__ in ("Namespace", "LoopContext", "Cycler", "Joiner"):
            raise BudgetError(f"it prints a {type(value).__name__}")
        else:
            size = 32
        self.reserve(size)
        return size

    def text(self, value: Any, limit: int = MAX_CHARS) -> str:
        """A string as it is, else `str(value)` measured before it is made; charged."""
        if not isinstance(value, str):
            self.measure(value)
            value = str(value)
        if len(value) > limit:
            raise BudgetError(f"it filters a text of more than {limit} characters in that way")
        return self.charge(value)

    def binary(self, operator: str, left: Any, right: Any) -> None:
        """Checks `left operator right` before it is computed."""
        if operator == "%" and isinstance(left, str):
            self.format(left, left.count("%"), right)
        elif operator == "+" and isinstance(left, str | list | tuple):
            self.reserve(len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))
        elif operator == "*":
            self._product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() * abs(right))

    def _bits(self, bits: int) -> None:
        if bits > _MAX_BITS:
            raise BudgetError(f"it makes a number of more than {_MAX_BITS} bits")

    def _product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() + right.bit_length())
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                self.reserve(len(sequence) * count)

    def format(self, template: str, fields: int, values: Any) -> None:
        """Checks a `%` or `.format`: each field may show all of the values."""
        if _WIDE_FORMAT.search(template):
            raise BudgetError("it formats with a width that is too large or comes from the data")
        self.reserve(len(template) + fields * self.measure(values))

    def width(self, value: Any, limit: int = MAX_WIDTH) -> None:
        """Refuses to pad or indent by much; `value` is a number of spaces or the text itself."""
        size = value if isinstance(value, int) else len(value) if isinstance(value, str) else 0
        if size > limit:
            raise BudgetError(f"it pads or indents by more than {limit}")

    def replace(self, text: str, old: str, new: str) -> None:
        """Checks a replacement: every `old` could become `new`."""
        self.reserve(len(text) + (len(text) // max(len(old), 1) + 1) * len(new))

    def method(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
        """Checks a call of a method of a built-in type, or of a string marked safe."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if not isinstance(function, BuiltinMethodType) and not isinstance(owner, str):
            return
        kind = str if isinstance(owner, str) else type(owner)
        if name not in _METHODS.get(kind, ()):
            raise BudgetError(f"it calls {kind.__name__}.{name}, which is not allowed")
        if not isinstance(owner, str) or not args:
            return
        if name in ("center", "ljust", "rjust", "zfill"):
            self.width(args[0])
        elif name == "join":
            items = (item for item in args[0] if isinstance(item, str))
            self.reserve(sum(len(item) + len(owner) for item in items))
        elif name == "replace" and len(args) > 1:
            self.replace(owner, str(args[0]), str(args[1]))

    def turns(self, iterable: Iterable[Any]) -> "Turns":
        """The iterable, charged for each item that is taken."""
        return Turns(self, iterable)


CURRENT: ContextVar[Budget] = ContextVar("budget")


def current_budget() -> Budget:
    """The budget of the rendering that this code runs in."""
    return CURRENT.get()


class Turns:
    """An iterable whose every item costs a step; it has a length where the original has."""

    def __init__(self, budget: Budget, iterable: Iterable[Any]) -> None:
        self._budget, self._iterable = budget, iterable

    def __iter__(self) -> Iterator[Any]:
        step = self._budget.step
        for item in self._iterable:
            step()
            yield item

    def __bool__(self) -> bool:
        return bool(self._iterable)

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # TypeError where there is none
