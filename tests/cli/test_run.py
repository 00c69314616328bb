"""boostr run: answers, continues, streams; prompts from stdin; options and their refusal."""

import json

import pytest
from tiny_model import make_tiny

import boostr as library


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def test_answers_through_the_template_and_ends_with_timings(boostr, tiny: str) -> None:
    result = boostr("run", "-m", tiny, "hi", "--max-tokens", "8")
    expected = library.load(tiny).generate(
        messages=[{"role": "user", "content": "hi"}], max_tokens=8
    )
    assert result.exit_code == 0 and result.stdout == expected.text + "\n"
    line = last_line(result.stderr)
    count = expected.usage.prompt_tokens
    assert line.startswith(f"[{count} prompt tokens at ") and "8 generated at " in line
    assert "first token after " in line and line.count("tok/s") == 2


def test_raw_continues_the_prompt(boostr, tiny: str) -> None:
    result = boostr("run", "-m", tiny, "hi", "--raw", "--max-tokens", "8")
    assert result.stdout == library.load(tiny).generate("hi", max_tokens=8).text + "\n"
    assert last_line(result.stderr).startswith("[2 prompt tokens")


def test_a_model_without_a_template_continues(boostr, tmp_path) -> None:
    folder = str(make_tiny(tmp_path / "m", template=None))
    plain = boostr("run", "-m", folder, "hi", "--max-tokens", "8")
    assert plain.stdout == boostr("run", "-m", folder, "hi", "--raw", "--max-tokens", "8").stdout
    result = boostr("run", "-m", folder, "hi", "--system", "be brief")
    assert result.exit_code == 1 and "no chat template" in result.stderr


def test_json_is_one_object_and_nothing_else(boostr, tiny: str) -> None:
    result = boostr("run", "-m", tiny, "hi", "--max-tokens", "8", "--json", "--system", "é")
    done = json.loads(result.stdout)
    assert done["finish_reason"] == "length" and len(done["token_ids"]) == 8
    usage = done["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert done["timings"]["first_token_seconds"] > 0
    assert done["messages"][0] == {"role": "system", "content": "é"}
    assert done["model"] == tiny and done["backend"] == "numpy"
    streamed = boostr("run", "-m", tiny, "hi", "--max-tokens", "8", "--system", "é").stdout
    assert streamed == done["text"] + "\n"


def test_stdin_without_the_newline_that_ends_it(boostr, tiny: str) -> None:
    options = ("-m", tiny, "--raw", "--max-tokens", "4", "--json")
    assert json.loads(boostr("run", "-", *options, stdin="hé\n").stdout)["prompt"] == "hé"
    assert json.loads(boostr("run", "-", *options, stdin="a\r\n").stdout)["prompt"] == "a"
    assert json.loads(boostr("run", "-", *options, stdin="a\n\n").stdout)["prompt"] == "a\n"


def test_sampling_is_repeatable_and_options_reach_it(boostr, tiny: str) -> None:
    args = ("run", "-m", tiny, "hi", "--json", "--max-tokens", "12", "--temperature", "1")
    more = ("--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1",
            "--presence-penalty", "0.1", "--frequency-penalty", "0.1")  # fmt: skip

    def ids(*extra: str) -> list[int]:
        return json.loads(boostr(*args, *extra).stdout)["token_ids"]

    assert ids("--seed", "3", *more) == ids("--seed", "3", *more)
    assert ids("--seed", "3") != ids("--seed", "4")


def test_stop_is_repeatable_and_not_in_the_answer(boostr, tiny: str) -> None:
    args = ("run", "-m", tiny, "hi", "--raw", "--max-tokens", "40", "--json")
    text = json.loads(boostr(*args).stdout)["text"]
    first, second = text[4], text[9]
    done = json.loads(boostr(*args, "--stop", second, "--stop", first).stdout)
    assert done["finish_reason"] == "stop"
    assert done["text"] == text[: min(text.index(first), text.index(second))]


@pytest.mark.parametrize("scheme", ["int8", "int8-g32", "w8a8"])
def test_quantize(boostr, tiny: str, scheme: str) -> None:
    args = ("run", "-m", tiny, "hi", "--max-tokens", "2", "--quantize", scheme)
    result = boostr(*args, "--quantize-embeddings", scheme, "-v")
    assert result.exit_code == 0 and "MB of weights on numpy" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"), ("--temperature", "nan"), ("--temperature", "hot"),
        ("--top-p", "2"), ("--top-p", "0"), ("--top-k", "-1"), ("--top-k", "1.5"),
        ("--min-p", "1.1"), ("--repetition-penalty", "0"), ("--presence-penalty", "inf"),
        ("--max-tokens", "0"), ("--seed", "-1"), ("--stop", ""), ("--quantize", "int7"),
        ("--dtype", "int8"), ("--dtype", "f12"), ("--backend", "torch"),
    ],
)  # fmt: skip
def test_options_out_of_range_exit_2_and_are_named(boostr, option: str, value: str) -> None:
    result = boostr("run", "-m", "never-opened", "hi", option, value)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"'{option}'" in result.stderr


@pytest.mark.parametrize(
    "args",
    [("--raw", "--system", "x"), ("--revision", "main"), ("--quantize-embeddings", "int8")],
)
def test_options_that_do_not_go_together_exit_2(boostr, args: tuple[str, ...]) -> None:
    result = boostr("run", "hi", *args)
    assert result.exit_code == 2 and args[0] in result.stderr


TOOLED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
    "{{ tools | tojson if tools }}{{ mood }}"
    "{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
)


def test_what_the_template_is_given(boostr, tmp_path) -> None:
    folder = str(make_tiny(tmp_path / "m", TOOLED))
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    args = ("run", "-m", folder, "hi", "--max-tokens", "6")
    plain = boostr(*args).stdout
    tools = ("--tools", str(tmp_path / "tools.json"))
    model = library.load(folder)
    hi = [{"role": "user", "content": "hi"}]
    for more, arguments in (
        (tools, {"tools": [{"name": "f"}]}),
        (("--template-arg", "mood=glad"), {"template_arguments": {"mood": "glad"}}),
        (("--template-arg", "mood=1.50"), {"template_arguments": {"mood": 1.5}}),
    ):
        expected = model.generate(messages=hi, max_tokens=6, **arguments).text
        assert boostr(*args, *more).stdout == expected + "\n" != plain
    begun = [*hi, {"role": "assistant", "content": "Well, "}]
    expected = model.generate(messages=begun, continue_final_message=True, max_tokens=6)
    done = json.loads(boostr(*args, "--prefill", "Well, ", "--json").stdout)
    assert done["text"] == expected.text and done["messages"] == begun
    assert boostr("chat", "-m", folder, "--max-tokens", "6", *tools, stdin="hi\n").stdout != plain


def test_what_no_template_takes(boostr, tiny: str, tmp_path) -> None:
    (tmp_path / "tools.json").write_text("{}")
    for more in (
        ("--tools", str(tmp_path / "tools.json")), ("--tools", str(tmp_path / "no.json")),
        ("--template-arg", "x"), ("--template-arg", "a b=1"), ("--raw", "--prefill", "x"),
        ("--raw", "--template-arg", "a=1"),
    ):  # fmt: skip
        assert boostr("run", "-m", tiny, "hi", *more).exit_code == 2
    missing = boostr("run", "-m", tiny, "hi", "--tools", str(tmp_path / "no.json"))
    assert "no.json: no such file, or an empty one" in missing.stderr
    bare = str(make_tiny(tmp_path / "bare", None))
    result = boostr("run", "-m", bare, "hi", "--prefill", "x")
    assert result.exit_code == 1 and "no chat template, which --system, --prefill" in result.stderr
