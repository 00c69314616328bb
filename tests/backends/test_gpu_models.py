"""Models on a GPU: a kernel for every op, few for a decode step, and running ahead is invisible."""

import cases
import numpy as np
import pytest
import real_models
from conftest import on_hardware, open_backend, skip_large
from draws import every
from packed import INT8

import boostr
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.load import load_module
from boostr.engine.options import SamplingOptions
from boostr.engine.runner import Runner

FEW = [("float32", None), ("bfloat16", None), ("float16", "int8"), ("bfloat16", "int8-g32"),
       ("float32", "w8a8")]  # fmt: skip


@pytest.fixture(params=("cupy", "wgpu"))
def gpu(request):
    """Without poison, which would keep kernels of a program from overlapping, and be counted."""
    backend = open_backend(request.param)
    skip_large(request, backend)
    with boostr.strict():
        yield backend


def runner(name, tmp_path, backend, **options) -> Runner:
    folder = cases.checkpoint(cases.named(name), tmp_path)
    return Runner(load_module(folder, backend=backend, **options), backend)


def prompts(batch, vocab):
    rng = np.random.default_rng(1)
    return [rng.integers(0, vocab, 3 + 5 * i % 11).tolist() for i in range(batch)]


def decode(made: Runner, batch: int, steps: int, run_ahead: int = 0, options=None):
    """(ids [batch][steps], logits of the last step, the rows)."""
    vocab = made.module.config.vocab_size
    given = prompts(batch, vocab)
    rows = FixedRows(made, batch, 16 + steps + run_ahead, run_ahead)
    first = rows.prefill(given).numpy().argmax(1).tolist()
    rows.begin(first, [len(p) for p in given], options)
    ids, logits = [first], None
    for _ in range(steps - 1):
        chosen, logits = rows.step()
        ids.append(chosen.tolist())
    return np.array(ids).T.tolist(), None if logits is None else logits.numpy(), rows


@pytest.mark.parametrize("name", ["llama/bf16", "llama/odd", "mistral/window", "qwen2/tied",
                                  "qwen3/untied"])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 40])
def test_decode_equals_the_full_forward_pass(name, batch, gpu, tmp_path):
    made = runner(name, tmp_path, gpu, dtype="float32")
    ids, logits, _ = decode(made, batch, 6)
    for row, prompt in enumerate(prompts(batch, made.module.config.vocab_size)):
        whole = made.logits([*prompt, *ids[row][:-1]]).numpy()[-1]
        assert np.abs(logits[row] - whole).max() <= 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("dtype", "scheme"), every(FEW, ("float32", "bfloat16", "float16"), (None, *INT8))
)
def test_every_form_of_weights_decodes_as_it_prefills(dtype, scheme, gpu, tmp_path):
    made = runner("llama/untied", tmp_path, gpu, dtype=dtype, quantize=scheme)
    for batch in (1, 2, 12):
        ids, logits, _ = decode(made, batch, 4)
        for row, prompt in enumerate(prompts(batch, made.module.config.vocab_size)):
            whole = made.logits([*prompt, *ids[row][:-1]]).numpy()[-1]
            # the same arithmetic in another order; w8a8 rounds what differs anew, to steps of 1 %
            exact, coarse = dtype == "float32", scheme == "w8a8"
            limit = {(1, 0): 1e-4, (0, 0): 3e-2, (1, 1): 3e-2, (0, 1): 8e-2}[exact, coarse]
            assert np.linalg.norm(logits[row] - whole) <= limit * np.linalg.norm(whole)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_decode_step_is_five_kernels_a_layer(sampled, gpu, tmp_path):
    """And few for the rest: slots, embedding, head, the choice, and what it makes of the state."""
    made = runner("llama/bf16", tmp_path, gpu)
    layers, rest = made.module.config.num_hidden_layers, {"cupy": 8, "wgpu": 5}[gpu.name]
    options = [SamplingOptions(temperature=0.9, top_k=20, top_p=0.9, seed=0)]
    _, _, rows = decode(made, 1, 3, 0, options if sampled else None)
    names = [n for n in rows.program.calls() if n != "device.fill"]  # of poisoned memory
    of_layers = [n for n in names if n.startswith(("gemv", "attention"))]
    assert len(of_layers) == 5 * layers + 1, names  # and the head
    assert len(names) <= 5 * layers + rest, names


@pytest.mark.parametrize("sampled", [False, True])
def test_running_ahead_changes_nothing(sampled, gpu, tmp_path):
    made = runner("llama/bf16", tmp_path, gpu)
    options = [SamplingOptions(temperature=0.9, top_k=20, seed=i) for i in range(3)]
    found = [decode(made, 3, 12, ahead, options if sampled else None)[0] for ahead in (0, 1, 2, 5)]
    assert found[0] == found[1] == found[2] == found[3]


def test_weights_that_a_program_writes_are_read_after_that(gpu):
    """Without `constant_weights` a product waits for the kernels that make its weight."""
    rng = np.random.default_rng(3)
    x = boostr.Tensor(rng.standard_normal((1, 2048)).astype(np.float32), backend=gpu)
    w = boostr.Tensor(rng.standard_normal((4096, 2048)).astype(np.float32), backend=gpu)
    scale = boostr.Tensor([1.0], backend=gpu)
    with boostr.strict(False):
        program = boostr.capture(lambda: boostr.ops.linear(x, (w * scale).to("bf16")), gpu)
    first = program.outputs.numpy().copy()
    for factor in (2.0, -4.0, 8.0):
        scale.assign(np.array([factor], np.float32))
        np.testing.assert_array_equal(program.run().numpy(), first * factor)


@pytest.mark.parametrize("penalized", [False, True])
def test_the_same_tokens_as_numpy(penalized, gpu, tmp_path):
    """Greedy and sampled, with and without penalties: the same numbers and random numbers."""
    extra = {"repetition_penalty": 1.2, "frequency_penalty": 0.3} if penalized else {}
    options = [SamplingOptions(**extra), SamplingOptions(temperature=0.8, seed=4, **extra),
               SamplingOptions(temperature=1.5, top_k=30, top_p=0.9, seed=5, **extra)]  # fmt: skip
    found = []
    for name in (gpu, "numpy"):
        backend = boostr.backends.get(name)
        folder = tmp_path / backend.name
        folder.mkdir()
        made = runner("llama/untied", folder, backend, dtype="float32")
        with boostr.strict(backend is gpu):
            found.append(decode(made, 3, 12, 0, options)[0])
    assert found[0] == found[1]


def test_smollm2_says_what_transformers_says(gpu):
    """A real checkpoint of GGUF blocks; on a software adapter a few tokens have to do."""
    model = boostr.load(real_models.smollm2(), backend=gpu)
    run = min(real_models.smollm2_golden()["generate"], key=lambda r: len(r["prompt_ids"]))
    count = 64 if on_hardware(gpu) else 12
    completion = model.generate(run["prompt_ids"], max_tokens=count, ignore_eos=True)
    assert completion.token_ids == run["generated_ids"][:count]
