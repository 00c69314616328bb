"""Threads that generate and embed at once, with one model or several: each as it would be alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.load import load_module
from boostr.engine.sentence import Sentence
from boostr.engine.text_model import Parts

PROMPTS = ("hello", "a quick fox", "x")
SAMPLED = {"temperature": 0.9, "seed": 3, "repetition_penalty": 1.2}
BERT = cases.named("bert/mlm")


@pytest.fixture(scope="module")
def models(where, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    changes = ({}, {"model_type": "mistral", "sliding_window": 6})
    made = [make_tiny(folder / str(i), **change) for i, change in enumerate(changes)]
    return [boostr.load(path, backend=where) for path in made]


@pytest.fixture(scope="module")
def encoder(where, tmp_path_factory):
    module = load_module(cases.checkpoint(BERT, tmp_path_factory.mktemp("bert")), backend=where)
    return EmbeddingModel(Parts(module, None, where, "tiny"), Sentence())


def together(jobs, rounds):
    """Each job's results of all rounds, all jobs at once, a thread each."""
    start = threading.Barrier(len(jobs))

    def work(job):
        start.wait()
        return [job() for _ in range(rounds)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(work, jobs))


def test_generations_and_embeddings_at_once(models, encoder):
    def generation(model, prompt, options):
        return lambda: model.generate(prompt, max_tokens=12, **options).token_ids

    jobs = [generation(m, p, o) for m in models for p in PROMPTS for o in ({}, SAMPLED)]
    alone = [job() for job in jobs]
    ids = cases.sequences(BERT)
    vectors = encoder.hidden(ids)
    *got, embedded = together([*jobs, lambda: encoder.hidden(ids)], rounds=3)
    assert got == [[tokens] * 3 for tokens in alone]
    for found in embedded:
        for a, b in zip(found, vectors, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_conversation_a_thread(models):
    """What turns share is kept while others prefill and decode."""

    def conversation(model, words):
        def run():
            text = ""
            for word in words:
                text += word
                pieces = model.stream(text, max_tokens=4)
                text += "".join(piece.text for piece in pieces)
            return text

        return run

    jobs = [conversation(m, words) for m in models for words in ("abc", "xyz")]
    alone = [job() for job in jobs]
    assert together(jobs, rounds=2) == [[text] * 2 for text in alone]
