"""Models whose caches are packed: little changes, and nothing that packing does not explain."""

from __future__ import annotations

import numpy as np
import pytest
from draws import refused
from tiny_model import make_tiny, make_tiny_encoder

import boostr
from boostr import env
from boostr.engine.fixed_rows import FixedRows
from boostr.errors import OptionError
from boostr.quant.kv import KV_FORMS

KINDS = {"full": {}, "window": {"model_type": "mistral", "sliding_window": 6}}
PROMPTS = ["a", "some words", "x" * 40, "The quick brown fox", "1, 2, 3", "longer " * 9]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_tiny(folder, head_dim=32, **KINDS[request.param])


@pytest.fixture(scope="module", params=KV_FORMS)
def model(request, where, folder):
    return boostr.load(folder, backend=where, kv_dtype=request.param)


def test_a_cache_is_smaller(model):
    form = model.runner.kv_form
    pool = model.runner.new_pool()
    pool.grow([3])
    tokens = 3 * pool.block_size
    rows = tokens * 2 * 2  # of 2 kv heads, keys and values
    assert pool.nbytes == rows * {"int8": 32 + 4, "int4": 16 + 4}[form.name]
    assert pool.nbytes == tokens * model.runner.kv_token_bytes


def test_scores_are_near_those_of_floats(model, folder, where):
    plain = boostr.load(folder, backend=where)
    for text in PROMPTS[2:]:
        near = {"int8": 5e-3, "int4": 1e-1}[model.runner.kv_form.name]
        ours, exact = model.score(text).nll, plain.score(text).nll
        assert ours != exact and abs(ours - exact) <= near * exact


def test_a_batch_is_each_alone(model):
    together = model.generate_batch(PROMPTS, max_tokens=20)
    alone = [model.generate(p, max_tokens=20) for p in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_step_by_step_is_prefill(model):
    runner = model.runner
    prompt = model.encode("some words and more")
    rows = FixedRows(runner, 1, len(prompt) + 12)
    first = int(rows.prefill([prompt]).numpy()[0].argmax())
    rows.begin([first], [len(prompt)])
    sequence = [*prompt, first]
    for _ in range(8):
        ids, logits = rows.step()
        whole = FixedRows(runner, 1, len(sequence)).prefill([sequence]).numpy()
        error = np.abs(logits.numpy() - whole).max() / np.abs(whole).max()
        # a number that lies between two codes may be rounded to either
        assert error <= {"int8": 1e-2, "int4": 1e-1}[runner.kv_form.name]
        sequence.append(int(ids[0]))


def test_a_conversation_is_as_without_its_cache(model, folder, where):
    text, form = [], model.runner.kv_form.name
    for turn in ("Hello there. ", "A second question?", "And so on: " * 9):
        text += model.encode(turn)
        kept = model.generate(text, max_tokens=9).token_ids
        fresh = boostr.load(folder, backend=where, kv_dtype=form)
        assert kept == fresh.generate(text, max_tokens=9).token_ids
        text += kept


def test_the_environment_names_it(folder, monkeypatch):
    monkeypatch.setenv(env.KV_DTYPE.name, "int8")
    assert boostr.load(folder, backend="numpy").runner.kv_form is KV_FORMS["int8"]
    chosen = boostr.load(folder, backend="numpy", kv_dtype="int4")
    assert chosen.runner.kv_form is KV_FORMS["int4"]
    monkeypatch.setenv(env.KV_DTYPE.name, "int3")
    with refused(OptionError, "int3", "int8, int4"):
        boostr.load(folder, backend="numpy")


def test_refusals(folder, tmp_path):
    with refused(OptionError, "kv_dtype", "'fp8'", "int8, int4"):
        boostr.load(folder, backend="numpy", kv_dtype="fp8")
    with refused(OptionError, "kv_dtype", "str or None", "8"):
        boostr.load(folder, backend="numpy", kv_dtype=8)
    with refused(OptionError, "int4", "heads of 8", "int8"):
        boostr.load(make_tiny(tmp_path / "narrow"), backend="numpy", kv_dtype="int4")
    with refused(OptionError, "kv_dtype", "no text generator"):
        boostr.load(make_tiny_encoder(tmp_path / "bert"), backend="numpy", kv_dtype="int8")
