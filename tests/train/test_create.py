"""create: new models, and contrastive training of an encoder."""

import numpy as np
import pytest
from draws import normal, refused, tensors
from tolerance import assert_close
from train.conftest import BERT, CONFIG, values

import boostr
from boostr import train
from boostr.errors import ModelFileError, OptionError, ShapeError


def test_initial_values():
    model = boostr.create("llama", {**CONFIG, "vocab_size": 4000}, 5, backend="numpy")
    found = values(model)
    again = values(boostr.create("llama", {**CONFIG, "vocab_size": 4000}, 5, backend="numpy"))
    other = values(boostr.create("llama", {**CONFIG, "vocab_size": 4000}, 6, backend="numpy"))
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name])
        if "norm" in name:
            assert (array == 1).all()
        else:
            assert (array != other[name]).any()
            assert abs(array.mean()) < 0.05 and array.std() == pytest.approx(0.2, rel=0.1)
    q, k = (found[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    assert (q[: len(k)] != k).any()  # a seed for each
    assert all(p.requires_grad for p in model.parameters())


def test_norms_stored_without_their_one_and_biases():
    gemma = boostr.create("gemma", {**CONFIG, "head_dim": 8}, backend="numpy")
    assert (values(gemma)["model.norm.weight"] == 0).all()
    found = values(boostr.create("qwen2", CONFIG, backend="numpy"))
    assert (found["model.layers.0.self_attn.q_proj.bias"] == 0).all()


def test_residual_scaling():
    found = values(boostr.create("llama", CONFIG, backend="numpy", scale_residual=True))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert found[f"model.layers.1.{name}.weight"].std() == pytest.approx(0.1, rel=0.1)
    assert found["model.layers.1.mlp.up_proj.weight"].std() == pytest.approx(0.2, rel=0.1)


def test_refuses():
    with refused(OptionError, "create", "llama", "qwen2"):
        boostr.create("llama", {**CONFIG, "model_type": "qwen2"})
    with refused(ModelFileError, "lama"):
        boostr.create("lama", CONFIG)
    with refused(ModelFileError, "a new llama", "num_attention_heads"):
        boostr.create("llama", {"hidden_size": 32})


# -- embedding models ----------------------------------------------------------------------------
def test_contrastive_loss(backend, rng):
    a, b = normal(rng, (5, 8)), normal(rng, (5, 8))
    ta, tb = tensors(backend, a, b)
    ta.requires_grad = True
    loss = train.contrastive_loss(ta, tb, 7.0)
    loss.backward()
    a, b = (x.astype(np.float64) for x in (a, b))

    def value(a):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
        logits = 7 * unit[0] @ unit[1].T
        return np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))

    assert loss.item() == pytest.approx(value(a), rel=1e-5)
    along = rng.standard_normal(a.shape)
    slope = (value(a + 1e-6 * along) - value(a - 1e-6 * along)) / 2e-6
    assert (ta.grad.numpy() * along).sum() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_vectors_are_those_of_embed(rng):
    model = boostr.create("bert", BERT, backend="numpy")
    ids = [rng.integers(0, 50, n).tolist() for n in (5, 1, 9)]
    states = model.hidden(ids)
    want = np.stack([s.mean(0) for s in states])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert_close(model(train.pack(ids)).numpy(), want, dtype="float32", reduce=32, scale=1.0)


def test_pairs_are_learnt(rng):
    model = boostr.create("bert", BERT, backend="numpy")
    anchors, positives = ([rng.integers(0, 50, 6).tolist() for _ in range(4)] for _ in range(2))
    optimizer = train.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = train.contrastive_loss(model(train.pack(anchors)), model(train.pack(positives)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    with refused(OptionError, "loss", "no logits"):
        model.loss(train.pack(anchors))


def test_contrastive_refuses():
    a, b = tensors("numpy", np.ones((3, 4), "f4"), np.ones((2, 4), "f4"))
    with refused(ShapeError, "contrastive_loss", "[3, 4]", "[2, 4]"):
        train.contrastive_loss(a, b)
    with refused(ShapeError, "contrastive_loss", "2 or more"):
        train.contrastive_loss(a[:1], a[:1])


def test_a_sequence_longer_than_the_table_of_positions():
    """Its last row would learn all that are behind."""
    model = boostr.create("bert", BERT, backend="numpy")
    batch = train.pack([[1] * 3, [2] * 65])
    with refused(OptionError, "sequence of the batch", "64 positions", "65 tokens"):
        model(batch)
