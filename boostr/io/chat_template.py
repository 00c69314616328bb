"""Renders the chat templates that come with models. The only file that imports jinja2.

A template is a program from a stranger. It runs in jinja2's immutable sandbox with no loader, sees
plain data only (strings, numbers, lists, dicts), and has a `Budget` for its work.
"""

import functools
import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from boostr.errors import TokenizerError
from boostr.io.template_budget import CURRENT, Budget, BudgetError, current_budget
from boostr.io.template_filters import bounded_filters, charged, join_text

MAX_SOURCE = 128 * 1024  # characters; the longest of 70 known templates has 18 thousand
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what templates read
_MARK = "BOOSTRGOESONHERE"  # plain letters: templates may escape or split at others
_HAS_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
_GLOBALS = ("cycler", "dict", "joiner", "namespace", "range")
# no template can spell these
_CHARGE, _TURNS, _CONCAT, _PLACE = "charge text", "count turns", "join text", "mark place"


def render(
    source: str, variables: Mapping[str, Any], name: str = "chat template", mark: str = ""
) -> str:
    """The text that a template gives for `variables`, which must be plain data.

    Offers what transformers offers: `raise_exception`, `strftime_now`, `tojson` without HTML
    escapes, `break` and `continue`, `{% generation %}` blocks (rendered as `{% with %}`); blocks
    are trimmed. `mark` stands where such a block begins and where it ends.

    Raises:
        TokenizerError: a syntax error, an error that the template raises, or a limit; `name` says
            which template.
    """
    if len(source) > MAX_SOURCE:
        raise TokenizerError(f"{name}: {len(source)} characters, the limit is {MAX_SOURCE}")
    token = CURRENT.set(Budget(mark))
    try:
        template = _compile(source)
        return _collect(template, {key: plain(value, key) for key, value in variables.items()})
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{name}: line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise TokenizerError(f"{name}: {error.message or type(error).__name__}") from None
    except BudgetError as error:
        raise TokenizerError(f"{name} is refused: {error}") from None
    except (RecursionError, MemoryError) as error:
        raise TokenizerError(f"{name} is refused: {type(error).__name__}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{name}: {error}") from None
    except Exception as error:  # whatever Python raises inside of the template
        raise TokenizerError(f"{name}: {type(error).__name__}: {error}") from None
    finally:
        CURRENT.reset(token)


def render_spans(
    source: str, variables: Mapping[str, Any], name: str
) -> tuple[str, list[tuple[int, int]] | None]:
    """As `render`, and where in the text (start, end) what `{% generation %}` blocks made lies;
    None if the template has no such block."""
    if not _HAS_GENERATION.search(source):
        return render(source, variables, name), None
    pieces = render(source, variables, name, mark := f"\0{secrets.token_hex(8)}\0").split(mark)
    ends = [0, *itertools.accumulate(map(len, pieces))]
    inside = range(1, len(pieces), 2)  # every second piece lies between two marks
    return "".join(pieces), [(ends[i], ends[i + 1]) for i in inside]


def normalized(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no key is None; reasoning has the names that they read."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    if reasoning is None:
        return kept
    return {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def render_unfinished(
    source: str, variables: Mapping[str, Any], name: str, part: str = "content"
) -> str:
    """As `render`, up to the end of the text of the last message, which is to be continued.

    `part` is the key of the text: that of reasoning counts under each of its names.

    Raises:
        TokenizerError: as `render`; the last message has no text, or the template does not show it.
    """
    *before, last = variables["messages"] or [{}]
    text = "text" if part == "content" else f"text in {part!r}"
    marked = _marked(last.get(part))
    if marked is None:
        raise TokenizerError(f"{name}: the last message must have a {text} to continue")
    alike = [key for key in _REASONING if last.get(key) == last[part]] if part in _REASONING else []
    messages = [*before, {**last, **dict.fromkeys([part, *alike], marked)}]
    rendered = render(source, {**variables, "messages": messages}, name)
    end = rendered.rfind(_MARK)
    if end < 0:
        raise TokenizerError(f"{name}: it does not show the {text} of the last message")
    # A template that strips messages has taken the space behind the mark, so strip ours, too.
    stripped = rendered[end + len(_MARK) : end + len(_MARK) + 1] != " "
    return rendered[:end].rstrip() if stripped else rendered[:end]


def _marked(content: Any) -> Any:
    """The content of a message with the mark behind its last text; None if it has no text."""
    if isinstance(content, str):
        return content + _MARK + " "
    parts = list(content) if isinstance(content, list | tuple) else []
    for i in reversed(range(len(parts))):
        if isinstance(parts[i], Mapping) and isinstance(parts[i].get("text"), str):
            parts[i] = {**parts[i], "text": parts[i]["text"] + _MARK + " "}
            return parts
    return None


def plain(value: Any, where: str) -> Any:
    """A deep copy as str, int, float, bool, None, list and dict: nothing with methods of its own.

    Raises:
        TokenizerError: anything else; `where` is the path to it.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r:.40}]") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TokenizerError(
        f"{where}: expected strings, numbers, lists and dicts, got {type(value).__name__}"
    )


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _collect(template: jinja2.Template, variables: dict[str, Any]) -> str:
    budget, pieces, size = current_budget(), [], 0
    for piece in template.generate(variables):
        size += len(piece)
        budget.reserve(size)
        pieces.append(piece)
    return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training. What is set
    inside stays inside, as in transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ends = [nodes.Output([_filter(_PLACE, nodes.Const("", lineno=line))]) for _ in range(2)]
        return [nodes.Scope([ends[0], *body, ends[1]], lineno=line)]


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current_budget()
        budget.binary(operator, left, right)
        return budget.charge(super().call_binop(context, operator, left, right))

    # jinja2 calls this with its own positional names, hence the underscores.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = current_budget()
        budget.step()
        budget.method(__obj, args, kwargs)
        return budget.charge(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`"...".format`, checked; jinja2 has wrapped it already when `call` sees it."""
        safe_format = super().wrap_str_format(value)
        if safe_format is None:
            return None
        template = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            current_budget().format(template, template.count("{"), [*args, *kwargs.values()])
            return safe_format(*args, **kwargs)

        return checked

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _metered(super()._parse(source, name, filename))


def _metered(tree: nodes.Template) -> nodes.Template:
    """Rewrites a syntax tree so that loops, text and `~` go through the budget."""
    for node in tree.find_all(nodes.EvalContextModifier):
        raise jinja2.TemplateSyntaxError("{% autoescape %} is not supported", node.lineno)
    # Lists first: a rewritten node holds the old one, which find_all would meet again.
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filter(_TURNS, loop.iter)
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [
            _filter(_CHARGE, nodes.Const(child.data, lineno=child.lineno))
            if isinstance(child, nodes.TemplateData)
            else child
            for child in output.nodes
        ]
    _replace_concat(tree)
    return tree


def _filter(name: str, node: nodes.Node) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.set_environment(_environment())
    return made


def _replace_concat(parent: nodes.Node) -> None:
    """Makes `a ~ b` a filter over [a, b]."""
    for field, value in parent.iter_fields():
        if isinstance(value, list):
            value[:] = [_without_concat(item) for item in value]
        else:
            setattr(parent, field, _without_concat(value))


def _without_concat(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concat(value)
    if isinstance(value, nodes.Concat):
        return _filter(_CONCAT, nodes.List(value.nodes, lineno=value.lineno))
    return value


@functools.cache
def _environment() -> _Environment:
    env = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # constants would be folded outside of any budget
        finalize=jinja2.pass_context(lambda context, value: _finalize(value)),
        extensions=[_Generation, loopcontrols],
    )
    env.filters = bounded_filters()
    internal = {_CHARGE: _charge, _TURNS: _turns, _CONCAT: _concat, _PLACE: _place}
    for name, function in internal.items():  # pass_context: never folded into a constant
        env.filters[name] = jinja2.pass_context(
            lambda context, value, function=function: function(value)
        )
    env.tests = {name: charged(function) for name, function in env.tests.items()}
    env.globals = {name: env.globals[name] for name in _GLOBALS} | {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return env


def _finalize(value: Any) -> Any:
    return value if isinstance(value, jinja2.Undefined) else current_budget().text(value)


def _charge(value: str) -> str:
    return current_budget().charge(value)


def _turns(value: Any) -> Any:
    return current_budget().turns(value)


def _concat(values: list[Any]) -> str:
    return join_text(values)


def _place(_: str) -> str:
    return current_budget().mark


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(current_budget().text(message))
