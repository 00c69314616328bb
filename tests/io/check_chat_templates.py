"""Compare what we make of chat templates with what transformers makes of them. Run by hand:

    python tests/io/check_chat_templates.py DIR

DIR holds templates, NAME.jinja (llama.cpp has some 70 in `models/templates`). Needs transformers 5.
Every template gets every conversation below; where one of the two fails or the texts differ, it is
printed, and the exit code is 1. That both fail is no difference, nor that we refuse tools of a
template that never mentions them.
"""

import difflib
import itertools
import sys
from collections import Counter
from pathlib import Path

import transformers
from tokenizers import Tokenizer as Inner
from tokenizers import models

from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SYSTEM = {"role": "system", "content": "Be brief & <b>clear</b>."}
USER = {"role": "user", "content": "What's the weather in Zürich?\n"}
ANSWER = {"role": "assistant", "content": " It is 21 °C. "}
THOUGHT = {**ANSWER, "reasoning_content": "They ask for\nthe weather."}
PARTS = [{"type": "text", "text": "Look: "}, {"type": "text", "text": "what is it?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Its name", "enum": ["Zürich", "Bern"]},
        "days": {"type": ["integer", "null"], "default": 1},
    },
    "required": ["city"],
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}},
    {"type": "function", "function": {
        "name": "now", "description": "The \"time\".", "parameters": {"type": "object",
                                                                       "properties": {}}}},
]  # fmt: skip


def call(arguments, id_="abc123def"):
    """A message that calls a tool; some templates want nine letters in an id."""
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"id": id_, "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


ARGUMENTS = {"city": "Zürich", "days": 2, "deep": {"a": [1, 2.5, None, True]}}
RESULT = {"role": "tool", "tool_call_id": "abc123def", "name": "get_weather", "content": "21 °C"}
TALKS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "developer": [{**SYSTEM, "role": "developer"}, USER],
    "turns": [SYSTEM, USER, ANSWER, USER],
    "thought": [USER, THOUGHT, USER],
    "thought last": [USER, THOUGHT],
    "parts": [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}],
    "call": [USER, call(ARGUMENTS), RESULT],
    "call as text": [USER, call('{"city": "Zürich"}'), RESULT, ANSWER, USER],
    "call after a thought": [
        USER, {**call(ARGUMENTS), "content": "So.", "thinking": "Hm."}, RESULT,
        {**RESULT, "content": PARTS},
    ],
    "two users": [USER, USER],
    "assistant first": [ANSWER, USER],
    "empty": [{"role": "user", "content": ""}],
    "other keys": [{**USER, "name": "Ada", "tool_calls": None}],
}  # fmt: skip
OPTIONS = (
    {}, {"add_generation_prompt": False}, {"enable_thinking": True}, {"enable_thinking": False},
    {"tools": TOOLS}, {"tools": TOOLS, "enable_thinking": False}, {"reasoning_effort": "high"},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"continue_final_message": "reasoning_content", "add_generation_prompt": False},
    {"documents": [{"title": "A", "text": "B & C"}]},
)  # fmt: skip


def ours(source, talk, options):
    special = SpecialTokens(names=NAMES, templates={"default": source})
    return Tokenizer(Inner(models.BPE()), special).apply_chat_template(talk, **options)


def theirs(source, talk, options):
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=Inner(models.BPE()), **NAMES)
    options = {"add_generation_prompt": True, **options}
    return made.apply_chat_template(talk, chat_template=source, tokenize=False, **options)


def outcome(render, *arguments) -> tuple[str | None, str]:
    """(text, why there is none)."""
    try:
        return render(*arguments), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def compared(source, talk, options) -> tuple[str, str]:
    """("same", "both fail", "no tools" or "differs", what is different)."""
    text, why = outcome(ours, source, talk, options)
    want, wrong = outcome(theirs, source, talk, options)
    if "its chat template takes no tools" in why:
        return "no tools", ""
    if text is None and want is None:
        return "both fail", ""
    if text == want:
        return "same", ""
    if text is None or want is None:
        return "differs", f"ours: {why or 'a text'}; theirs: {wrong or 'a text'}"
    lines = difflib.unified_diff(want.splitlines(), text.splitlines(), "theirs", "ours", n=0)
    return "differs", "\n".join(lines)


def main(folder: Path) -> bool:
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text()
        for (name, talk), options in itertools.product(TALKS.items(), OPTIONS):
            verdict, how = compared(source, talk, options)
            counts[verdict] += 1
            if how:
                print(f"{path.stem}, {name}, {', '.join(options)}: {how}")
    print(dict(counts))
    return not counts["differs"]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
