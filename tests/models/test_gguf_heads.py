"""Classifiers and rankers from GGUF, written by the converter's rules and by `convert`, against
transformers and sentence-transformers; and EmbeddingGemma's products behind the pooling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import gguf
import gguf_files
import numpy as np
import pytest
from click.testing import CliRunner
from head_folders import DATA, WHOLE, golden, rewritten, whole

import boostr
from boostr.cli.app import app
from boostr.engine.answers import QUESTIONS
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import save

# case of WHOLE -> tensors of its head in the file: those that the converter has names for
HEADS = {
    "roberta": {"cls": "classifier.dense", "cls.output": "classifier.out_proj"},
    "modernbert": {"cls": "head.dense", "cls.norm": "head.norm", "cls.output": "classifier"},
    "modernbert/mean": {"cls": "head.dense", "cls.norm": "head.norm", "cls.output": "classifier"},
    "bert": {"cls": "bert.pooler.dense", "cls.output": "classifier"},
    "distilbert": {"cls": "pre_classifier", "cls.output": "classifier"},
}
WRITTEN = [name for name in HEADS if name != "distilbert"]  # of which programs take another act


def folder_of(name: str, to: Path, *, headed: bool = True) -> tuple[Path, dict[str, np.ndarray]]:
    """A classifier of transformers as a folder, and its head as the file has it."""
    config, tensors = whole(name, "Sequence")
    defaults = json.loads((cases.DATA / f"{config['model_type']}.json").read_text())["defaults"]
    to.mkdir(exist_ok=True)
    (to / "config.json").write_text(json.dumps({**defaults, **config}))
    own = tuple(HEADS[name].values())
    kept = {n: a for n, a in tensors.items() if headed or not n.startswith(own)}
    save(to / "model.safetensors", kept)
    head = {
        f"{ours}.{end}": tensors[f"{theirs}.{end}"]
        for ours, theirs in HEADS[name].items()
        for end in ("weight", "bias")
        if f"{theirs}.{end}" in tensors
    }
    return to, head


def assert_logits(model: Any, name: str) -> None:
    given = model._logits(WHOLE[name]["ids"], WHOLE[name]["types"])
    wanted = WHOLE[name]["Sequence"]["logits"]
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=5e-5)


SAID = {"pooling_type": 4, "classifier.output_labels": ["a", "b", "c"]}
POOLED = {"modernbert": {"classifier.pooling_type": 2}}  # it is the mean there if not said


@pytest.mark.parametrize("said", [{}, SAID])
@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_transformers(name, said, plain_backend, tmp_path) -> None:
    folder, head = folder_of(name, tmp_path, headed=False)
    path = gguf_files.convert(
        folder, tmp_path / "m.gguf", head=head, metadata=said | POOLED.get(name, {})
    )
    model: Any = boostr.load(path, backend=plain_backend)
    assert_logits(model, name)
    assert model.labels.names == (("a", "b", "c") if said else ("LABEL_0", "LABEL_1", "LABEL_2"))


@pytest.mark.parametrize("name", WRITTEN)
def test_convert_writes_the_head(name, tmp_path) -> None:
    folder, head = folder_of(name, tmp_path / "f")
    model: Any = boostr.load(boostr.convert(folder, tmp_path / "m.gguf"), backend="numpy")
    assert_logits(model, name)
    assert model.labels.names == ("L0", "L1", "L2")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    written = {t.name: t.data for t in reader.tensors}
    assert reader.fields["tokenizer.ggml.model"].contents() == "none"
    assert {n for n in written if n.startswith("cls")} == head.keys()
    for key, array in head.items():
        np.testing.assert_array_equal(written[key].reshape(array.shape), array)


def test_a_ranker_whose_one_row_lies_as_a_vector(tmp_path) -> None:
    """llama-quantize drops the axis of 1."""
    folder, head = folder_of("roberta", tmp_path, headed=False)
    one = {**head, "cls.output.weight": head["cls.output.weight"][1],
           "cls.output.bias": head["cls.output.bias"][1:2]}  # fmt: skip
    path = gguf_files.convert(folder, tmp_path / "m.gguf", head=one)
    model: Any = boostr.load(path, backend="numpy")
    row = WHOLE["roberta"]
    given = model._logits(row["ids"], row["types"])
    np.testing.assert_allclose(
        given[:, 0], np.array(row["Sequence"]["logits"])[:, 1], rtol=1e-4, atol=5e-5
    )


def test_rerank_of_a_file(tmp_path) -> None:
    truth = golden("bert_reranker")
    path = boostr.convert(DATA / "bert_reranker", tmp_path / "m.gguf")
    model: Any = boostr.load(path, backend="numpy")
    scores = [model.rerank(query, [text])[0].score for query, text in truth["pairs"]]
    np.testing.assert_allclose(scores, truth["scores"], rtol=1e-4)
    args = ["rerank", str(path), "--query", "what ?", "a cat", "anna", "--backend", "numpy"]
    lines = CliRunner().invoke(app, args).stdout.splitlines()
    wanted = model.rerank("what ?", ["a cat", "anna"])
    assert [line.split("\t")[2] for line in lines] == [r.text for r in wanted]


def test_token_types_of_pairs_count(tmp_path) -> None:
    """llama.cpp takes all tokens for those of the first text; transformers does not."""
    truth = golden("bert_labels")
    rows = zip(truth["pairs"], truth["softmax of pairs"], strict=True)
    short = [(tuple(p), row) for p, row in rows if max(map(len, p)) < 60]  # the folder cuts at 24
    path = boostr.convert(DATA / "bert_labels", tmp_path / "m.gguf", kind="F16")
    model: Any = boostr.load(path, backend="numpy", dtype="float32")
    given = model.classify([pair for pair, _ in short])
    for scores, (_, wanted) in zip(given, short, strict=True):
        assert list(scores) == [row["label"] for row in wanted]
        np.testing.assert_allclose([*scores.values()], [r["score"] for r in wanted], rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert_tokens", "would be taken for one with a product and act 'tanh' over pooled states"),
        ("llama_labels", "GGUF of llama has no place for a classifier"),
        ("qwen3_reranker", "is not supported"),
    ],
)
def test_heads_that_are_not_written(name, message, tmp_path) -> None:
    with pytest.raises(ModelFileError, match=message):
        boostr.convert(DATA / name, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_an_activation_that_programs_have_not(tmp_path) -> None:
    folder, _ = folder_of("distilbert", tmp_path / "f")
    with pytest.raises(ModelFileError, match=r"act 'tanh' over pooled.*act 'relu'"):
        boostr.convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("without", "said", "message"),
    [
        (("cls.weight", "cls.bias"), {}, "no 'cls.weight', the pooler that llama.cpp's converter"),
        (("cls.output.weight",), {"pooling_type": 4}, "has no tensor 'cls.output.weight'"),
        (("cls.output.weight",), {}, r"cls\.weight"),
        ((), {"pooling_type": 2}, r"cls\.output\.weight"),
        ((), {"classifier.output_labels": ["a", "b"]}, "must be 3 different names, got"),
        ((), {"classifier.output_labels": ["a", "b", "b"]}, "must be 3 different names, got"),
        ((), {"classifier.output_labels": 3}, "must be 3 different names, got 3"),
        ((), {"classifier.pooling_type": 3}, r"classifier\.pooling_type must be one of \[1, 2\]"),
    ],
)
def test_heads_that_are_not_read(without, said, message, tmp_path) -> None:
    folder, head = folder_of("roberta", tmp_path, headed=False)
    kept = {name: array for name, array in head.items() if name not in without}
    path = gguf_files.convert(folder, tmp_path / "m.gguf", head=kept, metadata=said)
    with pytest.raises(ModelFileError, match=message):
        boostr.load(path, backend="numpy")


def test_rankers_of_other_architectures(tmp_path) -> None:
    folder = cases.checkpoint(cases.named("llama/tied"), tmp_path)
    path = gguf_files.convert(folder, tmp_path / "m.gguf", metadata={"pooling_type": 4})
    with pytest.raises(ModelFileError, match="a ranker of architecture 'llama' is not known"):
        boostr.load(path, backend="numpy")


INSTRUCTION = QUESTIONS["qwen3"].instruction
ASKED = (
    "<|im_start|>system\nJudge {x}<|im_end|>\n<|im_start|>user\n<Instruct>: " + INSTRUCTION
    + "\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
)  # fmt: skip


def qwen3_file(tmp_path: Path, template: str | None) -> Path:
    """Qwen3-Reranker as the converter has it: of the head the rows of yes and no."""
    folder = rewritten("qwen3_reranker", tmp_path / "f")
    for file in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / file).unlink()
    reader = gguf.GGUFReader(boostr.convert(folder, tmp_path / "lm.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    for field in reader.fields.values():
        if field.types and not field.name.startswith(("GGUF.", "general.arch")):
            kind, *_, inner = (*field.types, None) if len(field.types) == 1 else field.types
            writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_uint32("qwen3.pooling_type", 4)
    writer.add_array("qwen3.classifier.output_labels", ["yes", "no"])
    if template is not None:
        writer.add_string("tokenizer.chat_template.rerank", template)
    for tensor in reader.tensors:
        if tensor.name == "output.weight":
            writer.add_tensor("cls.output.weight", np.ascontiguousarray(tensor.data[[257, 258]]))
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("template", [None, ASKED])
def test_qwen3_reranker(template, tmp_path, monkeypatch) -> None:
    """As the folder of the decoder, that is asked the same."""
    short = ("<|im_start|>system\n", *QUESTIONS["qwen3"].pieces[1:])  # the context is one of 160
    monkeypatch.setitem(QUESTIONS, "qwen3", replace(QUESTIONS["qwen3"], pieces=short))
    model: Any = boostr.load(qwen3_file(tmp_path, template), backend="numpy")
    decoder: Any = boostr.load(tmp_path / "f", backend="numpy")
    texts = ["a cat {query}", "the dog", "{text}"]
    for prompt in (None, "Other task."):
        given = {row.index: row.score for row in model.rerank("what ?", texts, prompt=prompt)}
        if template is None:
            ranked = decoder.rerank("what ?", texts, template="qwen3", instruction=prompt)
            want = {row.index: row.score for row in ranked}
        else:
            want = {i: probability(decoder, text, prompt) for i, text in enumerate(texts)}
        assert given == pytest.approx(want, rel=1e-4)


def probability(decoder: Any, text: str, prompt: str | None) -> float:
    """Of the answer yes to the question ASKED."""
    asked = ASKED.replace(INSTRUCTION, prompt or INSTRUCTION).replace("{query}", "what ?")
    ids = decoder.tokenizer.encode(asked.replace("{document}", text), add_special_tokens=False)
    last = decoder.logits(ids)[-1].astype(np.float64)
    return float(1 / (1 + np.exp(last[258] - last[257])))


@pytest.mark.parametrize("template", ["{query}", "{document}", "{query}{document}{document}"])
def test_questions_without_a_place(template, tmp_path) -> None:
    with pytest.raises(ModelFileError, match=r"must have \{query\}, and once \{document\}"):
        boostr.load(qwen3_file(tmp_path, template), backend="numpy")


def test_a_question_without_a_place_for_an_instruction(tmp_path) -> None:
    model: Any = boostr.load(qwen3_file(tmp_path, "{query} {document}"), backend="numpy")
    assert model.rerank("q", ["a"])
    with pytest.raises(OptionError, match=r"the question of .* has no place for a prompt"):
        model.rerank("q", ["a"], prompt="Task")


def test_products_behind_the_pooling(tmp_path) -> None:
    """EmbeddingGemma's two, with the mean before and unit length behind them."""
    case, rng = cases.named("gemma3_text/bidirectional"), np.random.default_rng(0)
    folder = cases.checkpoint(case, tmp_path)
    wide, narrow = (rng.standard_normal(shape).astype("f4") for shape in ((64, 32), (24, 64)))
    head = {"dense_2.weight": wide, "dense_3.weight": narrow}
    path = gguf_files.convert(folder, tmp_path / "m.gguf", "Q8_0", {"pooling_type": 1}, head=head)
    model: Any = boostr.load(path, backend="numpy")
    assert model.dimension == 24
    states = rng.standard_normal((5, 32)).astype("f4")
    vector = model.sentence.pool(states, 0)[None]
    for step in model.sentence.steps:
        vector = step(vector)
    want = narrow.astype(np.float64) @ (wide.astype(np.float64) @ states.mean(0))
    np.testing.assert_allclose(vector[0], want / np.linalg.norm(want), atol=2e-2)
    bad = head | {"dense_3.weight": narrow[:, :32]}
    path = gguf_files.convert(folder, tmp_path / "n.gguf", head=bad)
    with pytest.raises(ModelFileError, match="takes 32 features, but what comes before gives 64"):
        boostr.load(path, backend="numpy")
