"""add_lora: where an adapter starts, what it trains, and that only it does."""

from __future__ import annotations

import json

import cases
import numpy as np
import pytest
from cases import close, named
from tiny_model import make_tiny

import boostr
from boostr import Tensor, ops
from boostr.errors import ModelFileError, OptionError
from boostr.io.peft import read_adapter
from boostr.operands import LowRank
from boostr.quant.scheme import QuantizedTensor
from boostr.train import SGD, add_lora, clip_grad_norm, compile_step, pack, set_dropout

IDS = [*range(5, 25)]


def adapted(model):
    return {n: w for n, w in model.module.weights().items() if isinstance(w, LowRank)}


def tiny(tmp_path, **options):
    folder = make_tiny(tmp_path / "tiny", hidden_size=64, intermediate_size=128)
    return boostr.load(folder, backend="numpy", **options)


def test_it_starts_as_nothing(tmp_path):
    model = tiny(tmp_path)
    before = model.logits(IDS)
    add_lora(model, r=4, alpha=8)
    np.testing.assert_array_equal(model.logits(IDS), before)
    assert len(adapted(model)) == 7  # all products but the head
    for weight in adapted(model).values():
        bound = 1 / np.sqrt(weight.shape[1])
        down = weight.down.numpy()
        assert weight.scale == 2 and down.shape == (4, weight.shape[1])
        assert 0.8 * bound < np.abs(down).max() <= bound
        assert not weight.up.numpy().any() and weight.up.shape == (weight.shape[0], 4)


def test_draws_are_of_seed_and_module(tmp_path):
    one, two, three = (tiny(tmp_path) for _ in range(3))
    add_lora(one, r=4, alpha=8, target_modules=["q_proj", "down_proj"])
    add_lora(two, r=4, alpha=8, target_modules=["down_proj"], rslora=True)
    add_lora(three, r=4, alpha=8, target_modules=r".*layers\.0\.mlp\.down_proj", seed=1)
    name = "model.layers.0.mlp.down_proj.weight"
    downs = [adapted(m)[name].down.numpy() for m in (one, two, three)]
    np.testing.assert_array_equal(downs[0], downs[1])
    assert (downs[0] != downs[2]).any()
    assert [adapted(m)[name].scale for m in (one, two)] == [2, 4]
    assert len(adapted(one)) == 2 and list(adapted(two)) == list(adapted(three)) == [name]


@pytest.mark.parametrize("scheme", [None, "int8", "nf4"])
def test_only_the_adapter_trains(scheme, tmp_path):
    """Steps down the gradient lower the loss; the base keeps every byte."""
    model = tiny(tmp_path, quantize=scheme)
    add_lora(model, r=4, alpha=8)
    trained = {n: t for n, t in model.module.named_parameters() if t.requires_grad}
    assert {name.split(".")[-2] for name in trained} == {"lora_A", "lora_B"} and len(trained) == 14
    base = [part.copy() for part in parts(model)]
    targets = Tensor(np.array([*IDS[1:], -100], np.int32))
    batch = model.runner.packed([IDS])
    losses = []
    for _ in range(6):
        loss = ops.cross_entropy(model.module(batch), targets)
        loss.backward()
        losses.append(float(loss.numpy()))
        for tensor in trained.values():
            tensor.assign(tensor.numpy() - 0.1 * tensor.grad.numpy())
            tensor.grad = None
    assert losses[-1] < losses[0] - 1 and losses == sorted(losses, reverse=True)
    assert all(np.array_equal(now, then) for now, then in zip(parts(model), base, strict=True))


def parts(model):
    """The numbers of all that lies under the adapter, and beside it."""
    for weight in model.module.weights().values():
        base = weight.base if isinstance(weight, LowRank) else weight
        for part in base.parts.values() if isinstance(base, QuantizedTensor) else [base]:
            yield part.numpy()


def test_modules_that_are_several_parameters(tmp_path):
    """phi3 has q, k and v in one tensor: one A, whose gradient is of all three; files have one."""
    model = boostr.load(cases.checkpoint(named("phi3/window"), tmp_path), backend="numpy")
    add_lora(model, r=2, target_modules=["qkv_proj"])
    names = [name for name, tensor in model.module.named_parameters() if tensor.requires_grad]
    first = [name for name in names if name.startswith("model.layers.0.")]
    assert [name.split(".")[-3:-1] for name in first] == [
        ["q_proj", "lora_A"], ["q_proj", "lora_B"], ["k_proj", "lora_B"], ["v_proj", "lora_B"],
    ]  # fmt: skip
    for tensor in model.module.parameters():
        if tensor.requires_grad:
            tensor.assign(np.random.default_rng(1).standard_normal(tensor.shape, "f4"))
    want = model.logits(IDS)
    model.save_adapter(tmp_path / "a")
    assert list(read_adapter(tmp_path / "a").layers) == [
        f"model.layers.{i}.self_attn.qkv_proj" for i in range(len(names) // 4)
    ]
    again = boostr.load(tmp_path, backend="numpy", adapter=tmp_path / "a")
    close(again.logits(IDS), want, 1e-6)


def test_a_loaded_one_goes_on(tmp_path):
    """What is loaded as trainable is float32, one A of q, k and v, and nothing else trains."""
    folder, data = cases.checkpoint(named("phi3/window"), tmp_path), cases.DATA / "peft" / "packed"
    model = boostr.load(folder, backend="numpy", adapter=data, trainable=True)
    trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert len(trained) == len({id(t) for t in model.parameters() if t.requires_grad})
    assert sum(name.endswith("lora_A.weight") for name in trained) == 2 * 4
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.assign(tensor.numpy() * np.float32(0.5))
    model.save_adapter(tmp_path / "a")
    layers, before = read_adapter(tmp_path / "a").layers, read_adapter(data).layers
    assert layers.keys() == before.keys()
    for name, own in layers.items():
        np.testing.assert_array_equal(own.up * 2, before[name].up)


def test_tied_tables_keep_their_tie(tmp_path):
    model = boostr.load(cases.checkpoint(named("llama/tied"), tmp_path), backend="numpy")
    before = model.logits(IDS)
    add_lora(model, r=2, target_modules=["embed_tokens"])
    np.testing.assert_array_equal(model.logits(IDS), before)
    (weight,) = adapted(model).values()
    weight.up.assign(np.random.default_rng(1).standard_normal(weight.up.shape, "f4") / 8)
    want = model.logits(IDS)
    model.save_adapter(tmp_path / "a")
    again = boostr.load(tmp_path, backend="numpy", adapter=tmp_path / "a")
    close(again.logits(IDS), want, 1e-6)


def mean_loss(model, batch):
    return model.loss(batch).item()


def test_dropout_is_of_training(tmp_path):
    """Other masks in each pass of training, none where nothing is recorded, or without an adapter
    that trains; the mean over masks is near what there is without."""
    model, batch = tiny(tmp_path), pack([IDS])
    add_lora(model, r=4, alpha=8, dropout=0.5)
    for weight in adapted(model).values():
        weight.up.assign(np.random.default_rng(2).standard_normal(weight.up.shape, "f4") / 8)
    with boostr.no_grad():
        still = [mean_loss(model, batch) for _ in range(2)]
    moving = [mean_loss(model, batch) for _ in range(3)]
    assert still[0] == still[1] and len({*moving, still[0]}) == 4
    keys = {weight.dropout.key for weight in adapted(model).values()}
    assert len(keys) == 7
    model.save_adapter(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    set_dropout(model, 0.0)
    assert mean_loss(model, batch) == still[0]
    model.save_adapter(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_dropout"] == 0.0
    again = boostr.load(tmp_path / "tiny", backend="numpy", adapter=tmp_path / "a")
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("policy", ["none", "layer"])
def test_dropout_in_a_program(policy, tmp_path):
    """Each replay has the masks of the eager pass of that number; layers computed again, too."""
    found = []
    for captured in (False, True):
        model, batch = tiny(tmp_path), pack([IDS])
        add_lora(model, r=4, alpha=8, dropout=0.3, seed=5)
        model.recompute = policy if captured else "none"
        optimizer = SGD(model.parameters(), lr=0.1)
        if captured:
            step = compile_step(model, optimizer, tokens=len(IDS), max_sequences=1)
            found.append([step(batch).grad_norm for _ in range(4)])
        else:
            found.append([])
            for _ in range(4):
                model.loss(batch).backward()
                found[0].append(clip_grad_norm(optimizer.params, 1.0).item())
                optimizer.step()
                optimizer.zero_grad()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert len(set(found[0])) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 1.0}, "dropout must be 0 or more and below 1, got 1.0"),
        ({"r": 0}, "r and alpha must be above 0, got 0"),
        ({"alpha": -1}, "must be above 0"),
        ({"target_modules": ["q_proj", "qkv"]}, "'qkv'; this model has down_proj, embed_tokens"),
        ({"target_modules": []}, "this model has"),
        ({"target_modules": "q_proj"}, "'q_proj'"),  # one expression is of whole names
        ({"target_modules": "("}, r"target_modules '\('"),
    ],
)
def test_refuses(options, words, tmp_path):
    model = tiny(tmp_path)
    with pytest.raises(OptionError, match=words):
        add_lora(model, **options)
    assert not adapted(model)


def test_a_second_one_is_refused(tmp_path):
    model = tiny(tmp_path)
    add_lora(model, target_modules=["q_proj"])
    with pytest.raises(ModelFileError, match="has an adapter already"):
        add_lora(model)
