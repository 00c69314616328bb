"""Chat templates: what they offer, how they fail, and that they can neither escape nor hang."""

import datetime

import pytest

from boostr.errors import TokenizerError
from boostr.io.chat_template import normalized, render, render_spans, render_unfinished
from boostr.io.template_budget import MAX_CHARS

MESSAGES = [{"role": "user", "content": "hi <b> é"}, {"role": "assistant", "content": "yes"}]


def show(source: str, **variables: object) -> str:
    return render(source, {"messages": MESSAGES, **variables}, "T")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\n", "  user\n  assistant\n"),
        ("{{ messages[0]['content'] }}", "hi <b> é"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hi <b> é"}'),
        ("{{ {'b': [1]} | tojson(indent=2) }}", '{\n  "b": [\n    1\n  ]\n}'),
        ("{{ {'a': 1} | tojson(separators=(',', ':')) }}", '{"a":1}'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("a{% generation %}b{{ messages|length }}{% endgeneration %}c", "ab2c"),
        ("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}", "1False"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "2"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
         "1/2False 2/2True "),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ f(1) ~ none }}", "<a><1>None"),
        ("{{ missing }}{{ missing is defined }}{{ missing ~ 'x' }}", "Falsex"),
        ("{{ '%s-%03d' % ('a', 7) }}{{ '{:>4}|{b}'.format(1, b=2) }}", "a-007   1|2"),
        ("{{ 'ab\nc' | indent(2, first=true) }}", "  ab\n  c"),
        ("{{ [1, 'a', none] | join(', ') }}", "1, a, None"),
        ("{{ messages | map(attribute='role') | join('+') }}", "user+assistant"),
        ("{{ (messages | selectattr('role', 'eq', 'user') | list | first).content }}", "hi <b> é"),
        ("{{ '<b>' | safe + '<i>' }}", "<b>&lt;i&gt;"),  # jinja2's own rule, as transformers has it
        ("{{ limit | default(1000000) }}", "1000000"),
        ("{% if messages[0].content.startswith('hi') and 'b' in messages[0].content %}1{% endif %}",
         "1"),
    ],
)  # fmt: skip
def test_renders_as_transformers_does(source: str, expected: str) -> None:
    assert show(source) == expected


@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_goes_on(read: str, name: str) -> None:
    """Whichever of its names the message has, the caller says and the template reads."""
    source = f"<think>{{{{ messages[-1].{read} }}}}</think>{{{{ messages[-1].content }}}}"
    variables = {"messages": [normalized({"content": "no", name: "I see "})]}
    assert render_unfinished(source, variables, "T", name) == "<think>I see "
    with pytest.raises(TokenizerError, match="must have a text in 'thoughts' to continue"):
        render_unfinished(source, variables, "T", "thoughts")


def test_strftime_now() -> None:
    assert show("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


def test_raise_exception_carries_its_message_and_the_name_of_the_template() -> None:
    with pytest.raises(TokenizerError, match=r"^T: roles must alternate$"):
        show("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "T: line 1"),
        ("a\n{{ x | nofilter }}", "T: line 2.*nofilter"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.x.y }}", "has no attribute"),
        ("{{ tools | tojson }}{{ ns.x }}", "Undefined"),
        ("{% include 'a' %}", "T: "),
        ("{% import 'a' as b %}", "T: "),
        ("{% extends 'a' %}", "T: "),
        ("{% autoescape true %}x{% endautoescape %}", "autoescape"),
        ("x" * 300_000, "300000 characters"),
    ],
)
def test_a_template_that_fails_names_itself(source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        show(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''|attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | first | attr('__mro__') }}",
        "{{ [''] | map(attribute='__class__.__mro__') | list | tojson }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
        "{{ ['{0.__class__.__mro__}'] | map('format', '') | list }}{{ ''.__class__.x.y }}",
        "{{ ''.format.__self__.__class__.x.y }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ strftime_now.__globals__.__builtins__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.x }}",
        "{{ loop.__class__.x }}{{ range.__class__.__mro__[1] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ dict.mro() }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
        "{{ ().__class__.__bases__[0].__subclasses__()[80].load_module('os') }}",
        "{{ (1).__class__.from_bytes([1], 'big') }}",
        "{{ config.items() }}{{ request.application.__globals__ }}",
        "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__name__ }}{% endfor %}"
        "{{ [].__class__.x }}",
        "{{ (x for x in ()).gi_frame }}",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}{{ x.__class__.__init__ }}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    """Each ends in an error, or in a text that shows nothing of Python."""
    before = [dict(message) for message in MESSAGES]
    try:
        text = show(source)
    except TokenizerError:
        text = ""
    assert "class '" not in text and "function" not in text and "<module" not in text
    assert before == MESSAGES


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ range(10000000000) | list }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ [1] * 10000000000 }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ 'x'.center(10000000000) }}",
        "{{ 'x'.ljust(10000000000) }}{{ '1'.zfill(10000000000) }}",
        "{{ 'a\tb'.expandtabs(10000000000) }}",
        "{{ 'a\nb' | indent(10000000000) }}",
        "{{ {'a': 1} | tojson(indent=10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ 10 ** 9999999 }}",
        "{{ (1).to_bytes(10000000000, 'big') }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}"
        "{% set ns.s = ns.s|replace('x', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}"
        "{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}"
        "{% set ns.s = ns.s.join(['', ns.s, ns.s]) %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}"
        "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='&&&&&&&&') %}{% for i in range(64) %}"
        "{% set ns.s = ns.s | escape | string | replace('', '') %}{% endfor %}{{ ns.s ~ 1 // 0 }}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l | tojson }}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l | upper }}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}"
        "{% endfor %}",
        "{% set ns = namespace(l=['x']) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ namespace(a=ns.l) }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% macro f() %}{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}{% endmacro %}"
        "{{ f() }}",
        "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
        "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
        "{{ range(99999) | map('string') | map('replace', '', 'x' * 99999) | join }}",
        "{{ '" + "('" * 5000 + " }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 20000 + "1 }}",
        "{{ 1" + " + 1" * 30000 + " }}",
        "{{ a" + ".b" * 30000 + " }}",
        "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
        "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    ],
)  # fmt: skip
def test_bombs_are_refused(source: str) -> None:
    """A bomb that went off would be noticed: it needs more time or memory than there is."""
    with pytest.raises(TokenizerError):
        show(source)


def test_a_large_conversation_is_no_bomb() -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 2000
    source = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
    )
    assert render(source, {"messages": messages}) == ("user: " + "x" * 1000 + "\n") * 2000


def test_too_much_text() -> None:
    with pytest.raises(TokenizerError, match=f"more than {MAX_CHARS}"):
        show("{{ text }}", text="x" * (MAX_CHARS + 1))


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}, print, [{"a": b""}]])
def test_only_plain_data_reaches_a_template(value: object) -> None:
    with pytest.raises(TokenizerError, match="expected strings, numbers, lists and dicts"):
        show("x", tools=value)


def test_templates_do_not_share_their_budget_or_state() -> None:
    source = "{% for i in range(90000) %}{% endfor %}{% set x = (x or 0) + 1 %}{{ x }}"
    assert {show(source) for _ in range(20)} == {"1"}


@pytest.mark.parametrize(
    ("source", "text", "inside"),
    [
        ("{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}\n"
         "{{ m.content }}!{% endgeneration %}\n{% else %}U:{{ m.content }}{% endif %}{% endfor %}",
         "U:hi <b> éA:yes!", ["yes!"]),
        ("{%- generation -%} a {%- endgeneration -%} b{% generation %}{% endgeneration %}",
         "ab", ["a", ""]),
        ("{% macro f() %}{% generation %}x{% endgeneration %}{% endmacro %}{{ f() }}-{{ f() }}",
         "x-x", ["x", "x"]),
        ("{# {% generation #}{{ messages[0].content }}", "hi <b> é", []),
    ],
)  # fmt: skip
def test_where_the_assistant_speaks(source, text, inside):
    got, spans = render_spans(source, {"messages": MESSAGES}, "T")
    assert got == text == show(source)
    assert [text[start:end] for start, end in spans or []] == inside


def test_a_template_that_does_not_say_it():
    assert render_spans("{{ messages | length }}", {"messages": MESSAGES}, "T") == ("2", None)
