"""Filters of chat templates: all of jinja2's, with its results, and none that can grow or hang."""

from __future__ import annotations

import jinja2
import pytest

from boostr.errors import TokenizerError
from boostr.io.chat_template import render
from boostr.io.template_filters import bounded_filters

VARIABLES = {
    "messages": [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d"}],
    "text": "one two\nthree-four <b>five</b> https://x.y/z me@x.org",
    "numbers": [3, 1, 2, 1],
    "pairs": {"b": 2, "a": "x y&z"},
}

CALLS = [
    "messages | map(attribute='content') | map('length') | sum", "numbers | sum(start=10)",
    "[{'n': {'m': 2}}] | sum(attribute='n.m')", "[[1], [2]] | sum(start=[])",
    "messages | groupby('role')", "messages | groupby('none', default='x') | length",
    "numbers | batch(3) | list", "numbers | batch(3, 'x') | list", "'abcd' | batch(3) | list",
    "numbers | slice(3) | list", "numbers | slice(3, 'x') | map('length') | list",
    "(numbers | batch(2) | first) ~ (numbers | slice(2) | first)",
    "text | wordcount", "text | truncate(9)", "text | truncate(9, true, '!', 0)",
    "text | truncate(5, end='')", "text | urlencode", "pairs | urlencode", "[('a', 1)] | urlencode",
    "text | striptags", "text | urlize", "text | urlize(8, nofollow=true, target='_top')",
    "text | wordwrap(7)", "text | wordwrap(5, false, '|')", "text | center(90)", "'x' | center",
    "1234567 | filesizeformat", "1234567 | filesizeformat(true)", "'<' | forceescape",
    "'<' | safe | forceescape", "pairs | pprint", "text | pprint", "pairs | xmlattr",
    "pairs | xmlattr(false)", "['a'] | random", "[] | random is defined",
    "messages[0] | attr('keys') is defined", "messages | map('attr', 'x') | list | length",
    "messages[0] | attr('no')", "numbers | batch(2) | map('sum') | list",
    "-3 | abs", "'aBc' | capitalize", "text | count", "none | d('x')", "no | default('y')",
    "pairs | dictsort", "pairs | dictsort(true, 'key', true)", "text | e", "text | escape",
    "numbers | first", "'3.5' | float", "'%s' | format(1)", "text | indent(3, true)", "'7' | int",
    "pairs | items | list", "numbers | join('-')", "messages | join(',', attribute='role')",
    "numbers | last", "numbers | length", "'ab' | list", "'AB' | lower",
    "messages | map(attribute='no', default='x') | join", "numbers | max", "numbers | min",
    "numbers | reject('odd') | list", "messages | rejectattr('role', 'eq', 'user') | list",
    "text | replace('o', '0', 1)", "numbers | reverse | list", "2.75 | round(1, 'floor')",
    "text | safe", "numbers | select('odd') | list", "messages | selectattr('role') | list",
    "numbers | sort(reverse=true)", "messages | sort(attribute='role')", "3 | string",
    "'a bc' | title", "' a ' | trim", "'..a' | trim('.')", "numbers | unique | list",
    "'ab' | upper",
]  # fmt: skip


def test_every_filter_of_jinja2_is_there_and_tested() -> None:
    names = set(jinja2.filters.FILTERS)
    assert set(bounded_filters()) == names
    own = {"tojson"}  # without HTML escapes, as in transformers: tested with the templates
    assert {name for name in names - own if not any(_calls(call, name) for call in CALLS)} == set()


def _calls(source: str, name: str) -> bool:
    words = source.replace("(", " ").replace(",", " ").replace(")", " ").replace("'", " ").split()
    return name in words


@pytest.mark.parametrize("call", CALLS)
def test_as_jinja2(call: str) -> None:
    source = "{{ " + call + " }}"
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert render(source, VARIABLES) == plain.from_string(source).render(**VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ['a', 'b'] | sum }}", "{{ ['a'] | sum(start='') }}", "{{ 1 | sum }}",
        "{{ {'a b': 1} | xmlattr }}", "{{ 5 | batch(2) | list }}",
        "{{ 'a' | wordwrap(0) }}", "{{ messages | groupby }}", "{{ [1] | slice(0) | list }}",
        "{{ messages | attr('append')(1) }}", "{{ ('' | attr('__class__')).mro() }}",
        "{{ ('{0.__class__}' | attr('format'))(1) ~ 1 // 0 }}",
        "{{ messages | sum(attribute='__class__') }}",
        # what would grow or hang
        "{{ 'x' | center(10000000000) }}", "{{ [1] | batch(10000000000, 'x') | list }}",
        "{{ [1] | batch(linecount=10000000000, fill_with='x') | list }}",
        "{{ [1] | slice(10000000000) | list }}", "{{ [1] | slice(slices=10000000) | list }}",
        "{{ ('x' * 9999999) | batch(1) | list | length }}",
        "{{ ('x' * 9999999) | groupby('y') | length }}",
        "{{ ('<!---->' * 99999) | striptags }}", "{{ ('(' * 999999) | urlize }}",
        "{{ ('x' * 999999) | wordwrap(1) }}", "{{ ('x' * 9999) | wordwrap(1, true, 'y' * 9999) }}",
        "{{ ('&' * 9999999) | forceescape }}", "{{ ('&' * 9999999) | urlencode }}",
        "{{ {'a': '&' * 9999999} | xmlattr }}",
        "{{ ([[1] * 9999] * 9999) | sum(start=[]) | length }}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l | pprint }}",
    ],
)  # fmt: skip
def test_what_is_refused(source: str) -> None:
    with pytest.raises(TokenizerError):
        render(source, VARIABLES)


@pytest.mark.parametrize(
    "source", ["{{ '' | attr('__class__') }}", "{{ [''] | map('attr', '__class__') | join }}",
               "{{ [''] | map(attribute='__class__') | join }}"],
)  # fmt: skip
def test_attributes_of_python_are_not_there(source: str) -> None:
    assert render(source, VARIABLES) == ""
