"""What dense families do that their cases do not show."""

from __future__ import annotations

import json
import re

import cases
import gguf
import numpy as np
import pytest
from cases import close, named
from test_families import read
from test_gguf_metadata import logits
from test_gguf_models import YARN, changed

import boostr
from boostr import Tensor, backends
from boostr.engine.rotary import Rotary
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import SINGLE, open_safetensors, save
from boostr.ops.rope_tables import RopeConfig, query_factors

NUMPY = backends.get("numpy")
PHI = named("phi3/longrope").config
LLAMA_4 = {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 4}


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phis_longrope_under_its_names_of_old(kind):
    table = {**PHI["rope_parameters"], "rope_type": kind, "original_max_position_embeddings": 99}
    rope = read({**PHI, "rope_parameters": table}).ropes["full"]
    assert rope == read(PHI).ropes["full"] and rope.rope_type == "longrope"
    assert rope.original_positions == 24  # beside the other sizes, not in the table


def test_smollm3s_layers_without_rope_by_step_and_by_list():
    raw = {"model_type": "smollm3", "num_hidden_layers": 5}

    def rotated(**keys):
        return [layer.mixer.rope is not None for layer in read({**raw, **keys}).layers]

    assert rotated() == [True, True, True, False, True]
    assert rotated(no_rope_layer_interval=2) == [True, False, True, False, True]
    assert rotated(no_rope_layers=[0, 1, 1, 1, 0, 1]) == [False, True, True, True, False]
    for wrong in ([1, 0], [1, 1, 1, 1, 2]):
        with pytest.raises(ModelFileError, match="no_rope_layers must be 5 of 0 and 1"):
            read({**raw, "no_rope_layers": wrong})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_local_experts": None}, "experts (num_local_experts 8)"),
        ({"num_local_experts": 4}, "experts (num_local_experts 4)"),
        ({"layer_types": ["mamba", "attention"]}, "layers with states are not supported"),
        ({"layer_types": None}, "layers with states are not supported"),
        ({"logits_scaling": 0}, "'logits_scaling' must be above 0"),
    ],
)
def test_what_granite_4_has_and_boostr_has_not_is_refused(keys, message):
    raw = {k: v for k, v in (named("granitemoehybrid/rope").config | keys).items() if v is not None}
    with pytest.raises(ModelFileError, match=re.escape(message)):
        read(raw)


def test_granite_without_positions_as_gguf(tmp_path):
    """The file says so; a config.json of a Granite, which it would come back as, cannot."""
    folder = cases.checkpoint(named("granitemoehybrid/nowhere"), tmp_path)
    path = boostr.convert(folder, tmp_path / "m.gguf")
    close(logits(path), logits(folder), 1e-6)
    with pytest.raises(ModelFileError, match=re.escape("mixer.rope None; programs would take it")):
        boostr.convert(path, tmp_path / "back")


def test_gpt2_as_on_the_hub(tmp_path):
    """No prefix, and masks among the weights."""
    folder = cases.checkpoint(named("gpt2/plain"), tmp_path)
    want = logits(folder)
    with open_safetensors(folder) as files:
        held = {n.removeprefix("transformer."): np.array(files.tensor(n)) for n in files.names}
    masks = {
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
        "h.1.attn.masked_bias": held["ln_f.bias"],
    }
    save(folder / SINGLE, held | masks)
    assert np.array_equal(logits(folder), want)


def test_learned_positions_end(tmp_path):
    model = boostr.load(cases.checkpoint(named("gpt2/plain"), tmp_path), backend="numpy")
    ids = [3] * 96
    assert len(model.logits(ids)) == 96
    with pytest.raises(OptionError, match="96"):
        model.generate([3] * 97)


def test_factors_of_queries_grow_with_the_logarithm_of_whole_contexts():
    got = query_factors(RopeConfig(8, parameters=LLAMA_4), 14)
    want = [1 + 0.3 * np.log(1 + p // 4) for p in range(14)]
    np.testing.assert_allclose(got, want, rtol=1e-7)
    assert query_factors(RopeConfig(8), 14) is None


def test_factors_of_queries_where_tables_depend_on_the_prompt():
    config = RopeConfig(8, 1e4, 4, "dynamic", {**LLAMA_4, "factor": 2.0})
    positions = np.array([0, 3, 9, 2], np.int32)
    rotary = Rotary({"full": config}, NUMPY)
    rope = rotary.prompt(positions, Tensor(positions, backend=NUMPY), [3, 1], [10, 6])["full"]
    made = rope.query_factors.numpy()[rope.rows.numpy()]  # type: ignore[union-attr]
    np.testing.assert_allclose(made, 1 + 0.3 * np.log(1 + positions // 4), rtol=1e-6)


def test_ministrals_rope_is_its_own_only_where_a_config_says_nothing():
    raw = {"model_type": "ministral3"}
    assert read(raw).ropes["full"].number("llama_4_scaling_beta") == 0.1
    scaled = {**raw, "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    rope = read(scaled).ropes["full"]
    assert (rope.rope_type, rope.theta) == ("linear", 5e5)
    assert "llama_4_scaling_beta" not in rope.parameters


@pytest.mark.parametrize(
    "yarn",
    [{"attention_factor": 0.7}, {"mscale": 0.5, "mscale_all_dim": 1.0}, {"factor": None},
     {"mscale": 1.0, "mscale_all_dim": 1.0}],
)  # fmt: skip
def test_yarns_factor_on_attention_comes_along_into_gguf(yarn, tmp_path):
    """Of the two mscale the file had nothing; llama.cpp reads but attn_factor."""
    folder = changed("llama/yarn", tmp_path, rope_parameters=YARN | yarn)
    path = boostr.convert(folder, tmp_path / "m.gguf")
    close(logits(path), logits(folder), 1e-5)
    assert "llama.rope.scaling.yarn_attn_factor" not in gguf.GGUFReader(path).fields


def test_longropes_factor_on_attention_is_written(tmp_path):
    """llama.cpp takes 1 where it is absent."""
    folder = cases.checkpoint(named("llama/longrope"), tmp_path)
    fields = gguf.GGUFReader(boostr.convert(folder, tmp_path / "m.gguf")).fields
    said = fields["llama.rope.scaling.attn_factor"].contents()
    assert said == pytest.approx((1 + np.log(4) / np.log(24)) ** 0.5)


def test_a_yarn_that_gguf_cannot_say_is_refused(tmp_path):
    folder = cases.checkpoint(named("ministral3/odd"), tmp_path)
    with pytest.raises(ModelFileError, match="yarn whose ramp is not truncated"):
        boostr.convert(folder, tmp_path / "m.gguf")


def test_gemmas_gelu_is_that_of_tanh_whatever_old_configs_call_it():
    raw = json.loads(json.dumps(named("gemma/plain").config))
    assert read({**raw, "hidden_act": "gelu"}) == read(raw)
    assert read({**raw, "hidden_act": "silu"}) != read(raw)


def test_gpt2_is_quantized_at_load_but_has_no_folder(tmp_path):
    """Its products lie [in, out], and packed ones cannot; what was written nobody could read."""
    (tmp_path / "f").mkdir()
    folder = cases.checkpoint(named("gpt2/plain"), tmp_path / "f")
    ids = list(range(3, 40))
    with pytest.raises(ModelFileError, match=r"c_attn\.weight is int8, which cannot be transposed"):
        boostr.quantize(folder, tmp_path / "q", scheme="int8")
    assert not (tmp_path / "q").exists()
    got = boostr.load(folder, backend="numpy", quantize="int8").logits(ids)
    want = boostr.load(folder, backend="numpy").logits(ids)
    assert 0 < np.linalg.norm(got - want) <= 0.06 * np.linalg.norm(want)
