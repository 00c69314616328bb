"""save_state and load_state: a run that goes on as if it had not stopped."""

import numpy as np
import pytest
from draws import normal, refused
from train.conftest import CONFIG

import boostr
from boostr import Tensor, train
from boostr.errors import ModelFileError, OptionError
from boostr.operands import LowRank


def run(model, optimizer, batches):
    for batch in batches:
        model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [train.AdamW, train.SGD, train.Lion])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_is_uninterrupted(kind, dtype, tmp_path, rng):
    """Bit for bit, parameters and optimizer."""

    def made(seed):
        model = boostr.create("llama", CONFIG, seed, backend="numpy", dtype=dtype)
        return model, kind(model.parameters(), lr=0.01)

    batches = [train.pack([rng.integers(0, 50, 9).tolist()]) for _ in range(6)]
    model, optimizer = made(0)
    run(model, optimizer, batches[:3])
    optimizer.lr = 0.02
    train.save_state(tmp_path / "state", model, optimizer, step=3, data=[1, "a"])
    train.save_state(tmp_path / "state", model, optimizer, step=3, data=[1, "b"])  # replaced
    run(model, optimizer, batches[3:])
    again, other = made(1)
    values = train.load_state(tmp_path / "state", again, other)
    assert values == {"step": 3, "data": [1, "b"]} and other.lr == 0.02
    run(again, other, batches[3:])
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_another_state_is_refused(make, tmp_path, sequences):
    model = make()
    train.save_state(tmp_path / "state", model, train.AdamW(model.parameters()))
    with refused(ModelFileError, "AdamW", "SGD"):
        train.load_state(tmp_path / "state", model, train.SGD(model.parameters()))
    other = make(num_hidden_layers=1)
    with refused(ModelFileError, "model.safetensors", "layers.1"):
        train.load_state(tmp_path / "state", other, train.AdamW(other.parameters()))
    wide = make(intermediate_size=48)
    with refused(ModelFileError, "gate_proj", "[48, 32]", "[44, 32]"):
        train.load_state(tmp_path / "state", wide, train.AdamW(wide.parameters()))
    with refused(ModelFileError, "not of this model"):
        train.save_state(tmp_path / "other", other, train.AdamW(model.parameters()))


def test_of_a_state_that_does_not_fit_nothing_is_put_back(make, tmp_path):
    model, other = make(), make(tie_word_embeddings=False)
    train.save_state(tmp_path / "state", model, train.AdamW(model.parameters()))
    for p in model.parameters():
        p.assign(p * 2)
    before = [p.numpy().copy() for p in model.parameters()]
    train.save_state(tmp_path / "other", other, train.AdamW(other.parameters()))
    (tmp_path / "other" / "optimizer.safetensors").rename(
        tmp_path / "state" / "optimizer.safetensors"
    )
    with refused(ModelFileError, "optimizer.safetensors", "other tensors", "lm_head"):
        train.load_state(tmp_path / "state", model, train.AdamW(model.parameters()))
    for p, values in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.numpy(), values)


def test_a_model_that_is_saved_is_loaded(make, tmp_path, sequences):
    model, batch = make(), train.pack(sequences)
    optimizer = train.AdamW(model.parameters(), lr=0.01)
    run(model, optimizer, [batch] * 2)
    model.save(tmp_path / "out")
    again = boostr.load(tmp_path / "out", backend="numpy", trainable=True)
    assert again.loss(batch).item() == model.loss(batch).item()
    names = [name for name, _ in again.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    again.loss(batch).backward()
    train.AdamW(again.parameters()).step()  # its weights are its own
    plain = boostr.load(tmp_path / "out", backend="numpy")
    assert not any(p.requires_grad for p in plain.parameters())
    assert plain.loss(batch).item() == model.loss(batch).item()


def test_what_cannot_be_trained(make, tmp_path):
    make().save(tmp_path / "out")
    with refused(OptionError, "trainable", "quantize"):
        boostr.load(tmp_path / "out", backend="numpy", quantize="int8", trainable=True)
    for p in boostr.load(tmp_path / "out", backend="numpy").parameters():
        p.requires_grad = True
        with refused(OptionError, "view of its file", "trainable=True"):
            train.AdamW([p])
        break


def test_an_adapter_trains_alone(make, tmp_path, sequences, rng):
    """Over floats and over int8: the base stays as it is, bit for bit."""
    model = make()
    model.save(tmp_path / "base")
    q = model.module.model.layers[0].self_attn.q_proj
    down, up = (Tensor(normal(rng, s), backend="numpy") for s in ((4, 32), (32, 4)))
    q.weight = LowRank(q.weight, down, up, 0.5)
    model.save_adapter(tmp_path / "adapter")
    for quantize in (None, "int8"):
        over = boostr.load(
            tmp_path / "base", backend="numpy", quantize=quantize, adapter=tmp_path / "adapter",
            trainable=True,
        )  # fmt: skip
        trained = [name for name, p in over.named_parameters() if p.requires_grad]
        assert trained == [f"model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB"]
        optimizer = train.AdamW(over.parameters(), lr=0.01)
        before = [p.numpy().copy() for p in over.parameters() if not p.requires_grad]
        first = over.loss(train.pack(sequences)).item()
        run(over, optimizer, [train.pack(sequences)] * 5)
        assert over.loss(train.pack(sequences)).item() < first
        frozen = [p for p in over.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)
        for p, values in zip(frozen, before, strict=True):
            np.testing.assert_array_equal(p.numpy(), values)
