"""boostr models: what runs."""

import json

from boostr.models import FAMILIES
from boostr.models.wrapped import WRAPPERS


def test_every_family_has_a_line(boostr) -> None:
    lines = boostr("models").stdout.splitlines()
    assert lines[0].split() == ["model_type", "for", "GGUF"]
    assert [line.split()[0] for line in lines[1:]] == [*sorted(FAMILIES), *sorted(WRAPPERS)]
    said = json.loads(boostr("models", "--json").stdout)
    assert [row["model_type"] for row in said["models"]] == sorted(FAMILIES)
    assert said["text_parts"].keys() == WRAPPERS.keys()


def test_one(boostr) -> None:
    lines = boostr("models", "olmo2").stdout.splitlines()
    assert lines[0].startswith("OLMo 2") and "GGUF       olmo2" in lines
    said = json.loads(boostr("models", "olmo2", "--json").stdout)
    assert said["kind"] == "generate" and said["gguf"] == ["olmo2"] and not said["wrapper"]


def test_of_a_wrapper_the_text_part(boostr) -> None:
    assert boostr("models", "gemma3").stdout.startswith("gemma3: its text part runs, gemma3_text\n")
    assert json.loads(boostr("models", "gemma3", "--json").stdout)["wrapper"]


def test_an_unknown_one(boostr) -> None:
    result = boostr("models", "lama")
    assert result.exit_code == 1 and "nearest: 'llama'" in result.stderr
    assert "docs/adding.md" in result.stderr
