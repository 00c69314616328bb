"""boostr embed: vectors as JSON, from arguments and from stdin."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_encoder

from boostr import load


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_encoder(tmp_path_factory.mktemp("encoder") / "m"))


def test_a_list_of_vectors(boostr, encoder: str) -> None:
    result = boostr("embed", "-m", encoder, "a cat", "Größe")
    vectors = np.array(json.loads(result.stdout), np.float32)
    assert result.exit_code == 0 and vectors.shape == (2, 32)
    assert np.array_equal(vectors, load(encoder).embed(["a cat", "Größe"]))


def test_an_object_with_the_model(boostr, encoder: str) -> None:
    done = json.loads(boostr("embed", "-m", encoder, "a", "b", "c", "--json").stdout)
    assert (done["dimension"], done["count"], len(done["embeddings"])) == (32, 3, 3)
    assert done["model"] == encoder and done["timings"]["embed_seconds"] > 0


def test_lines_of_stdin(boostr, encoder: str) -> None:
    lines = json.loads(boostr("embed", "-m", encoder, "-", stdin="one\ntwo\n").stdout)
    assert lines == json.loads(boostr("embed", "-m", encoder, "one", "two").stdout)
    result = boostr("embed", "-m", encoder, "-", stdin="")
    assert result.exit_code == 1 and "no lines" in result.stderr


def test_lines_end_in_newlines_alone(boostr, encoder: str) -> None:
    """Other characters that Python splits at are part of a text."""
    texts = ["a\u2028b", "c\x0bd", "e\x85f\rg", "h"]
    lines = "\n".join(texts[:3]) + "\r\nh\n"
    given = json.loads(boostr("embed", "-m", encoder, "-", stdin=lines.encode()).stdout)
    assert np.array_equal(np.array(given, np.float32), load(encoder).embed(texts))


def test_prompts_and_truncated_vectors(boostr, encoder: str) -> None:
    args = ("embed", "-m", encoder, "text")
    done = json.loads(boostr(*args, "--prompt", "query: ", "--truncate-dim", "4").stdout)
    expected = load(encoder).embed(["query: text"], truncate_dim=4)
    assert np.array_equal(np.array(done, np.float32), expected)
    result = boostr(*args, "--prompt-name", "query")
    assert result.exit_code == 1 and "no prompt 'query'" in result.stderr


def test_wrong_usage(boostr, encoder: str) -> None:
    result = boostr("embed", "hi")
    assert result.exit_code == 2 and "'-m'" in result.stderr
    assert "default: SmolLM2" not in boostr("embed", "-h").stdout
    assert boostr("embed", "-m", encoder).exit_code == 2
    assert boostr("embed", "-m", encoder, "-", "x").exit_code == 2


def test_a_decoder_has_no_vectors_and_an_encoder_no_text(boostr, tiny: str, encoder: str) -> None:
    result = boostr("embed", "-m", tiny, "hi")
    assert result.exit_code == 1 and "decoder" in result.stderr
    result = boostr("run", "-m", encoder, "hi")
    assert result.exit_code == 1 and "gives vectors; use: boostr embed" in result.stderr


def test_modules_that_are_not_known(boostr, encoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "m")
    (folder / "modules.json").write_text('[{"type": "evil.Code", "path": ""}]')
    result = boostr("embed", "-m", str(folder), "hi")
    assert result.exit_code == 1 and "'evil.Code' is not known" in result.stderr
