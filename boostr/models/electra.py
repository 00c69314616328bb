"""ELECTRA: BERT whose tables may be narrower than its layers."""

from __future__ import annotations

from boostr.io.settings import INERT
from boostr.models import bert, encoder, plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = bert.DEFAULTS | {
    "embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
}  # fmt: skip
_SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
KEYS = {**bert.KEYS, **dict.fromkeys(_SUMMARY, INERT)}  # those are of a head


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        width = config.size("embedding_size")
        return bert.bert_config(
            config, width=None if width == config.size("hidden_size") else width
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        heads = ("generator_predictions.", "generator_lm_head.", "discriminator_predictions.")
        own = plan.rename("embeddings_project", "model.embed_project")
        return bert.bert_plan("electra.", *heads) + LoadPlan((own,))
