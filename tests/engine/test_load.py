"""Folders as people have them: sound ones load whatever lies beside the weights."""

from __future__ import annotations

import copy
import json
import pickle
import re

import cases
import gguf_files
import numpy as np
import pytest
from tiny_model import make_tiny
from tokenizers import AddedToken, Tokenizer

import boostr
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.model import LanguageModel
from boostr.errors import ModelFileError, OptionError, TokenizerError
from boostr.io.safetensors import INDEX, SINGLE, open_safetensors, save

IDS = [1, 2, 3, 4]
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path):
    return make_tiny(tmp_path / "m")


def load(folder) -> LanguageModel:
    model = boostr.load(folder, backend="numpy")
    assert isinstance(model, LanguageModel)
    return model


def logits(folder):
    return load(folder).logits(IDS)


def tensors(folder):
    with open_safetensors(folder) as files:
        return {name: np.array(files.tensor(name)) for name in files.names}


def test_a_shard_with_an_inert_tensor_that_the_index_does_not_list(folder):
    want, held = logits(folder), tensors(folder)
    (folder / SINGLE).unlink()
    inert = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save(folder / SHARD, held | inert)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held, SHARD)}))
    assert np.array_equal(logits(folder), want)


def test_a_shard_with_another_tensor_that_the_index_does_not_list(folder):
    held = tensors(folder)
    (folder / SINGLE).unlink()
    save(folder / SHARD, held | {"model.layers.0.extra": np.ones(4, np.float32)})
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held, SHARD)}))
    with pytest.raises(ModelFileError, match=r"unexpected \(1\):\n    model\.layers\.0\.extra"):
        logits(folder)


def test_shards_that_are_links(folder, tmp_path):
    want, held = logits(folder), tensors(folder)
    (folder / SINGLE).rename(tmp_path / "store")
    (folder / SHARD).symlink_to(tmp_path / "store")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held, SHARD)}))
    assert np.array_equal(logits(folder), want)


def test_an_index_of_an_older_version_beside_the_file(folder):
    """The old shards are still there: their weights must not be taken without a word."""
    want, held = logits(folder), tensors(folder)
    save(folder / SHARD, {name: array + 1 for name, array in held.items()})
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held, SHARD)}))
    with pytest.warns(UserWarning, match=r"model\.safetensors is read"):
        got = logits(folder)
    assert np.array_equal(got, want)


def test_spare_tokens_of_the_tokenizer(folder):
    """A pad token that was added without a row in the embedding, as fine-tunes of Llama 2 have."""
    path = str(folder / "tokenizer.json")
    inner = Tokenizer.from_file(path)
    inner.add_special_tokens([AddedToken("[PAD]", normalized=False)])
    inner.save(path)
    model = load(folder)
    assert model.tokenizer.vocab_size == model.config.vocab_size + 1
    assert model.generate("hi", max_tokens=2, temperature=0.0).token_ids
    with pytest.raises(TokenizerError, match=r"token id 258 .*0\.\.257"):
        model.generate("hi [PAD]", max_tokens=2)


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(folder):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["word"] = 300
    path.write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match="do not belong together"):
        load(folder)


def test_a_pointer_of_git_lfs_is_said_to_be_one(folder, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (tmp_path / "m.gguf").write_text(pointer)
    with pytest.raises(ModelFileError, match=r"m\.gguf: this is a git-LFS pointer"):
        load(tmp_path / "m.gguf")
    for name in ("tokenizer.json", SINGLE):  # the weights are read first
        (folder / name).write_text(pointer)
        with pytest.raises(ModelFileError, match=f"{re.escape(name)}: this is a git-LFS pointer"):
            load(folder)


def test_a_folder_with_a_vocabulary_alone(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\nb\n")
    tokenizer = load(folder).tokenizer
    assert tokenizer is not None and tokenizer.encode("a b c") == [1, 3, 4, 0, 2]


def test_a_folder_without_tokenizer_files(folder):
    """Token ids in and out work; what needs text says what is missing."""
    want = load(folder).generate([1, 2, 3], max_tokens=4, temperature=0.0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load(folder)
    assert model.tokenizer is None
    done = model.generate([1, 2, 3], max_tokens=4, temperature=0.0)
    assert done.token_ids == want.token_ids and done.text == ""
    assert [p.token_id for p in model.stream([1, 2, 3], max_tokens=4)] == want.token_ids
    assert model.score([1, 2, 3]).token_count == 2 and model.logits(IDS).shape[0] == 4
    for needs_text in (
        lambda: model.generate("hi"),
        lambda: model.generate(messages=[{"role": "user", "content": "hi"}]),
        lambda: model.generate([1, 2], stop=["x"]),
        lambda: model.score("hi"),
    ):
        with pytest.raises(TokenizerError, match=r"has no tokenizer.*tokenizer\.json"):
            needs_text()
    with pytest.raises(OptionError, match="the prompt is empty"):
        model.generate([])


def test_a_gguf_without_a_tokenizer(tmp_path):
    case = cases.named("llama/tied")
    path = gguf_files.convert(cases.checkpoint(case, tmp_path), tmp_path / "m.gguf")
    model = load(path)
    assert model.tokenizer is None
    assert len(model.generate([1, 2], max_tokens=3, ignore_eos=True).token_ids) == 3


def test_an_encoder_without_tokenizer_files(tmp_path):
    case = cases.named("bert/mlm")
    model = boostr.load(cases.checkpoint(case, tmp_path), backend="numpy")
    assert isinstance(model, EmbeddingModel)
    assert [h.shape for h in model.hidden([[1, 2, 3], [4]])] == [
        (3, model.config.hidden_size), (1, model.config.hidden_size)
    ]  # fmt: skip
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        model.embed(["hi"])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied(copied, folder):
    model = load(folder)
    with pytest.raises(OptionError, match="m: a loaded model cannot be copied or pickled"):
        copied(model)
