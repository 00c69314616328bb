"""Folders of every family as GGUF: the tensors and keys that llama.cpp's converter writes."""

from __future__ import annotations

import re

import gguf
import gguf_files
import numpy as np
import pytest
from cases import close, each
from test_gguf_models import CASES, changed, constants

import boostr
from boostr import backends
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.errors import ModelFileError

# Gemma's windows in a pattern that no file says
SAID = [case for case in CASES if case.name != "gemma3_text/tied"]


def logits(path):
    backend = backends.get("numpy")
    return Runner(load_module(path, backend=backend), backend).logits(list(range(1, 60))).numpy()


@each(SAID)
def test_as_the_converter_writes(case, tmp_path):
    (tmp_path / "f").mkdir()
    folder = changed(case.name, tmp_path / "f", **constants(case))
    path = boostr.convert(folder, tmp_path / "m.gguf", kind="F32")
    ours = gguf.GGUFReader(path)
    theirs = gguf.GGUFReader(gguf_files.convert(folder, tmp_path / "r.gguf"))
    tensors = {t.name: t.data for t in ours.tensors}
    more = tensors.keys() - {t.name for t in theirs.tensors}
    assert more <= {"output.weight"}  # where programs do not run what the converter writes
    if more:
        assert case.config["tie_word_embeddings"]
        assert np.array_equal(tensors["output.weight"], tensors["token_embd.weight"])
    for tensor in theirs.tensors:
        np.testing.assert_allclose(tensors[tensor.name], tensor.data, rtol=1e-6)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.fields[key].types == field.types, key
            assert ours.fields[key].contents() == field.contents(), key
    close(logits(path), logits(folder))


@pytest.mark.parametrize(("name", "config", "message"), [
    ("mistral/full", {"sliding_window": 8}, "layer 0.mixer.window 8; programs would take it for N"),
    ("gpt_neox/serial", {}, "layer 0.mlp.act gelu_new; programs would take it for gelu"),
])  # fmt: skip
def test_what_a_reader_would_take_for_another_model_is_refused(name, config, message, tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(ModelFileError, match=re.escape(message)):
        boostr.convert(changed(name, tmp_path / "f", **config), tmp_path / "m.gguf")
