"""Stop strings across token borders, and text that is held back until it is decided."""

from __future__ import annotations

import pytest

from boostr.engine.text import TextStream


class Letters:
    """A detokenizer whose token ids are indices into a list of pieces."""

    def __init__(self, pieces):
        self.pieces = pieces

    def add(self, token_id):
        return self.pieces[token_id]

    def finish(self):
        return ""


def stream(pieces, stop):
    text = TextStream(Letters(pieces), stop)
    out = []
    for i in range(len(pieces)):
        out.append(text.add(i))
        if text.stopped:
            return out, True
    return [*out, text.finish()], text.stopped


@pytest.mark.parametrize(
    ("pieces", "stop", "shown", "stopped"),
    [
        (["Hello", " world"], [], "Hello world", False),
        (["a\n", "\nb"], ["\n\n"], "a", True),
        (["one<", "|en", "d|>", "two"], ["<|end|>"], "one", True),
        (["one<", "|en", "x"], ["<|end|>"], "one<|enx", False),
        (["ababab", "c"], ["ababc"], "ab", True),
        (["xST", "OP", "y"], ["STOP", "ST"], "x", True),
        (["end<"], ["<stop"], "end<", False),
    ],
)
def test_text_is_cut_before_a_stop(pieces, stop, shown, stopped):
    out, ended = stream(pieces, stop)
    assert "".join(out) == shown
    assert ended == stopped


def test_special_tokens_count_for_stops_but_are_not_shown():
    pieces = ["a", "", "\nb", "c", "", "d"]  # the detokenizer gives no text for ids 1 and 4
    special = {1: "<|end|>", 4: "<|x|>"}.get
    for stop, expected in (
        (["<|end|>"], (["a"], True)),
        (["<|end|>\nb"], (["a"], True)),
        (["a<|end|>"], ([], True)),
        (["<|end|>c"], (["a\nbcd"], False)),
        (["bc<|x|>d"], (["a\n"], True)),
    ):
        text = TextStream(Letters(pieces), stop, special)
        out = ""
        for i in range(len(pieces)):
            out += text.add(i)
            if text.stopped:
                break
        assert (out + text.finish(), text.stopped) == ("".join(expected[0]), expected[1])


def test_nothing_that_may_be_a_stop_is_shown_early():
    out, _ = stream(["abc", "d", "e"], ["cdf"])
    assert out[:3] == ["ab", "", "cde"]
