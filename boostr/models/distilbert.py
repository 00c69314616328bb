"""DistilBERT: BERT under other names, without token types.

Sinusoids (`sinusoidal_pos_embds`) lie in the checkpoint as learned positions do.
"""

from __future__ import annotations

from dataclasses import replace

from boostr.io.settings import INERT, Table
from boostr.models import bert, encoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = {
    "vocab_size": 30522, "dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12,
    "max_position_embeddings": 512, "activation": "gelu",
}  # fmt: skip
_SPELLED = {  # what BERT calls it -> its name
    "hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads", "hidden_act": "activation",
}  # fmt: skip
KEYS: Table = dict.fromkeys(
    ("dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"), INERT
)


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS
    gguf = (
        Architecture(
            "bert",
            "DistilBertModel",
            names=lambda config: encoder.POST_NORMS,
            spelled=_SPELLED,
        ),
    )  # a file of BERT's without token types

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        own = config.filled(**DEFAULTS)
        berts = own.filled(**{berts: own.raw[key] for berts, key in _SPELLED.items()})
        read = bert.bert_config(
            RawConfig({**berts.raw, "layer_norm_eps": 1e-12}, own.source), types=None
        )
        return replace(read, extra=own.raw)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        layer, canonical = "transformer.layer.{i}.", "model.layers.{i}."
        return encoder.model_alone("distilbert.", "vocab_") + LoadPlan((
            *bert.EMBEDDINGS,
            plan.rename(layer + "attention.q_lin", canonical + "self_attn.q_proj"),
            plan.rename(layer + "attention.k_lin", canonical + "self_attn.k_proj"),
            plan.rename(layer + "attention.v_lin", canonical + "self_attn.v_proj"),
            plan.rename(layer + "attention.out_lin", canonical + "self_attn.o_proj"),
            plan.rename(layer + "sa_layer_norm", canonical + "attention_output_norm"),
            plan.rename(layer + "ffn.lin1", canonical + "mlp.up_proj"),
            plan.rename(layer + "ffn.lin2", canonical + "mlp.down_proj"),
            plan.rename(layer + "output_layer_norm", canonical + "mlp_output_norm"),
        ))  # fmt: skip
