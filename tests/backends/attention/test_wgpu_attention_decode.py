"""What is WGSL's own in the split-KV kernel: its plans, GPUs without extras, its parts."""

import numpy as np
import pytest
from backends.attention import test_gpu_packed_kv as packed_kv
from backends.attention.test_gpu_attention_decode import arguments, attend, reason
from conftest import skip_large
from draws import large, tensors
from ops.paged_cases import build, compare, reference
from strict_wgpu import BARE, strict_wgpu

from boostr.backends.wgpu.attention import attention_decode as decode
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.ops.attention import attention_options
from boostr.quant.kv import KV_FORMS

# as on a discrete GPU, as far as an adapter of 4 lanes can do it
BIG = {"threads": 512, "splits": 5, "unroll": 2, "rows": 4}


@pytest.fixture
def wgpu(request):
    with strict_wgpu() as backend:
        skip_large(request, backend)
        yield backend


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_tile_of_a_gpu(dtype, wgpu, rng):
    arrays = build(rng, [1, 2, 1], [300, 40, 0], 8, 2, 64, dtype=dtype)
    compare(attend(wgpu, arrays, {}, **BIG), arrays, {})


def test_one_workgroup_for_all_keys(wgpu, rng):
    """As for a short cache, which is not worth a second kernel."""
    arrays = build(rng, [1, 1], [300, 40], 6, 2, 64, bs=512)
    compare(attend(wgpu, arrays, {}, splits=1, threads=512, rows=3), arrays, {})


CHOSEN = [{"joined": False}, {"grain": 1}, {"splits": 3, "grain": 7}, {"unroll": 2},
          large({"lanes": 1}), {"lanes": 2, "threads": 32, "join": 2}, {"rows": 3},
          {"rows": 1, "threads": 128},
          {"subgroups": False}, {"subgroups": False, "unroll": 2, "lanes": 16}]  # fmt: skip


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_plans(chosen, wgpu, rng):
    arrays = build(rng, [1, 3, 1], [1, 300, 77], 8, 2, 64)
    compare(attend(wgpu, arrays, {}, **chosen), arrays, {})


@pytest.mark.parametrize("form", KV_FORMS)
def test_lanes_with_several_words_of_codes(form, wgpu, rng):
    def attention(q, *rest):
        options = attention_options("paged_attention", 96, True, None, None, None, "bottom-right")
        return decode.attend(q, *rest, None, None, options, lanes=4)

    arrays = build(rng, [1, 3, 1], [1, 300, 77], 8, 2, 96, Dv=64)
    packed_kv.attend(wgpu, rng, arrays, form, {}, attention)


@pytest.mark.parametrize("form", KV_FORMS)
@pytest.mark.parametrize("caps", [{"bindings": 8}, BARE], ids=["few bindings", "bare"])
def test_packed_caches_on_lesser_gpus(caps, form, rng):
    """A kernel that binds the 8 arrays of WebGPU's promise gets floats."""
    with strict_wgpu(**caps) as gpu:
        arrays = build(rng, [1, 3], [300, 40], 6, 2, 64)
        packed_kv.attend(gpu, rng, arrays, form, {})


def test_bare_gpu(rng):
    """No subgroups, no immediates, 16 KiB of shared memory."""
    with strict_wgpu(**BARE, kind="discrete") as backend:
        arrays = build(rng, [1, 3, 1], [1, 300, 77], 8, 2, 64)
        compare(attend(backend, arrays, {}), arrays, {})


@pytest.mark.large
def test_bare_gpu_with_the_widest_heads(rng, request):
    with strict_wgpu(**BARE, kind="discrete") as backend:
        skip_large(request, backend)
        arrays = build(rng, [1], [90], 2, 1, 256, dtype="float32")
        compare(attend(backend, arrays, {}), arrays, {})


def test_parts_for_a_reader(wgpu, rng):
    """What a fused decode step joins itself, as attention_decode_parts.wgsl reads it."""
    for lengths in ([5], [400], [100, 0, 300]):
        arrays = build(rng, [1] * len(lengths), lengths, 9, 3, 64, bs=512)
        args = arguments(wgpu, tensors(wgpu, *arrays), {})
        parts, S = decode.partials(wgpu, *args[:7], args[8], max_splits=4, fills=200)
        assert S == 4 and parts.shape == (len(lengths), 9, 4, 68)
        x = wgpu.to_numpy(parts).astype(np.float64)
        m, total, o = x[..., 64], x[..., 65], x[..., :64]
        assert not np.isnan(m).any() and not np.isnan(total).any()
        weight = total * np.exp2(m - m.max(-1, keepdims=True))
        share = np.exp2(m - m.max(-1, keepdims=True)) * (total > 0)
        sums = np.maximum(weight.sum(-1), 1e-300)
        o = np.where(total[..., None] > 0, o, 0)
        joined = (share[..., None] * o).sum(2) / sums[..., None]
        assert np.abs(joined - reference(arrays, {})[0]).max() < 0.02


def test_workgroups_that_a_large_gpu_takes_at_once():
    """None waits for another to end; where keys are few, heads that share them are spread."""
    caps = Caps("", "", "", kind="discrete", subgroup_min=32, subgroup_max=32)
    for B, capacity, rows in ((1, 264, 1), (1, 32768, 4), (4, 32768, 4), (32, 264, 4)):
        call = decode.Call("bf16", "bf16", B, 32, 8, 128, 128, B, capacity, -2, True)
        plan = decode.plan(call, caps)
        assert plan.rows == rows and 8 * B * plan.tiles * plan.splits <= max(2 * 132, 8 * B)


def test_refuses_caches_larger_than_a_binding(rng):
    with strict_wgpu(binding_bytes=1 << 12) as backend:
        assert "a binding at most 4096" in reason(backend, build(rng, [1], [400], 2, 1, 8))
        assert reason(backend, build(rng, [1], [5], 2, 1, 8)) is None


def test_variants_are_all_different():
    """Each of the compile gate is a class of its own."""
    assert len({str(v) for v in decode.VARIANTS}) == len(decode.VARIANTS)
    assert all(isinstance(v, Variant) for v in decode.VARIANTS)
