"""ModernBERT: pre-norm with a gated MLP; two layers of three see a window, and turn faster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import decoder, encoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, NormSpec
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = {
    "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "hidden_activation": "gelu",
    "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
    "local_attention": 128, "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
}  # fmt: skip
KEYS: Table = dict.fromkeys(
    ("decoder_bias", "classifier_bias", "classifier_pooling", "classifier_activation",
     "sparse_prediction", "sparse_pred_ignore_index", "cls_token_id", "sep_token_id",
     "deterministic_flash_attn", "embedding_dropout", "mlp_dropout", "initializer_cutoff_factor"),
    INERT,
)  # fmt: skip


def _written(config: ModelConfig) -> dict[str, Any]:
    """GGUF knows windows of all layers but every Nth, from the first on."""
    windows = [layer.mixer.window for layer in config.layers]
    window = next((w for w in windows if w is not None), None)
    if window is None:
        return {}
    full = [i for i, w in enumerate(windows) if w is None]
    return {
        "attention.sliding_window": 2 * window,
        "attention.sliding_window_pattern": full[1] if len(full) > 1 else len(windows),
        "rope.freq_base_swa": float(config.ropes["local"].theta),
        "hidden_activation": config.layers[0].mlp.act,
    }


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS
    gguf = (
        Architecture(
            "modern-bert",
            "ModernBertModel",
            packed=("attn_qkv", "ffn_up"),
            keys={
                "attention.layer_norm_epsilon": "norm_eps",
                "attention.sliding_window": "local_attention",
                "attention.sliding_window_pattern": "global_attn_every_n_layers",
                "rope.freq_base": "global_rope_theta",
                "rope.freq_base_swa": "local_rope_theta",
            },
            writes=_written,
            says=lambda config: {"global_rope_theta": config.get("global_rope_theta", 10000.0)},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm = NormSpec(config.get("norm_eps", float), "layer", config.get("norm_bias", bool))
        bias = config.get("attention_bias", bool)
        mixer = read.attention(config, bias=bias, output_bias=bias, causal=False)
        mlp = read.mlp(config, act=config.get("hidden_activation", str))
        full = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        window = config.size("local_attention") // 2
        local = replace(full, mixer=replace(mixer, window=window, rope="local"))
        kinds = {"full_attention": full, "sliding_attention": local}
        layers = [kinds[kind] for kind in read.layer_types(config, _pattern(config))]
        layers[0] = replace(layers[0], norms=LayerNorms(before_mlp=norm))  # the embedding's is it
        return encoder.encoder_config(
            config,
            layers,
            norm=norm,
            ropes={
                "full": _rope(config, mixer.head_dim, "full_attention", "global_rope_theta"),
                "local": _rope(config, mixer.head_dim, "sliding_attention", "local_rope_theta"),
            },
            embedding=EmbeddingSpec(norm=norm),
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        layer, canonical, hidden = "layers.{i}.", "model.layers.{i}.", config.layers[0].mlp.hidden
        halves = [(canonical + "mlp.gate_proj", hidden), (canonical + "mlp.up_proj", hidden)]
        return encoder.model_alone("model.", "head.", "decoder.") + LoadPlan((
            plan.rename("embeddings.tok_embeddings", "model.embed_tokens"),
            plan.rename("embeddings.norm", "model.embed_norm"),
            plan.rename("final_norm", "model.norm"),
            plan.rename(layer + "attn_norm", canonical + "input_layernorm"),
            decoder.packed_qkv(layer + "attn.Wqkv", config.layers[0].mixer),
            plan.rename(layer + "attn.Wo", canonical + "self_attn.o_proj"),
            plan.rename(layer + "mlp_norm", canonical + "post_attention_layernorm"),
            plan.rows(layer + "mlp.Wi", halves),
            plan.rename(layer + "mlp.Wo", canonical + "mlp.down_proj"),
        ))  # fmt: skip


def _pattern(config: RawConfig) -> list[str]:
    """Every third layer from the first on is a full one."""
    every, layers = config.size("global_attn_every_n_layers"), config.size("num_hidden_layers")
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def _rope(config: RawConfig, head_dim: int, kind: str, theta: str) -> RopeConfig:
    """Of a kind of layers, in either spelling."""
    given = config.get("rope_parameters", dict, {}).get(kind) or {}
    own = {"rope_theta": config.get(theta, float), **given}
    return read.rope_config(
        RawConfig({**config.raw, "rope_parameters": own}, config.source),
        head_dim,
        config.size("max_position_embeddings"),
    )
