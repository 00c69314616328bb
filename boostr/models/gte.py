"""GTE (gte-multilingual, gte-base-en-v1.5): BERT's norms around rope and a gated MLP.

Its `model_type` is `new` where a checkpoint came with code beside it.
"""

from __future__ import annotations

from typing import ClassVar

from boostr import nn
from boostr.io.settings import INERT, Table, unless
from boostr.models import bert, decoder, encoder, plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.nomic_bert import rope_bert_config
from boostr.models.plan import LoadPlan
from boostr.nn.specs import LayerSpec

DEFAULTS = bert.DEFAULTS | {
    "vocab_size": 250048, "max_position_embeddings": 8192, "type_vocab_size": 1,
}  # fmt: skip
_NO = ("logn_attention_scale", "logn_attention_clip1")


class Block(nn.Block):
    """Of the products of the MLP the last alone has a bias."""

    def __init__(self, features: int, index: int, spec: LayerSpec) -> None:
        super().__init__(features, index, spec)
        self.mlp.down_proj = nn.Linear(spec.mlp.hidden, features, bias=True)


class Model(encoder.Model):
    """See `encoder.Model`."""

    block = Block
    keys: ClassVar[Table] = {
        **dict.fromkeys(_NO, unless(False)),
        "position_embedding_type": unless("rope"),
        "layer_norm_type": unless("layer_norm"),
        "unpad_inputs": INERT,  # how the code beside it computes the same
    }

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        whole = config.filled(**DEFAULTS)
        types = whole.get("type_vocab_size", int) or None
        return rope_bert_config(whole, theta=160000.0, types=types, bias=True, output_bias=True)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        layer, canonical = "encoder.layer.{i}.", "model.layers.{i}."
        halves = [
            (canonical + part, config.layers[0].mlp.hidden)
            for part in ("mlp.up_proj", "mlp.gate_proj")
        ]
        return encoder.model_alone(f"{config.model_type}.", "lm_head.") + LoadPlan((
            *bert.EMBEDDINGS,
            decoder.packed_qkv(layer + "attention.qkv_proj", config.layers[0].mixer),
            plan.rename(layer + "attention.o_proj", canonical + "self_attn.o_proj"),
            plan.rename(layer + "attn_ln", canonical + "attention_output_norm"),
            plan.rows(layer + "mlp.up_gate_proj", halves),
            plan.rename(layer + "mlp.down_proj", canonical + "mlp.down_proj"),
            plan.rename(layer + "mlp_ln", canonical + "mlp_output_norm"),
        ))  # fmt: skip
