"""All filters of jinja2, each bounded by the budget of the rendering that it is called in.

Most are jinja2's own. What could make much out of little (padding, joining, escaping) is measured
before it is made; what takes time by the square of a text takes short texts only.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
from jinja2 import filters

from boostr.io.template_budget import MAX_JSON_INDENT, current_budget

MAX_SLOW_TEXT = 64 * 1024  # characters for filters that scan a text again and again
Filter = Callable[..., Any]

_BOUNDED = (
    "abs", "attr", "count", "d", "default", "dictsort", "filesizeformat", "first", "float", "int",
    "items", "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr",
    "reverse", "round", "select", "selectattr", "sort", "unique",
)  # fmt: skip
_ON_TEXT = ("capitalize", "lower", "title", "trim", "truncate", "upper", "wordcount")
_ON_SHORT_TEXT = ("striptags", "urlize")
_EXPANDING = {"urlencode": 12, "xmlattr": 6, "forceescape": 6}  # most characters made of one
_BY_TURNS = ("batch", "slice", "groupby")


def bounded_filters() -> dict[str, Filter]:
    """The filters by name, for an environment; every call of one is a step of the budget."""
    known = filters.FILTERS
    table: dict[str, Filter] = {name: known[name] for name in _BOUNDED}
    table |= {name: _first_argument(known[name], _text) for name in _ON_TEXT}
    table |= {name: _first_argument(known[name], _short_text) for name in _ON_SHORT_TEXT}
    for name, factor in _EXPANDING.items():
        table[name] = _first_argument(known[name], functools.partial(_measured, factor=factor))
    table |= {name: _by_turns(known[name]) for name in _BY_TURNS}
    return {name: charged(function) for name, function in {**table, **_OWN}.items()}


def charged(function: Filter) -> Filter:
    """The same, a step of the budget, its result charged to it."""

    @functools.wraps(function)  # keeps jinja2's marks such as pass_environment
    def call(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.step()
        return budget.charge(function(*args, **kwargs))

    return call


def _value_at(function: Filter) -> int:
    """Where the filtered value is: behind what jinja2 passes first."""
    return 1 if hasattr(function, "jinja_pass_arg") else 0


def _first_argument(function: Filter, check: Callable[[Any], Any]) -> Filter:
    at = _value_at(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args[:at], check(args[at]), *args[at + 1 :], **kwargs)

    return call


def _by_turns(function: Filter) -> Filter:
    """For filters that cut a sequence in parts: its items and the parts are turns of a loop."""
    at = _value_at(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        for number in (*args[at + 1 :], *kwargs.values()):
            if isinstance(number, int):
                budget.reserve(number)  # as many parts, or items to fill one up
        made = function(*args[:at], budget.turns(args[at]), *args[at + 1 :], **kwargs)
        return made if isinstance(made, list) else budget.turns(made)

    return call


def _text(value: Any) -> str:
    return current_budget().text(value)


def _short_text(value: Any) -> str:
    return current_budget().text(value, MAX_SLOW_TEXT)


def _measured(value: Any, factor: int) -> Any:
    budget = current_budget()
    budget.reserve(factor * budget.measure(value))
    return value


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Any, d: Any = "", attribute: str | int | None = None
) -> str:
    budget = current_budget()
    if attribute is not None:
        value = [environment.getitem(item, attribute) for item in budget.turns(value)]
    return join_text(value, d)


def join_text(value: Any, separator: Any = "") -> str:
    """The items as text, one behind the other."""
    budget = current_budget()
    between, pieces, size = str(budget.text(separator)), [], 0
    for item in budget.turns(value):
        pieces.append(str(budget.text(item)))
        size += len(pieces[-1]) + len(between)
        budget.reserve(size)
    return between.join(pieces)


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = (str(_text(item)) for item in (value, old, new))
    current_budget().replace(text, old, new)
    return text.replace(old, new, count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    budget, text = current_budget(), _text(value)
    budget.width(width)
    size = width if isinstance(width, int) else len(width)
    budget.reserve(len(text) + (len(text.splitlines()) + 1) * size)
    return filters.do_indent(text, width, first, blank)


def _center(value: Any, width: int = 80) -> str:
    current_budget().width(width)
    return filters.do_center(_text(value), width)


@jinja2.pass_environment
def _wordwrap(
    environment: jinja2.Environment,
    value: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> str:
    text = _short_text(value)
    current_budget().reserve(len(text) * (1 + len(wrapstring or "\n")))
    return filters.do_wordwrap(
        environment, text, width, break_long_words, wrapstring, break_on_hyphens
    )


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment,
    value: Any,
    attribute: str | int | None = None,
    start: Any = 0,
) -> Any:
    budget, total = current_budget(), start
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings; use join")
    for item in budget.turns(value):
        if attribute is not None:
            item = filters.make_attrgetter(environment, attribute)(item)
        budget.binary("+", total, item)
        total = budget.charge(total + item)
    return total


def _pprint(value: Any) -> str:
    current_budget().measure(value, MAX_JSON_INDENT)
    return filters.do_pprint(value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: the HTML escapes of jinja2's own `tojson` are unknown to models."""
    budget = current_budget()
    budget.width(indent, MAX_JSON_INDENT)
    budget.measure(value, MAX_JSON_INDENT if indent else 0)
    pair = (str(separators[0]), str(separators[1])) if separators else None
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
    )


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    template, values = _text(value), kwargs or args
    current_budget().format(template, template.count("%"), list(values))
    return template % values


def _escape(value: Any) -> str:
    return markupsafe.escape(_text(value))


def _safe(value: Any) -> str:
    """Marks text as HTML: what is then added to it with `+` gets escaped, as in transformers."""
    return markupsafe.Markup(_text(value))


_OWN: Mapping[str, Filter] = {
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "center": _center,
    "wordwrap": _wordwrap,
    "sum": _sum,
    "pprint": _pprint,
    "tojson": _tojson,
    "format": _format,
    "escape": _escape,
    "e": _escape,
    "string": _text,
    "safe": _safe,
}
