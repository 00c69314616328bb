"""Load plans: each rule loads what numpy says, and saving gives the checkpoint again."""

from __future__ import annotations

import numpy as np
import pytest

from boostr.errors import ModelFileError
from boostr.models import lazy, plan
from boostr.models.lazy import FromFile, whole
from boostr.models.plan import LoadPlan

Q, K, V = (f"layers.{{i}}.{part}_proj" for part in "qkv")


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("f4")


def checkpoint(**tensors):
    """Weights in numpy as those of a checkpoint; `__` in a name is a dot."""
    named = {name.replace("__", "."): array for name, array in tensors.items()}
    return {n: FromFile("tiny", n, a.shape, lambda a=a: a) for n, a in named.items()}


def arrays(weights):
    return {name: weight.read(whole(weight.shape)) for name, weight in weights.items()}


def loaded(rules, **tensors):
    """The canonical arrays; what is saved of them must be the checkpoint, bit for bit."""
    made, stored = LoadPlan(tuple(rules)), checkpoint(**tensors)
    naming = made.load(stored)
    assert naming.problems == []
    out = arrays(naming.weights)
    for name, array in out.items():
        assert naming.weights[name].shape == array.shape
    back = arrays(made.save(checkpoint(**out)))
    want = arrays(stored)
    assert sorted(back) == sorted(want)
    assert all(np.array_equal(back[n], want[n]) for n in want)
    return out


def test_rename_takes_what_is_below_the_name():
    w, b, other = numbers(3, 4), numbers(3), numbers(2)
    got = loaded(
        [plan.rename("h.{i}.mlp.fc", "model.layers.{i}.mlp.up_proj"), plan.rename("h", "rest")],
        **{"h__7__mlp__fc__weight": w, "h__7__mlp__fc__bias": b, "h__7__mlp__fcx": other},
    )
    assert np.array_equal(got["model.layers.7.mlp.up_proj.weight"], w)
    assert np.array_equal(got["model.layers.7.mlp.up_proj.bias"], b)
    assert np.array_equal(got["rest.7.mlp.fcx"], other)


def test_names_may_change_places():
    a, b = numbers(2), numbers(3)
    got = loaded(
        [plan.rename("n.{i}.a", "t.{i}"), plan.rename("n.{i}.b", "n.{i}.a"),
         plan.rename("t.{i}", "n.{i}.b")], n__0__a=a, n__0__b=b,
    )  # fmt: skip
    assert np.array_equal(got["n.0.a"], b)
    assert np.array_equal(got["n.0.b"], a)


def test_rows_are_views_of_the_one_tensor():
    w, b = numbers(11, 6), numbers(11)
    got = loaded([plan.rows("layers.{i}.qkv", [(Q, 6), (K, 3), (V, 2)])],
                 layers__0__qkv__weight=w, layers__0__qkv__bias=b)  # fmt: skip
    for name, start, stop in (("q", 0, 6), ("k", 6, 9), ("v", 9, 11)):
        part = got[f"layers.0.{name}_proj.weight"]
        assert np.array_equal(part, w[start:stop])
        assert np.shares_memory(part, w)
        assert np.array_equal(got[f"layers.0.{name}_proj.bias"], b[start:stop])


@pytest.mark.parametrize("bias", [False, True])
def test_heads_are_gathered(bias):
    H, D, E = 3, 4, 5
    w = numbers(H, 3, D) if bias else numbers(H, 3, D, E)
    flat = w.reshape(-1) if bias else w.reshape(-1, E)
    got = loaded([plan.heads("layers.{i}.qkv", H, [(Q, D), (K, D), (V, D)])],
                 layers__2__qkv__x=flat)  # fmt: skip
    for j, name in enumerate("qkv"):
        assert np.array_equal(got[f"layers.2.{name}_proj.x"], w[:, j].reshape(H * D, *w.shape[3:]))


def test_heads_of_groups():
    K_heads, G, D, E = 2, 3, 4, 5
    w = numbers(K_heads, G + 2, D, E)
    got = loaded([plan.heads("layers.{i}.qkv", K_heads, [(Q, G * D), (K, D), (V, D)])],
                 layers__0__qkv__weight=w.reshape(-1, E))  # fmt: skip
    assert np.array_equal(got["layers.0.q_proj.weight"], w[:, :G].reshape(-1, E))
    assert np.array_equal(got["layers.0.v_proj.weight"], w[:, G + 1].reshape(-1, E))


def test_interleaved_rows():
    w = numbers(8, 3)
    got = loaded([plan.interleaved("gate_up", ["gate", "up"])], gate_up__weight=w)
    assert np.array_equal(got["gate.weight"], w[::2])
    assert np.array_equal(got["up.weight"], w[1::2])


def test_transpose_then_rows():
    w, b = numbers(5, 12), numbers(12)  # [in, out]
    got = loaded([plan.transpose("attn.c_attn"), plan.rows("attn.c_attn", [("q", 4), ("k", 8)])],
                 attn__c_attn__weight=w, attn__c_attn__bias=b)  # fmt: skip
    assert np.array_equal(got["q.weight"], w.T[:4])
    assert np.array_equal(got["k.weight"], w.T[4:])
    assert np.array_equal(got["k.bias"], b[4:])


def test_stack():
    w = [numbers(4, 3) + i for i in range(12)]  # 12: 10 comes after 9, not after 1
    tensors = {f"layers__1__experts__{e}__w1__weight": x for e, x in enumerate(w)}
    got = loaded([plan.stack("layers.{i}.experts.{e}.w1", "layers.{i}.gate_proj")], **tensors)
    assert np.array_equal(got["layers.1.gate_proj.weight"], np.stack(w))


def test_stacks_that_are_turned_interleaved_and_have_biases():
    X, E, F = 2, 3, 4  # gpt-oss: [X, in, out], rows 2i gate and 2i + 1 up
    w, b = numbers(X, E, 2 * F), numbers(X, 2 * F)
    got = loaded(
        [plan.transpose("experts.gate_up_proj"),
         plan.interleaved("experts.gate_up_proj", ["gate", "up"]),
         plan.interleaved("experts.gate_up_proj_bias", ["gate.bias", "up.bias"], axis=1)],
        experts__gate_up_proj=w, experts__gate_up_proj_bias=b,
    )  # fmt: skip
    assert np.array_equal(got["up"], w[..., 1::2].swapaxes(1, 2))
    assert np.array_equal(got["up.bias"], b[:, 1::2])


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_prefixes_take_the_first_that_fits(prefix):
    rule = plan.prefixes(
        "model.", ("model.language_model.", "language_model.model.", "model.", ""), ["lm_head."]
    )
    w = numbers(2, 2)
    stored = checkpoint(**{f"{prefix}norm.weight": w, "lm_head.weight": w})
    naming = LoadPlan((rule,)).load(stored)
    assert sorted(naming.weights) == ["lm_head.weight", "model.norm.weight"]
    assert list(LoadPlan((rule,)).save(checkpoint(model__norm__weight=w))) == ["model.norm.weight"]


def test_alias_is_read_and_not_written():
    rules = LoadPlan((plan.alias("{path}.LayerNorm.gamma", "{path}.LayerNorm.weight"),))
    naming = rules.load(checkpoint(a__b__LayerNorm__gamma=numbers(3)))
    assert list(naming.weights) == ["a.b.LayerNorm.weight"]
    assert list(rules.save(naming.weights)) == ["a.b.LayerNorm.weight"]


def test_leftover_goes():
    rule = plan.leftover(("mtp.", "visual."), (".inv_freq",))
    stored = checkpoint(mtp__x=numbers(1), a__inv_freq=numbers(1), model__visual__x=numbers(1))
    assert list(LoadPlan((rule,)).load(stored).weights) == ["model.visual.x"]


def test_two_names_for_one_parameter_is_a_problem():
    rules = LoadPlan((plan.alias("n.gamma", "n.weight"),))
    naming = rules.load(checkpoint(n__gamma=numbers(3), n__weight=numbers(3)))
    assert naming.problems == ["n.weight: given twice, by n.weight and n.gamma"]


def test_rows_that_do_not_fit_are_a_problem_and_not_missing():
    rules = LoadPlan((plan.rows("qkv", [("q", 6), ("k", 3)]),))
    naming = rules.load(checkpoint(qkv__weight=numbers(10, 2)))
    assert naming.problems == ["qkv.weight: expected rows 6 (q) + 3 (k), got [10, 2]"]
    assert sorted(naming.weights) == ["k.weight", "q.weight"]


def test_a_stack_with_a_gap_is_a_problem():
    rules = LoadPlan((plan.stack("x.{e}.w", "x.w"),))
    naming = rules.load(checkpoint(x__0__w=numbers(2), x__2__w=numbers(2)))
    assert naming.problems == ["x.w: the checkpoint has only items [0, 2]"]


@pytest.mark.parametrize("band", [1, 2**24])
@pytest.mark.parametrize("row", [None, 0, 6])
def test_tied_weights_are_compared_to_the_last_row(row, band, monkeypatch):
    monkeypatch.setattr(lazy, "_BAND", band)
    kept, copy = numbers(7, 3), numbers(7, 3)
    if row is not None:
        copy[row, 2] += 1
    weights = LoadPlan((plan.tied("b", "a"),)).load(checkpoint(a=kept, b=copy)).weights
    if row is None:
        assert np.array_equal(arrays(weights)["a"], kept)
    else:
        with pytest.raises(ModelFileError, match="ties 'b' to 'a'"):
            arrays(weights)


@pytest.mark.parametrize("join", ["stack", "rows"])
def test_what_becomes_one_weight_must_be_of_one_dtype(join):
    arrays_ = {"x.0.w": numbers(4, 2), "x.1.w": numbers(4, 2).astype(np.float16)}
    stored = {n: FromFile("tiny", n, a.shape, lambda a=a: a) for n, a in arrays_.items()}
    if join == "stack":
        weights = LoadPlan((plan.stack("x.{e}.w", "x.w"),)).load(stored).weights
    else:
        weights = LoadPlan((plan.rows("x.w", [("x.0.w", 4), ("x.1.w", 4)]),)).save(stored)
    with pytest.raises(ModelFileError, match=r"x\.1\.w is float16, what it goes with float32"):
        arrays(weights)


def test_names_in_the_checkpoint_of_each_parameter():
    rules = LoadPlan((
        plan.rename("gpt_neox", "model"),
        plan.heads("model.layers.{i}.qkv", 2, [("layers.{i}.q", 1), ("layers.{i}.k", 1)]),
        plan.stack("x.{e}.w", "x.w"),
    ))  # fmt: skip
    shapes = {"layers.0.q.weight": (2, 3), "layers.0.k.weight": (2, 3), "x.w": (2, 4, 3)}
    assert rules.checkpoint_names(shapes) == {
        "layers.0.q.weight": ("gpt_neox.layers.0.qkv.weight",),
        "layers.0.k.weight": ("gpt_neox.layers.0.qkv.weight",),
        "x.w": ("x.0.w", "x.1.w"),
    }


def test_slices_compose_with_every_rule():
    """Rows and columns of what a plan makes are those of the whole."""
    H, D, E = 4, 3, 6
    rules = LoadPlan((
        plan.transpose("turned"),
        plan.heads("qkv", H, [("q", D), ("k", D), ("v", D)]),
        plan.stack("x.{e}.w", "x.w"),
    ))  # fmt: skip
    stored = checkpoint(
        turned__weight=numbers(E, 8), qkv__weight=numbers(3 * H * D, E), x__0__w=numbers(4, E),
        x__1__w=numbers(4, E) + 1,
    )  # fmt: skip
    naming = rules.load(stored)
    for name, weight in naming.weights.items():
        everything = weight.read(whole(weight.shape))
        part = weight.rows(2, 4).columns(1, 5).rows(0, 1)
        assert np.array_equal(part.read(whole(part.shape)), everything[..., 2:3, 1:5]), name
