"""Gradients of every family, and curves of training, against torch's: see make_golden_torch.py."""

from collections import defaultdict
from functools import cache

import cases
import numpy as np
import pytest
from train import golden

import boostr
from boostr import Tensor, backends, ops, train
from boostr.engine.load import load_module
from boostr.engine.trainable import train_all
from boostr.models.lazy import Held, whole
from boostr.train import pack

NUMPY = backends.get("numpy")


@cache
def known() -> dict[str, dict[str, np.ndarray]]:
    """Case -> parameter -> the summary of its gradient."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(golden.DATA) as arrays:
        lines = str(arrays["names"]).splitlines()
        for line, summary in zip(lines, arrays["summaries"], strict=True):
            case, _, name = line.partition(":")
            found[case][name] = summary
    return found


COMPARED = [case for case in cases.CASES if case.name in known()]


# what is called otherwise in files than in transformers, which makes several of some; in turn
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
RENAMED = {
    "gpt_neox": {"embed_out": ("lm_head",)},
    "gte": {
        "encoder.layer.": ("layers.",), "mlp_ln": ("post_mlp_layernorm",),
        "attn_ln": ("post_attention_layernorm",), "attention.qkv_proj": QKV,
        "attention.o_proj": ("self_attn.o_proj",), "up_gate_proj": ("up_proj", "gate_proj"),
    },
    "nomic_bert": {
        "encoder.layers.": ("layers.",), "norm2": ("post_mlp_layernorm",),
        "norm1": ("post_attention_layernorm",), "attn.Wqkv": QKV,
        "attn.out_proj": ("self_attn.o_proj",), "fc11": ("up_proj",), "fc12": ("gate_proj",),
        "fc2": ("down_proj",), "emb_ln": ("embeddings.LayerNorm",),
    },
}  # fmt: skip
# tables in which torch trains no row of padding, which a text may have as any other here
PADDED = tuple(
    f"{case}:embeddings.{table}_embeddings.weight"
    for case in ("roberta/pad", "camembert/pooler", "xlm_roberta/pooler")
    for table in ("word", "position")
)


def packed(sequences):
    return pack([ids.tolist() for ids in sequences], [golden.labels(ids) for ids in sequences])


def in_checkpoint(module) -> dict[str, np.ndarray]:
    """The gradients of a module's parameters, under the names and in the layout of checkpoints."""
    held = {name: Held(name, p.grad) for name, p in module.named_parameters() if p.grad is not None}
    stored = module.load_plan(module.config).save(held)
    return {name: weight.read(whole(weight.shape)) for name, weight in stored.items()}


def in_transformers(family, gradients):
    """The same under transformers' names."""
    found = {}
    for name, gradient in gradients.items():
        names = [name]
        for old, new in RENAMED.get(family, {}).items():
            names = [n.replace(old, part) for n in names for part in (new if old in n else (old,))]
        parts = np.split(gradient, len(names)) if names[1:] else [gradient]  # of any rank
        found |= dict(zip(names, parts, strict=True))
    return found


def _is_same(name: str, other: str) -> bool:
    """Whether two names are one but for what models with a head put before it."""
    return f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}")


@cases.each(COMPARED)
def test_gradients(case, tmp_path):
    """Of packed sequences, as torch's of one at a time; two random projections of each."""
    module = load_module(cases.checkpoint(case, tmp_path), backend=NUMPY, dtype="float32")
    train_all(module, NUMPY, case.name)
    sequences = cases.sequences(case)
    batch = packed(sequences)
    uploaded = boostr.engine.runner.Runner(module, NUMPY).packed(sequences)
    if case.generates:
        hidden = module.hidden(uploaded)
        loss = module.losses(hidden, Tensor(batch.targets, backend=NUMPY))
    else:
        states = module.last_hidden_state(uploaded)
        loss = ops.core.sum(states * Tensor(golden.noise(states.shape), backend=NUMPY))
    loss.backward()
    found, wrong = in_transformers(case.family, in_checkpoint(module)), []
    wanted = known()[case.name]
    largest = max(v[0] for v in wanted.values())
    for whole_name, want in wanted.items():
        name = next((n for n in found if _is_same(n, whole_name)), None)
        if name is None:
            wrong.append(f"{whole_name}: no gradient, torch has one of {want[0]:.3g}")
            continue
        if f"{case.name}:{name}" in PADDED:
            continue
        error = np.abs(golden.summary(whole_name, found[name]) - want).max()
        if error > 1e-4 * want[0] + 1e-6 * largest:
            wrong.append(f"{whole_name}: {error / want[0]:.1e} of its norm")
    assert not wrong, "\n".join(wrong)


def test_sixteen_bits_are_no_worse_than_autocast(backend, tmp_path):
    """The error of all gradients of bf16 weights, in bf16 where the backend computes in it."""
    case = cases.named(golden.BF16_CASE)
    model = boostr.load(
        cases.checkpoint(case, tmp_path), backend=backend, dtype="bfloat16", trainable=True
    )
    model.loss(packed(cases.sequences(case))).backward()
    found = in_checkpoint(model.module)
    with np.load(golden.BF16_DATA) as truth:
        known = {name: truth[name].astype(np.float64) for name in truth.files}
    autocast = known.pop("autocast")
    assert set(found) == set(known)
    off = sum(((found[name].astype(np.float64) - g) ** 2).sum() for name, g in known.items())
    share = np.sqrt(off / sum((g**2).sum() for g in known.values()))
    assert 1e-4 < share <= autocast  # 1.7e-3 on numpy and 1.7e-2 on wgpu, against 2.1e-2


@pytest.mark.parametrize("name", golden.CURVES)
def test_curve(name, tmp_path):
    """100 steps with warmup, cosine, decay and clipping, other lengths in each: the losses."""
    case = cases.named(name)
    model = boostr.load(
        cases.checkpoint(case, tmp_path), backend="numpy", dtype="float32", trainable=True
    )
    optimizer = train.AdamW(model.parameters(), lr=0.0, weight_decay=golden.DECAY)
    losses = []
    for step in range(golden.STEPS):
        optimizer.lr = golden.rate(step)
        loss = model.loss(packed(golden.step_sequences(step, case.vocab_size)))
        loss.backward()
        train.clip_grad_norm(model.parameters(), golden.CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with np.load(golden.DATA) as arrays:
        np.testing.assert_allclose(losses, arrays[name.replace("/", ".")], atol=1e-4, rtol=0)
    assert losses[-1] < losses[0] / 2
