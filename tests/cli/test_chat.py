"""boostr chat: history, commands, a context that fills up, Ctrl-C."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest
from tiny_model import HANG, command, environment, make_tiny

from boostr import load
from boostr.cli.conversation import Conversation
from boostr.engine.options import SamplingOptions
from boostr.errors import OptionError


def answer(conversation: Conversation, question: str) -> str:
    text = "".join(piece.text for piece in conversation.ask(question))
    conversation.remember(text)
    return text


def test_each_answer_is_given_the_conversation(boostr, tiny: str) -> None:
    model = load(tiny)
    messages = []
    for question in ("hi", "and?"):
        messages.append({"role": "user", "content": question})
        text = model.generate(messages=messages, max_tokens=6).text
        messages.append({"role": "assistant", "content": text})
    result = boostr("chat", "-m", tiny, "--max-tokens", "6", "-v", stdin="hi\nand?\n")
    assert result.exit_code == 0
    assert result.stdout == "".join(m["content"] + "\n" for m in messages[1::2])
    assert result.stderr.count("first token after") == 2


def test_commands(boostr, tiny: str) -> None:
    lines = "hi\n/reset\nhi\n/system be brief\nhi\n/system\n/nonsense\n/help\n\n/exit\nhi\n"
    result = boostr("chat", "-m", tiny, "--max-tokens", "6", stdin=lines)
    first, again, brief, *rest = result.stdout.splitlines()
    assert first == again and brief != first and rest == []
    for part in ("starts anew", "system prompt: be brief", "no command /nonsense", "/reset "):
        assert part in result.stderr


def test_the_oldest_turns_go_when_the_context_is_full(tmp_path) -> None:
    model = load(make_tiny(tmp_path / "m", max_position_embeddings=200))
    conversation = Conversation(model, SamplingOptions(max_tokens=10), system="S")
    dropped = []
    for _ in range(5):
        answer(conversation, "x" * 25)
        dropped.append(conversation.dropped)
        roles = [turn["role"] for turn in conversation.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert dropped[:2] == [0, 0] and sum(dropped) >= 4 and sum(dropped) % 2 == 0


def test_a_question_that_alone_is_too_long(boostr, tmp_path) -> None:
    folder = str(make_tiny(tmp_path / "m", max_position_embeddings=100))
    lines = "hi\n" + "x" * 200 + "\nhi\n"
    result = boostr("chat", "-m", folder, "--max-tokens", "5", stdin=lines)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 2
    assert "boostr: error: the prompt has" in result.stderr
    conversation = Conversation(load(folder), SamplingOptions(max_tokens=5))
    answer(conversation, "hi")
    before = list(conversation.turns)
    with pytest.raises(OptionError):
        conversation.ask("x" * 200)
    assert conversation.turns == before


def test_a_model_without_a_template_cannot_chat(boostr, tmp_path) -> None:
    result = boostr("chat", "-m", str(make_tiny(tmp_path / "m", template=None)), stdin="hi\n")
    assert result.exit_code == 1 and "no chat template" in result.stderr


def test_lines_that_are_not_utf8(process, tiny: str) -> None:
    result = process("chat", "-m", tiny, "--max-tokens", "4", stdin=b"a\xff\nhi\n")
    assert result.code == 0 and "not valid UTF-8" in result.err and result.out.count("\n") == 1


class Terminal:
    """`boostr chat` on a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self._own, theirs = os.openpty()
        self.process = subprocess.Popen(
            command("chat", *args), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(),
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def expect(self, text: str) -> None:
        """Wait until `text` has come since the last call."""
        end = time.monotonic() + HANG
        while text not in self.seen:
            ready = select.select([self._own], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self._own, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupt(self, at_prompt: bool = False) -> None:
        """Ctrl-C; at the prompt as late as a person's, since readline prints it before it waits."""
        time.sleep(0.5 if at_prompt else 0)
        self.process.send_signal(signal.SIGINT)

    def close(self) -> int:
        code = self.process.wait(HANG)
        os.close(self._own)
        assert "Traceback" not in self.seen
        return code


@pytest.mark.skipif(sys.platform == "win32", reason="terminals and signals")
def test_ctrl_c_stops_the_answer_and_not_the_program(tiny: str) -> None:
    terminal = Terminal("-m", tiny, "--max-tokens", "4000")
    terminal.expect("> ")
    terminal.type("hi\n")
    terminal.expect("hi\r\n")
    terminal.expect("0")  # some of the answer
    terminal.interrupt()
    terminal.expect("> ")
    terminal.type("/reset\n")
    terminal.expect("starts anew")
    terminal.expect("> ")
    terminal.interrupt(at_prompt=True)
    terminal.expect("once more")
    terminal.expect("> ")
    terminal.interrupt(at_prompt=True)
    assert terminal.close() == 130


@pytest.mark.skipif(sys.platform == "win32", reason="terminals and signals")
def test_end_of_input_leaves(tiny: str) -> None:
    terminal = Terminal("-m", tiny)
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
