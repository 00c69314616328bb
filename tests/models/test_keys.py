"""config.json: every key of transformers' classes is obeyed by the family, inert or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cases
import pytest
from families import bare
from tiny_model import make_tiny, make_tiny_encoder

import boostr
from boostr.errors import ModelFileError, OptionError
from boostr.io.settings import ANY, TABLES
from boostr.models import FAMILIES, family, family_of
from boostr.models.config import RawConfig
from boostr.models.wrapped import WRAPPERS

KEYS: dict[str, list[str]] = json.loads((cases.DATA / "config_keys.json").read_text())
TYPES = [name for name in FAMILIES if name != "new"]  # GTE's, of which transformers has no class
# what transformers 4 wrote, or the code beside Nomic BERT's and GTE's checkpoints
OLD = """
    position_embedding_type causal logn_attention_clip1 logn_attention_scale layer_norm_type
    mlp_fc1_bias mlp_fc2_bias moe_every_n_layers parallel_block prenorm qkv_proj_bias
    rotary_emb_fraction rotary_emb_interleaved rotary_emb_scale_base rotary_scaling_factor
    unpad_inputs use_rms_norm"""
OF_TEXT = {"bos_token_id", "eos_token_id", "tie_word_embeddings"}  # nothing to an encoder


def read(raw: dict[str, Any]) -> Any:
    """What the family makes of a config; None if it refuses it."""
    config = RawConfig(raw, "config.json")
    try:
        return family_of(config).read_config(config)  # type: ignore[attr-defined]
    except (ModelFileError, OptionError):
        return None


def others(value: Any) -> Iterator[Any]:
    """Values of the same kind; of any for null."""
    if isinstance(value, bool) or value is None:
        yield not value
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield from (3, 0.5) if value is None else (value * 2 + 2, value / 2)
    if value is None or isinstance(value, str):
        yield from ("relu", "another")
    if value is None or isinstance(value, list):
        yield from ([1] * 99, [])
    if value is None or isinstance(value, dict):
        yield {"rope_type": "linear", "rope_theta": 7.0, "factor": 3.0}


def obeyed(key: str, configs: list[dict[str, Any]]) -> bool:
    """Whether another value of it is another model, or an error, in one of the configs."""
    return any(
        read({**raw, key: value}) != read(raw) for raw in configs for value in others(raw.get(key))
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_every_key_is_obeyed_inert_or_refused(model_type: str) -> None:
    made = family(model_type, "")
    data = json.loads((cases.DATA / f"{model_type.replace('-', '_')}.json").read_text())
    whole, configs = data["defaults"], [record["config"] for record in data["cases"].values()]
    assert None not in map(read, configs)
    configs += [raw for raw in (whole, bare(whole, whole)) if read(raw) is not None]
    table = TABLES["config.json"].keys() | made.keys.keys() - {ANY}
    known = table | (set() if "generate" in made.capabilities else OF_TEXT) | {"model_type"}
    keys = [key for key in KEYS[model_type] + KEYS["*"] if key not in known]
    assert [key for key in keys if not obeyed(key, configs)] == []


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_every_key_of_a_wrapper_is(model_type: str) -> None:
    """Of its own keys, and of those of its text part."""
    texts = [case.config for case in cases.CASES if case.family == WRAPPERS[model_type].text]
    wrapped = [{"model_type": model_type, "text_config": text} for text in texts]
    known = TABLES["config.json"].keys() | family(WRAPPERS[model_type].text, "").keys.keys()
    for key in KEYS[model_type]:
        assert key in known or key == "model_type" or obeyed(key, wrapped), key
    for key in KEYS[f"{model_type}.text_config"]:
        changed = ({**text, key: value} for text in texts for value in others(text.get(key)))
        found = (read({"model_type": model_type, "text_config": text}) for text in changed)
        wanted = [read(raw) for raw in wrapped]
        assert key in known or key == "model_type" or any(x not in wanted for x in found), key


@pytest.mark.parametrize("model_type", TYPES)
def test_a_familys_own_table_is_of_keys_that_it_has(model_type: str) -> None:
    assert family(model_type, "").keys.keys() <= {*KEYS[model_type], *OLD.split()}


@pytest.mark.parametrize(
    ("key", "value", "fine"),
    [("is_encoder_decoder", True, False), ("add_cross_attention", True, False),
     ("pruned_heads", {"0": [1]}, {}), ("tie_encoder_decoder", True, None)],
)  # fmt: skip
def test_what_is_refused(tmp_path, key: str, value, fine) -> None:
    assert boostr.load(make_tiny(tmp_path / "a", **{key: fine}), backend="numpy")
    with pytest.raises(ModelFileError, match=f"config.json: {key} = .* is not supported"):
        boostr.load(make_tiny(tmp_path / "b", **{key: value}), backend="numpy")


def test_an_encoder_that_is_a_decoder_is_refused(tmp_path) -> None:
    folder = make_tiny_encoder(tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"is_decoder": True}))
    with pytest.raises(ModelFileError, match="is_decoder = True is not supported"):
        boostr.load(folder, backend="numpy")
