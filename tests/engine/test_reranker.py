"""Rerankers against sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_folders import DATA, golden, rewritten
from tiny_model import make_tiny

import boostr
from boostr.engine.answers import QUESTIONS, AnswerReranker
from boostr.engine.classifier import ClassificationModel
from boostr.errors import ModelFileError, OptionError
from boostr.io.encodings import encode_batch


def scores(model: Any, pairs: list, **arguments: Any) -> list[float]:
    """Of each pair by itself."""
    return [model.rerank(query, [text], **arguments)[0].score for query, text in pairs]


@pytest.mark.parametrize("name", ["bert_reranker", "qwen3_reranker"])
def test_scores_equal_sentence_transformers(name: str, backend, tmp_path: Path) -> None:
    """Pairs of all lengths: the long ones are cut."""
    kinds = {"bert_reranker": ClassificationModel, "qwen3_reranker": AnswerReranker}
    truth, model = golden(name), boostr.load(DATA / name, backend=backend)
    assert isinstance(model, kinds[name])
    np.testing.assert_allclose(scores(model, truth["pairs"]), truth["scores"], rtol=1e-4)
    prompt = {"prompt_name": "ask"} if name == "bert_reranker" else {"prompt": "Other task."}
    given = scores(model, truth["pairs"], **prompt)
    np.testing.assert_allclose(given, truth["prompted"], rtol=1e-4)
    raw = rewritten(name, tmp_path / "m", "config_sentence_transformers.json",
                    activation_fn="torch.nn.modules.linear.Identity")  # fmt: skip
    plain: Any = boostr.load(raw, backend=backend)
    np.testing.assert_allclose(scores(plain, truth["pairs"]), truth["logits"], rtol=1e-4, atol=1e-5)


def test_the_order_equals_sentence_transformers() -> None:
    truth = golden("bert_reranker")
    model: Any = boostr.load(DATA / "bert_reranker", backend="numpy")
    texts = [text for query, text in truth["pairs"] if query == "what is a cat ?"][:4]
    ranked = model.rerank("what is a cat ?", texts)
    assert [r.index for r in ranked] == [row["corpus_id"] for row in truth["rank"]]
    assert all(r.text == texts[r.index] for r in ranked)
    assert model.rerank("what is a cat ?", texts, top_k=2) == ranked[:2]
    assert model.rerank("what is a cat ?", iter(texts), top_k=np.int64(9)) == ranked
    assert model.rerank("what", []) == []
    ties = model.rerank("what is a cat ?", ["a"] * 3)
    assert [r.index for r in ties] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"sbert_ce_default_activation_function": "torch.nn.Identity"}, "logits"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}, "logits"),
        ({"sentence_transformers": {}}, "scores"), ({}, "scores"),
    ],
)  # fmt: skip
def test_where_the_activation_is_named(tmp_path: Path, names: dict, kind: str) -> None:
    """Folders that older versions wrote have nothing beside config.json."""
    folder, truth = rewritten("bert_reranker", tmp_path / "m", **names), golden("bert_reranker")
    for file in ("config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"):
        (folder / file).unlink()
    model: Any = boostr.load(folder, backend="numpy")
    given = scores(model, truth["pairs"])
    np.testing.assert_allclose(given, truth[kind], rtol=1e-4, atol=1e-5)


def test_lower_case(tmp_path: Path) -> None:
    folder = rewritten(
        "bert_reranker", tmp_path / "a", "tokenizer_config.json", do_lower_case=False
    )
    shutil.copytree(folder, tmp_path / "b")
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    lowered = json.dumps(settings | {"do_lower_case": True})
    (tmp_path / "b" / "sentence_bert_config.json").write_text(lowered)
    cased, lower = (boostr.load(tmp_path / name, backend="numpy") for name in "ab")
    small, large = [["a cat", "a dog"]], [["A CAT", "a DOG"]]
    assert scores(cased, small) == scores(lower, large) != scores(cased, large)


def test_a_chat_template_with_a_prefix_for_the_answer(tmp_path: Path) -> None:
    """Without add_generation_prompt the answer's prefix is missing, and scores are others."""
    truth = golden("qwen3_reranker")
    folder = rewritten("qwen3_reranker", tmp_path / "m", "sentence_bert_config.json",
                       processing_kwargs=None)  # fmt: skip
    model: Any = boostr.load(folder, backend="numpy")
    assert not np.allclose(scores(model, truth["pairs"]), truth["scores"], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("bert_reranker", "config_sentence_transformers.json", {"activation_fn": "evil.Code"},
         "activation_fn 'evil.Code' is not known"),
        ("bert_reranker", "config_sentence_transformers.json", {"model_type": "SparseEncoder"},
         "model_type must be 'CrossEncoder'"),
        ("bert_reranker", "sentence_bert_config.json", {"query_expansion": {"length": 3}},
         "query_expansion = .* is not supported"),
        ("qwen3_reranker", "sentence_bert_config.json", {"processing_kwargs": {"text": {"a": 1}}},
         "processing_kwargs .* is not supported"),
        ("qwen3_reranker", "1_LogitScore/config.json", {"true_token_id": 400}, "of 0..261"),
        ("qwen3_reranker", "1_LogitScore/config.json", {"true_token_id": None}, "of 0..261"),
        ("bert_reranker", "config.json", {"architectures": ["BertModel"]}, "this model is not"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, name: str, file: str, changes: dict, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        boostr.load(rewritten(name, tmp_path / "m", file, **changes), backend="numpy")


def test_arguments_that_are_refused() -> None:
    model: Any = boostr.load(DATA / "bert_reranker", backend="numpy")
    for arguments, message in (
        ({"top_k": 0}, "top_k must be 1 or more"), ({"prompt_name": "x"}, "no prompt 'x'"),
        ({"texts": "one"}, "expected a list of texts"), ({"query": 3}, "rerank: query"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=message):
            model.rerank(**{"query": "q", "texts": ["a"]} | arguments)
    several: Any = boostr.load(DATA / "bert_labels", backend="numpy")
    with pytest.raises(OptionError, match="tells 3 labels apart; a ranker has one"):
        several.rerank("q", ["a"])


def test_pairs_are_cut_as_tokenizers_cut_them() -> None:
    """Every split of lengths around the limit, against the library's own truncation."""
    tokenizer: Any = boostr.load(DATA / "bert_reranker", backend="numpy").tokenizer
    pairs = [(" a" * i, " cat" * j) for i in (1, 3, 4, 5, 9) for j in (1, 3, 4, 5, 9)]
    for limit in (6, 9, 10, 11):
        given = encode_batch(tokenizer, pairs, limit)
        own = tokenizer.inner.from_str(tokenizer.inner.to_str())
        own.enable_truncation(limit, strategy="longest_first")
        for one, other in zip(given, own.encode_batch(pairs), strict=True):
            assert (one.ids, one.type_ids, one.offsets) == (
                other.ids,
                other.type_ids,
                other.offsets,
            )


def test_texts_are_cut_on_the_side_that_the_tokenizer_names(tmp_path: Path) -> None:
    folder = rewritten(
        "bert_labels", tmp_path / "m", "tokenizer_config.json", truncation_side="left"
    )
    model: Any = boostr.load(folder, backend="numpy")
    (encoding,) = encode_batch(model.tokenizer, ["a cat sat on the mat"], 5)
    assert encoding.tokens == ["[CLS]", "on", "the", "mat", "[SEP]"]
    wrong = {"truncation_side": "middle"}
    folder = rewritten("bert_labels", tmp_path / "n", "tokenizer_config.json", **wrong)
    with pytest.raises(boostr.errors.TokenizerError, match="must be right or left, got middle"):
        boostr.load(folder, backend="numpy")


@pytest.fixture
def decoder(tmp_path: Path) -> Any:
    """A language model whose tokens are bytes, and its folder's tokenizer has "y" and "n"."""
    return boostr.load(make_tiny(tmp_path / "m"), backend="numpy")


def test_a_decoder_is_asked_by_a_template(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    for name, yes, no in (("qwen3", "y", "n"), ("bge", "Y", None)):
        monkeypatch.setitem(QUESTIONS, name, replace(QUESTIONS[name], yes=yes, no=no))
    texts = ["first {query}", "second"]
    prompt = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n<Instruct>: Task\n<Query>: q\n<Document>: {}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    encode = decoder.tokenizer.encode
    wanted = []
    for text in texts:
        last = decoder.logits(encode(prompt.replace("{}", text)))[-1].astype(np.float64)
        odds = last[encode("y")[0]] - last[encode("n")[0]]
        wanted.append(1 / (1 + np.exp(-odds)))
    ranked = decoder.rerank("q", texts, template="qwen3", instruction="Task")
    assert [r.index for r in ranked] == list(np.argsort(wanted)[::-1])
    np.testing.assert_allclose(sorted(r.score for r in ranked), sorted(wanted), rtol=1e-4)
    (best,) = decoder.rerank("q", texts, template="bge", top_k=1)
    asked = QUESTIONS["bge"].instruction
    logits = [decoder.logits(encode(f"A: q\nB: {text}\n{asked}"))[-1] for text in texts]
    raw = [float(row[encode("Y")[0]]) for row in logits]
    assert (best.index, best.score) == (int(np.argmax(raw)), pytest.approx(max(raw), rel=1e-4))


def test_what_a_template_recorded_is_used_again(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    question = replace(QUESTIONS["qwen3"], yes="y", no="n")
    monkeypatch.setitem(QUESTIONS, "qwen3", question)
    monkeypatch.setattr(type(decoder.backend), "records_prefill", True)
    ranked = [decoder.rerank("q", ["a", "b"], template="qwen3") for _ in range(3)]
    assert ranked[0] == ranked[1] == ranked[2]
    (ranker,) = decoder._rankers.values()
    assert ranker._passes.programs.captures == 1


def test_templates_that_are_refused(decoder: Any) -> None:
    with pytest.raises(OptionError, match=r"template must be one of \['qwen3', 'bge'\]"):
        decoder.rerank("q", ["a"], template="gpt")
    with pytest.raises(OptionError, match="answers of 'qwen3': no tokens of"):
        decoder.rerank("q", ["a"], template="qwen3")
