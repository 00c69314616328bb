"""Sentence-transformers folders: pooling, modules, prompts, lengths; against float64 numpy."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import SPECIAL, make_tiny, make_tiny_encoder
from tokenizers import Tokenizer, processors

import boostr
from boostr.engine.sentence import ACTIVATIONS, POOLINGS
from boostr.errors import BoostrError, ModelFileError, OptionError
from boostr.io.safetensors import save

TEXTS = ["a", "hello world", "Größe, and more of it"]
ST = "sentence_transformers.models."
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": ST + "Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": ST + "Pooling"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tokenizer puts a special token before and behind a text."""
    folder = make_tiny_encoder(tmp_path_factory.mktemp("encoder") / "m")
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{SPECIAL[0]} $A {SPECIAL[1]}",
        special_tokens=[(text, inner.token_to_id(text)) for text in SPECIAL],
    )
    inner.save(str(folder / "tokenizer.json"))
    return folder


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def module(kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": 9, "name": kind, "path": path or f"9_{kind}", "type": ST + kind}


def sentence_folder(
    encoder: Path, to: Path, pooling: dict | None = None, *more: dict, **files: Any
) -> Path:
    """A copy of the encoder with modules.json; `files` are JSON files by their stem."""
    folder = shutil.copytree(encoder, to)
    write(folder, "modules.json", [TRANSFORMER, POOLING, *more])
    write(folder, "1_Pooling/config.json", pooling or {"pooling_mode_mean_tokens": True})
    for name, value in files.items():
        write(folder, f"{name}.json", value)
    return folder


def load(folder: Path) -> Any:
    return boostr.load(folder, backend="numpy")


def states(model: Any, text: str) -> np.ndarray:
    """Hidden states [T, E] in float64."""
    return model.hidden([model.tokenizer.encode(text)])[0].astype(np.float64)


def pooled(mode: str, h: np.ndarray) -> np.ndarray:
    T = len(h)
    weights = np.arange(1, T + 1) / (T * (T + 1) / 2)
    return {
        "cls": h[0], "max": h.max(0), "mean": h.sum(0) / T, "lasttoken": h[T - 1],
        "mean_sqrt_len_tokens": h.sum(0) / math.sqrt(T), "weightedmean": (h.T * weights).sum(1),
    }[mode]  # fmt: skip


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("spelling", ["switch", "name", "list"])
def test_pooling(encoder: Path, tmp_path: Path, mode: str, spelling: str) -> None:
    suffix = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
              "weightedmean": "weightedmean_tokens"}.get(mode, mode)  # fmt: skip
    config = {
        "switch": {"word_embedding_dimension": 32, f"pooling_mode_{suffix}": True},
        "name": {"pooling_mode": mode},
        "list": {"pooling_mode": [mode]},
    }[spelling]
    model = load(sentence_folder(encoder, tmp_path / "m", config))
    expected = np.stack([pooled(mode, states(model, text)) for text in TEXTS])
    np.testing.assert_allclose(model.embed(TEXTS), expected, rtol=1e-5, atol=1e-5)


def test_several_poolings_are_put_together(encoder: Path, tmp_path: Path) -> None:
    switches = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    for at, (config, order) in enumerate(
        (
            (switches, ("cls", "mean")),  # of switches in sentence-transformers' order
            ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        )
    ):
        model = load(sentence_folder(encoder, tmp_path / str(at), config))
        h = [states(model, text) for text in TEXTS]
        expected = np.stack([np.concatenate([pooled(m, x) for m in order]) for x in h])
        vectors = model.embed(TEXTS)
        assert vectors.shape == (3, 64) and model.dimension == 64
        np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)


ERF = np.vectorize(math.erf)
TRUTH = {
    "Identity": lambda x: x, "Tanh": np.tanh, "ReLU": lambda x: x * (x > 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "SiLU": lambda x: x / (1 + np.exp(-x)),
    "GELU": lambda x: x * 0.5 * (1 + ERF(x / np.sqrt(2))),
}  # fmt: skip


def test_activations_of_large_numbers() -> None:
    large = np.array([-1e4, -100.0, 0.0, 100.0, 1e4], np.float32)
    for name, activation in ACTIVATIONS.items():
        assert np.isfinite(activation(large)).all(), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "out", "residual"), [(True, 8, False), (False, 8, True),
                                                       (True, 32, True)])  # fmt: skip
def test_dense(
    encoder: Path, tmp_path: Path, activation: str, bias: bool, out: int, residual: bool
) -> None:
    rng = np.random.default_rng(3)
    tensors = {"linear.weight": rng.standard_normal((out, 32), "f4") / 6}
    tensors |= {"linear.bias": rng.standard_normal(out, "f4")} if bias else {}
    if residual and out != 32:
        tensors["residual.weight"] = rng.standard_normal((out, 32), "f4") / 6
    folder = sentence_folder(encoder, tmp_path / "m", None, module("Dense"))
    config = {"in_features": 32, "out_features": out, "bias": bias, "use_residual": residual,
              "activation_function": f"torch.nn.modules.activation.{activation}"}  # fmt: skip
    write(folder, "9_Dense/config.json", config)
    save(folder / "9_Dense" / "model.safetensors", tensors)
    model = load(folder)
    x = np.stack([pooled("mean", states(model, text)) for text in TEXTS])
    w = {name: value.astype(np.float64) for name, value in tensors.items()}
    expected = TRUTH[activation](x @ w["linear.weight"].T + w.get("linear.bias", 0))
    if residual:
        expected = expected + (x @ w["residual.weight"].T if out != 32 else x)
    np.testing.assert_allclose(model.embed(TEXTS), expected, rtol=1e-5, atol=2e-5)
    assert model.dimension == out


def test_layer_norm_dropout_and_normalize(encoder: Path, tmp_path: Path) -> None:
    more = (module("LayerNorm"), module("Dropout"), module("Normalize"))
    folder = sentence_folder(encoder, tmp_path / "m", None, *more)
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal(32, "f4"), rng.standard_normal(32, "f4")
    write(folder, "9_LayerNorm/config.json", {"dimension": 32})
    save(folder / "9_LayerNorm" / "model.safetensors", {"norm.weight": weight, "norm.bias": bias})
    write(folder, "9_Dropout/config.json", {"dropout": 0.5})
    model = load(folder)
    x = np.stack([pooled("mean", states(model, text)) for text in TEXTS])
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight + bias
    expected = x / np.sqrt((x**2).sum(1, keepdims=True))
    np.testing.assert_allclose(model.embed(TEXTS), expected, rtol=1e-5, atol=1e-5)


PROMPTS = {"prompts": {"query": "query: ", "none": None}, "default_prompt_name": "query"}


def test_prompts(encoder: Path, tmp_path: Path) -> None:
    plain = load(sentence_folder(encoder, tmp_path / "plain"))
    folder = sentence_folder(
        encoder, tmp_path / "m", config_sentence_transformers=PROMPTS | {"truncate_dim": 8}
    )
    model = load(folder)
    with_prompt = plain.embed(["query: " + text for text in TEXTS])
    assert np.array_equal(model.embed(TEXTS), with_prompt[:, :8])  # the default prompt, unasked
    assert np.array_equal(model.embed(TEXTS, prompt_name="none"), plain.embed(TEXTS)[:, :8])
    assert np.array_equal(model.embed(TEXTS, prompt=""), plain.embed(TEXTS)[:, :8])
    given = model.embed(TEXTS, prompt="query: ", truncate_dim=np.int64(16))
    assert np.array_equal(given, with_prompt[:, :16])


def test_a_prompt_that_is_not_pooled(encoder: Path, tmp_path: Path) -> None:
    """The special token before it is left out with it, as in sentence-transformers."""
    for mode in POOLINGS:
        config = {"pooling_mode": mode, "include_prompt": False}
        model = load(sentence_folder(encoder, tmp_path / mode, config))
        first = len("query: ") + 1
        h = [states(model, "query: " + text)[first:] for text in TEXTS]
        whole = [states(model, "query: " + text) for text in TEXTS]
        if mode == "weightedmean":  # tokens keep the weights of their places
            weights = [np.arange(first + 1, len(x) + 1) for x in whole]
            expected = [w @ x / w.sum() for w, x in zip(weights, h, strict=True)]
        else:
            expected = [pooled(mode, x) for x in h]
        vectors = model.embed(TEXTS, prompt="query: ")
        np.testing.assert_allclose(vectors, np.stack(expected), rtol=1e-5, atol=1e-5)
        plain = np.stack([pooled(mode, states(model, text)) for text in TEXTS])
        np.testing.assert_allclose(model.embed(TEXTS), plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(OptionError, match="leaves no room"):
        model.embed(["x"], prompt="p" * 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_name": "passage"}, "no prompt 'passage'; .* has query, none"),
        ({"prompt_name": 3}, "no prompt 3"), ({"prompt": 3}, "embed: prompt"),
        ({"prompt": "a", "prompt_name": "query"}, "got both"),
        ({"truncate_dim": 0}, "truncate_dim must be 1 or more, at most 32, got 0"),
        ({"truncate_dim": 33}, "truncate_dim"), ({"truncate_dim": "8"}, "truncate_dim"),
    ],
)  # fmt: skip
def test_arguments_of_embed(encoder: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    model = load(sentence_folder(encoder, tmp_path / "m", config_sentence_transformers=PROMPTS))
    with pytest.raises(OptionError, match=message):
        model.embed(TEXTS, **arguments)


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "kept"),
    [
        ({"max_seq_length": 12}, {}, 12), ({"max_seq_length": 12}, {"model_max_length": 9}, 12),
        ({"max_seq_length": None}, {"model_max_length": 9}, 9), (None, {"model_max_length": 9}, 9),
        ({"max_seq_length": 500}, {}, 64), (None, {"model_max_length": 1e30}, 64),
        (None, {"model_max_length": 1000000000000000019884624838656}, 64),
    ],
)  # fmt: skip
def test_texts_are_cut_as_the_folder_says(
    encoder: Path, tmp_path: Path, sentence: Any, tokenizer: dict, kept: int
) -> None:
    files = {} if sentence is None else {"sentence_bert_config": sentence}
    folder = sentence_folder(encoder, tmp_path / "m", {"pooling_mode": "mean"}, **files)
    write(folder, "tokenizer_config.json", tokenizer)
    model = load(folder)
    long = "abcdefgh" * 20
    ids = model.tokenizer.encode(long)
    expected = model.hidden([[*ids[: kept - 1], ids[-1]]])[0].mean(0)
    np.testing.assert_allclose(model.embed([long])[0], expected, rtol=1e-5, atol=1e-5)


def test_a_text_without_tokens(tmp_path: Path) -> None:
    model = load(make_tiny_encoder(tmp_path / "m"))  # its tokenizer adds no special ones
    assert model.embed([]).shape == (0, 32)
    with pytest.raises(OptionError, match=r"texts\[1\] has no tokens to pool$"):
        model.embed(["a", ""])


def test_lower_case(encoder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(
        encoder, tmp_path / "m", None, sentence_roberta_config={"do_lower_case": True}
    )
    model = load(folder)
    assert np.array_equal(model.embed(["HELLO Ä"]), model.embed(["hello ä"]))
    special = model.tokenizer.token_to_id(SPECIAL[0])
    assert model.tokenizer.encode(SPECIAL[0], False) == [special]


def test_the_encoder_may_lie_in_a_subfolder(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(encoder, folder / "0_Transformer")
    write(folder, "modules.json", [TRANSFORMER | {"path": "0_Transformer"}, POOLING])
    write(folder, "1_Pooling/config.json", {"pooling_mode": "cls"})
    write(folder, "0_Transformer/sentence_bert_config.json", {"max_seq_length": 6})
    model = load(folder)
    assert model.sentence.max_length == 6 and model.sentence.poolings == ("cls",)
    assert np.array_equal(model.embed(["abcdefghi"]), model.embed(["abcdxyz"]))


def test_a_decoder_that_embeds(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m")
    write(folder, "modules.json", [TRANSFORMER, POOLING, module("Normalize")])
    write(folder, "1_Pooling/config.json", {"pooling_mode_lasttoken": True})
    model = load(folder)
    h = np.stack([states(model, text)[-1] for text in TEXTS])
    expected = h / np.sqrt((h**2).sum(1, keepdims=True))
    np.testing.assert_allclose(model.embed(TEXTS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules": {}}, "expected a list of objects"),
        ({"modules": [TRANSFORMER]}, "expected a Transformer, a Pooling"),
        ({"modules": [POOLING, TRANSFORMER]}, "expected a Transformer, a Pooling"),
        ({"modules": [TRANSFORMER, POOLING | {"path": "../x"}]}, "leaves the folder"),
        ({"modules": [TRANSFORMER, POOLING | {"path": "/x"}]}, "leaves the folder"),
        ({"modules": [TRANSFORMER | {"type": "custom_st.Transformer"}, POOLING]},
         "'custom_st.Transformer' is not known"),
        ({"modules": [TRANSFORMER | {"kwargs": ["task"]}, POOLING]}, "kwargs = .* not supported"),
        ({"modules": [TRANSFORMER, POOLING, module("WeightedLayerPooling")]}, "is not known"),
        ({"1_Pooling/config": {"pooling_mode": "median"}}, r"got \['median'\]"),
        ({"1_Pooling/config": {"pooling_mode": []}}, r"got \[\]"),
        ({"1_Pooling/config": {"pooling_mode_new": True}}, "pooling_mode_new = True"),
        ({"1_Pooling/config": {"include_prompt": 1}}, "include_prompt must be true or false"),
        ({"config_sentence_transformers": {"default_prompt_name": "q"}}, "'q' is not in prompts"),
        ({"config_sentence_transformers": {"prompts": {"q": 3}}}, "must map names to texts"),
        ({"config_sentence_transformers": {"prompts": ["q"]}}, "prompts must be an object"),
        ({"config_sentence_transformers": {"truncate_dim": 0}}, "truncate_dim must be 1 or more"),
        ({"config_sentence_transformers": {"model_type": "SparseEncoder"}}, "SparseEncoder"),
        ({"sentence_bert_config": {"max_seq_length": "long"}}, "must be a whole number"),
        ({"sentence_bert_config": {"model_args": {"a": 1}}}, "model_args = .* not supported"),
        ({"tokenizer_config": {"model_max_length": 0}}, "model_max_length must be 1 or more"),
    ],
)  # fmt: skip
def test_what_is_refused(encoder: Path, tmp_path: Path, files: dict, message: str) -> None:
    folder = sentence_folder(encoder, tmp_path / "m", **files)
    with pytest.raises(BoostrError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        ({"activation_function": "evil.Tanh"}, "model.safetensors", "'evil.Tanh' is not known"),
        ({"activation_function": "torch.nn.Softmax"}, "model.safetensors", "is not known"),
        ({"module_input_name": "token_embeddings"}, "model.safetensors", "not supported"),
        ({"in_features": 31}, "model.safetensors", r"must have the shape \(8, 31\), got \(8, 32\)"),
        ({"bias": True}, "model.safetensors", "no tensor 'linear.bias'"),
        ({}, "pytorch_model.bin", "is a pickle, which boostr does not read"),
    ],
)
def test_dense_that_is_refused(
    encoder: Path, tmp_path: Path, change: dict, file: str, message: str
) -> None:
    folder = sentence_folder(encoder, tmp_path / "m", None, module("Dense"))
    config = {"in_features": 32, "out_features": 8, "bias": False}
    write(folder, "9_Dense/config.json", config | change)
    save(folder / "9_Dense" / file, {"linear.weight": np.zeros((8, 32), "f4")})
    with pytest.raises(ModelFileError, match=message):
        load(folder)


def test_dense_that_does_not_fit_the_pooling(encoder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(encoder, tmp_path / "m", {"pooling_mode": ["cls", "max"]},
                             module("Dense"))  # fmt: skip
    write(folder, "9_Dense/config.json", {"in_features": 32, "out_features": 8, "bias": False})
    save(folder / "9_Dense" / "model.safetensors", {"linear.weight": np.zeros((8, 32), "f4")})
    with pytest.raises(ModelFileError, match="takes 32 features, but the pooling gives 64"):
        load(folder)
