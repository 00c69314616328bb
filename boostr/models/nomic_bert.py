"""Nomic BERT (nomic-embed-text): BERT's norms around rope and a gated MLP, without biases.

Its config.json is that of transformers 5, or that of the code beside the first checkpoints.
"""

from __future__ import annotations

from typing import Any, ClassVar

from boostr.errors import ModelFileError
from boostr.io.settings import Table, unless
from boostr.models import bert, decoder, encoder, plan
from boostr.models import config as read
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, NormSpec

DEFAULTS = bert.DEFAULTS | {
    "vocab_size": 30528, "hidden_act": "silu", "max_position_embeddings": 2048,
}  # fmt: skip
_REMOTE = {
    "n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rope_theta",
}  # fmt: skip
_ACTS = {"swiglu": "silu", "geglu": "gelu"}
_NO = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "parallel_block", "causal",
       "use_rms_norm", "rotary_emb_interleaved")  # fmt: skip


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys: ClassVar[Table] = {
        **dict.fromkeys(_NO, unless(False)),
        **dict.fromkeys(("rotary_emb_scale_base", "rotary_scaling_factor"), unless()),
        "rotary_emb_fraction": unless(1),
        "moe_every_n_layers": unless(0),
    }
    gguf = (
        Architecture(
            "nomic-bert",
            "NomicBertModel",
            names=lambda config: encoder.POST_NORMS,
            packed=("attn_qkv",),
            keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        remote = {name: config.raw[key] for key, name in _REMOTE.items() if key in config.raw}
        act = config.get("activation_function", str, None)
        if act is not None:
            if act not in _ACTS:
                raise ModelFileError(
                    f"{config.source}: activation_function must be of {list(_ACTS)}, got {act!r}"
                )
            remote["hidden_act"] = _ACTS[act]
        whole = RawConfig({**config.raw, **remote}, config.source).filled(**DEFAULTS)
        return rope_bert_config(whole, theta=1000.0, types=whole.size("type_vocab_size"))

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        layer, canonical = "encoder.layers.{i}.", "model.layers.{i}."
        return encoder.model_alone("nomic_bert.", "cls.") + LoadPlan((
            plan.rename("emb_ln", "embeddings.LayerNorm"),
            *bert.EMBEDDINGS,
            decoder.packed_qkv(layer + "attn.Wqkv", config.layers[0].mixer),
            plan.rename(layer + "attn.out_proj", canonical + "self_attn.o_proj"),
            plan.rename(layer + "norm1", canonical + "attention_output_norm"),
            plan.rename(layer + "mlp.fc11", canonical + "mlp.up_proj"),
            plan.rename(layer + "mlp.fc12", canonical + "mlp.gate_proj"),
            plan.rename(layer + "mlp.fc2", canonical + "mlp.down_proj"),
            plan.rename(layer + "norm2", canonical + "mlp_output_norm"),
        ))  # fmt: skip


def rope_bert_config(
    config: RawConfig, theta: float, types: int | None, **attention: Any
) -> ModelConfig:
    """BERT's encoder with rope in place of positions, and a gated MLP; of a config with all
    defaults filled in.

    Args:
        theta: where the config has none.   types: rows of the table of token types.
        attention: of `AttentionSpec`.
    """
    norm = NormSpec(config.get("layer_norm_eps", float), "layer", bias=True)
    mixer = read.attention(config, causal=False, **attention)
    layer = LayerSpec(mixer, read.mlp(config), LayerNorms(after_mixer=norm, after_mlp=norm), "post")
    positions = config.size("max_position_embeddings")
    return encoder.encoder_config(
        config,
        (layer,) * config.size("num_hidden_layers"),
        ropes={"full": read.rope_config(config, mixer.head_dim, positions, theta=theta)},
        embedding=EmbeddingSpec(types=types, norm=norm),
    )
