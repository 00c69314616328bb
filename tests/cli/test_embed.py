"""boostr embed: vectors as JSON, from arguments and from stdin."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_model import SPECIAL, save_tokenizer

from boostr import load
from boostr.io.safetensors import save
from boostr.models import family
from boostr.models.config import RawConfig

CONFIG = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 256 + len(SPECIAL),
    "type_vocab_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    made = family("bert", "tiny")
    rng = np.random.default_rng(5)
    module = made(made.read_config(RawConfig(CONFIG, "tiny")))
    shapes = {name: getattr(owner, at).shape for name, owner, at in module.parameters()}
    save(folder / "model.safetensors", {n: rng.standard_normal(s, "f4") for n, s in shapes.items()})
    save_tokenizer(folder, None)
    return str(folder)


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


def test_wrong_usage(boostr, encoder: str) -> None:
    assert boostr("embed", "hi").exit_code == 2
    assert boostr("embed", "-m", encoder).exit_code == 2
    assert boostr("embed", "-m", encoder, "-", "x").exit_code == 2


def test_a_decoder_has_no_vectors_and_an_encoder_no_text(boostr, tiny: str, encoder: str) -> None:
    result = boostr("embed", "-m", tiny, "hi")
    assert result.exit_code == 1 and "decoder" in result.stderr
    result = boostr("run", "-m", encoder, "hi")
    assert result.exit_code == 1 and "boostr embed" in result.stderr


def test_modules_that_are_not_known(boostr, encoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "m")
    (folder / "modules.json").write_text('[{"type": "evil.Code", "path": ""}]')
    result = boostr("embed", "-m", str(folder), "hi")
    assert result.exit_code == 1 and "'Code'" in result.stderr
