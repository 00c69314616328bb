"""Tensors larger than a binding, of which a WGSL kernel sees windows, by the checks of each op."""

from backends.test_gpu_loss import check_cross_entropy
from strict_wgpu import strict_wgpu


def test_logits_beyond_a_binding(rng):
    with strict_wgpu(binding_bytes=16384) as backend:
        check_cross_entropy(backend, "bfloat16", (50, 500), "plain", rng)
        check_cross_entropy(backend, "float32", (50, 333), "unaligned", rng)
