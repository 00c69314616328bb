"""Threads that generate and embed at once, with one model or several: each as it would be alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr import Tensor
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.load import load_module
from boostr.engine.sentence import Sentence
from boostr.engine.text_model import Parts
from boostr.program import capture

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


def test_all_kinds_of_work_at_once(models, encoder, where):
    """Eager ops, gradients and captures of others while the engine runs, texts that are scored, and
    threads that share an encoder: nobody's values are anybody else's."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 33, 33)).astype("f4")

    def product():
        x, y = (Tensor(v.copy(), backend=where) for v in (a, b))
        return (x @ y * 2 - x).numpy()

    def gradient():
        x, w = (Tensor(v.copy(), backend=where, requires_grad=True) for v in (a, b))
        (x @ w).sum().backward()
        return w.grad.numpy()

    def program():
        x = Tensor(a.copy(), backend=where)
        made = capture(lambda: x @ x + 1, where)
        x.assign(b)
        return made.run().numpy()

    ids = cases.sequences(BERT)
    jobs = [
        lambda m=m, p=p: m.generate(p, max_tokens=12).token_ids for m in models for p in PROMPTS
    ]
    jobs += [lambda m=m: m.score("a quick fox").nll for m in models]
    jobs += [lambda: models[0].logits([5, 6, 7])]
    jobs += [lambda: np.concatenate(encoder.hidden(ids)), product, gradient, program] * 2
    alone = [job() for job in jobs]
    np.testing.assert_array_equal(alone[-3], a @ b * 2 - a)
    np.testing.assert_array_equal(alone[-2], a.sum(0)[:, None].repeat(33, 1))
    np.testing.assert_array_equal(alone[-1], b @ b + 1)
    for wanted, rounds in zip(alone, together(jobs, rounds=8), strict=True):
        for found in rounds:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


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
