"""SmolLM2-135M-Instruct from GGUF, against transformers on the same dequantized weights."""

from __future__ import annotations

import numpy as np
import pytest
import real_models

import boostr

GOLDEN = real_models.smollm2_golden()
RUNS = GOLDEN["generate"]


@pytest.fixture(scope="module")
def model():
    return boostr.load(real_models.smollm2(), backend="numpy")


@pytest.mark.parametrize("run", RUNS, ids=[r["name"] for r in RUNS])
def test_prompt_ids(model, run):
    assert (
        model.encode(None if run["messages"] else run["prompt"], run["messages"])
        == run["prompt_ids"]
    )


@pytest.mark.parametrize("run", RUNS, ids=[r["name"] for r in RUNS])
def test_greedy_ids_equal_transformers(model, run):
    completion = model.generate(run["prompt_ids"], max_tokens=64, ignore_eos=True)
    assert completion.token_ids == run["generated_ids"]


def test_top_logits(model):
    run = RUNS[0]
    logits = model.logits(run["prompt_ids"])[-1]
    # bytes meet x in digits on the CPU: docs/numerics.md
    within = 3e-4 * np.abs(logits).max()
    np.testing.assert_allclose(logits[run["top_ids"]], run["top_logits"], rtol=0, atol=within)


def test_the_capital_of_france(model):
    completion = model.generate("The capital of France is", max_tokens=8)
    assert completion.text.startswith(" Paris")


def test_score(model):
    golden = GOLDEN["score"]
    score = model.score(golden["text"])
    assert score.token_count == len(golden["nll"])
    assert abs(score.nll - golden["nll_sum"]) <= 1e-4 * golden["nll_sum"]


def test_perplexity(model):
    golden = GOLDEN["perplexity"]
    text = (real_models.DATA.parents[1] / "data" / golden["file"]).read_bytes().decode()
    found = boostr.perplexity(model, text, chunks=len(golden["running"]))
    # x in two digits moves the loss of a token by 4.2e-4 (standard deviation): four of its mean's
    np.testing.assert_allclose(found.running, golden["running"], rtol=4 * 4.2e-4 / 255**0.5)


def test_batch_equals_each_alone(model):
    prompts = [r["prompt_ids"] for r in RUNS]
    for completion, run in zip(
        model.generate_batch(prompts, max_tokens=16, ignore_eos=True), RUNS, strict=True
    ):
        assert completion.token_ids == run["generated_ids"][:16]


def test_stream_gives_the_text_of_generate(model):
    run = RUNS[1]
    pieces = list(model.stream(messages=run["messages"], max_tokens=64))
    completion = model.generate(messages=run["messages"], max_tokens=64)
    assert "".join(p.text for p in pieces) == completion.text
    assert completion.finish_reason == pieces[-1].finish_reason == "stop"
    assert pieces[-1].timings is not None
