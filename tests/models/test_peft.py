"""Adapters in peft's files over bases of any form, against peft (data/peft)."""

from __future__ import annotations

import json
import shutil

import cases
import gguf_files
import numpy as np
import pytest
import seeded
from cases import close, named
from tiny_model import make_tiny

import boostr
from boostr import Tensor, dtypes, ops
from boostr.engine.load import load_module
from boostr.errors import ModelFileError, OptionError
from boostr.io.peft import Adapter, Factors, read_adapter
from boostr.models import adapters
from boostr.operands import LowRank
from boostr.quant.scheme import QuantizedTensor

DATA = cases.DATA / "peft"
NAMES = sorted(path.name for path in DATA.iterdir())
IDS = 23  # tokens, of seed 7


def case_of(name):
    config = json.loads((DATA / name / "adapter_config.json").read_text())
    return named(config["base_model_name_or_path"])


def loaded(folder, backend, **options):
    if backend.activation_dtype(dtypes.bfloat16) != dtypes.float32:
        options.setdefault("dtype", "float32")
    return boostr.load(folder, backend=backend, **options)


def outputs(model, ids):
    """As golden.npz has them."""
    if model.classifier is None and hasattr(model, "logits"):
        return model.logits(ids)[::4]
    return model.hidden([ids])[0][::4]


def ids_of(case):
    return seeded.token_ids(7, IDS, case.vocab_size).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_peft_computes_the_same(name, plain_backend, tmp_path):
    case = case_of(name)
    folder = cases.checkpoint(case, tmp_path)
    model = loaded(folder, plain_backend, adapter=DATA / name)
    with np.load(DATA / name / "golden.npz") as golden:
        close(outputs(model, ids_of(case)), golden["outputs"])


@pytest.mark.parametrize("name", NAMES)
def test_saved_is_what_was_loaded(name, tmp_path):
    """The same factors of the same modules, whatever parameters they became."""
    folder = cases.checkpoint(case_of(name), tmp_path)
    model = boostr.load(folder, backend="numpy", adapter=DATA / name)
    model.save_adapter(tmp_path / "saved")
    got, want = read_adapter(tmp_path / "saved"), read_adapter(DATA / name)
    tied = {"lm_head"} if name == "tied" else set()  # written once
    assert got.layers.keys() == want.layers.keys() - tied
    for module, own in got.layers.items():
        assert own.scale == pytest.approx(want.layers[module].scale, rel=1e-12)
        np.testing.assert_array_equal(own.down, want.layers[module].down)
        np.testing.assert_array_equal(own.up, want.layers[module].up)
    copies = {f"{module}.weight" for module in want.layers}
    assert got.whole.keys() == want.whole.keys() - copies
    for weight, array in got.whole.items():
        np.testing.assert_array_equal(array, want.whole[weight])


@pytest.mark.parametrize("name", ["patterns", "turned", "by-head"])
def test_merged_computes_the_same(name, tmp_path):
    case = case_of(name)
    model = boostr.load(cases.checkpoint(case, tmp_path), backend="numpy", adapter=DATA / name)
    before = outputs(model, ids_of(case))
    said = model.generate(ids_of(case), max_tokens=8).token_ids
    model.merge_adapter()
    close(outputs(model, ids_of(case)), before, 1e-5)
    assert model.generate(ids_of(case), max_tokens=8).token_ids == said
    with pytest.raises(OptionError, match="the model has no adapter"):
        model.save_adapter(tmp_path / "saved")


def dense_twin(module, backend):
    """Every weight under an adapter, and every packed one, as the float that it stands for."""
    for _, owner, attribute in list(module.places()):
        weight = getattr(owner, attribute)
        base = weight.base if isinstance(weight, LowRank) else weight
        plain = ops.dequantize(base) if isinstance(base, QuantizedTensor) else base
        numbers = plain.to("float32").numpy()
        if isinstance(weight, LowRank):
            numbers = numbers + weight.scale * (weight.up.numpy() @ weight.down.numpy())
        if not isinstance(weight, Tensor):
            setattr(owner, attribute, Tensor(numbers.astype(np.float32), backend=backend))
    return module


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "nf4"])
def test_over_packed_bases(scheme, tmp_path):
    """In prefill, decode programs and batches the same as the dense weights that they stand for."""
    folder = make_tiny(tmp_path / "tiny", hidden_size=64, intermediate_size=128)
    adapter = drawn(boostr.load(folder, backend="numpy").module)
    prompts = [[*range(5, 28)], [9, 8, 7], [*range(40, 51)]]
    done, logits = [], []
    for dense in (False, True):
        model = boostr.load(folder, backend="numpy", quantize=scheme)
        adapters.apply_adapter(model.module, adapter, model.backend)
        if dense:
            dense_twin(model.module, model.backend)
        logits.append(model.logits(prompts[0]))
        done.append([c.token_ids for c in model.generate_batch(prompts, max_tokens=6)])
    # rows meet bytes in two digits: see docs/numerics.md
    close(*logits, rtol=4e-4 if scheme == "int8" else 1e-4)
    assert done[0] == done[1]


def drawn(module, targets=("q_proj", "k_proj", "o_proj", "down_proj")):
    """An adapter of random numbers over some modules of a model."""
    rng, layers, weights = np.random.default_rng(5), {}, module.weights()
    for name, parts in adapters.modules_of(module).items():
        if name.endswith(targets):
            N, K = sum(weights[p].shape[0] for p in parts), weights[parts[0]].shape[1]
            down, up = (rng.standard_normal(s).astype(np.float32) / 4 for s in ((3, K), (N, 3)))
            layers[name] = Factors(down, up, 0.75)
    return Adapter("drawn", layers)


@pytest.mark.parametrize("name", ["patterns", "packed"])
def test_over_gguf(name, tmp_path):
    """Whose q and k lie in another order (llama), and whose products are cut (phi3)."""
    case = case_of(name)
    file = gguf_files.convert(cases.checkpoint(case, tmp_path), tmp_path / "m.gguf")
    model = boostr.load(file, backend="numpy", adapter=DATA / name)
    with np.load(DATA / name / "golden.npz") as golden:
        close(outputs(model, ids_of(case)), golden["outputs"])
    model.save_adapter(tmp_path / "saved")
    got, want = read_adapter(tmp_path / "saved"), read_adapter(DATA / name)
    for module, own in got.layers.items():
        np.testing.assert_array_equal(own.up, want.layers[module].up)


def test_packed_bases_are_not_merged(tmp_path):
    folder = cases.checkpoint(case_of("patterns"), tmp_path)
    model = boostr.load(folder, backend="numpy", quantize="int8", adapter=DATA / "patterns")
    with pytest.raises(OptionError, match=r"q_proj.weight is packed \(int8\)"):
        model.merge_adapter()


def edited(name, folder, **changes):
    """A copy of an adapter with other keys in its config."""
    copy = shutil.copytree(DATA / name, folder)
    config = json.loads((copy / "adapter_config.json").read_text()) | changes
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return copy


def test_one_of_two_that_are_tied_is_refused(tmp_path):
    folder = cases.checkpoint(case_of("tied"), tmp_path)
    adapter = edited("tied", tmp_path / "a", ensure_weight_tying=False)
    with pytest.raises(ModelFileError, match="embedding and head in one"):
        boostr.load(folder, backend="numpy", adapter=adapter)


def test_an_adapter_of_another_model(tmp_path):
    """All that does not fit in one error, and the weights stay as they were."""
    module = load_module(cases.checkpoint(named("llama/tied"), tmp_path), backend="numpy")
    before = module.weights()
    with pytest.raises(ModelFileError, match="does not fit the model") as error:
        adapters.apply_adapter(module, read_adapter(DATA / "packed"), module_backend(module))
    assert str(error.value).count("qkv_proj") == 2
    assert all(module.weights()[name] is weight for name, weight in before.items())


def module_backend(module):
    return next(w.backend for w in module.weights().values() if isinstance(w, Tensor))


def test_a_second_adapter_is_refused(tmp_path):
    folder = cases.checkpoint(case_of("by-head"), tmp_path)
    model = boostr.load(folder, backend="numpy", adapter=DATA / "by-head")
    with pytest.raises(ModelFileError, match="has an adapter already"):
        adapters.apply_adapter(model.module, read_adapter(DATA / "by-head"), model.backend)


def test_parts_of_one_module_share_their_down(tmp_path):
    folder = cases.checkpoint(case_of("packed"), tmp_path)
    model = boostr.load(folder, backend="numpy", adapter=DATA / "packed")
    q = model.module.model.layers[0].self_attn.q_proj
    q.weight = q.weight._replace(down=q.weight.down * 2)
    with pytest.raises(OptionError, match="share down and scale"):
        model.save_adapter(tmp_path / "saved")
