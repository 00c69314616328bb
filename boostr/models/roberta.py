"""RoBERTa, XLM-RoBERTa (BGE-M3, E5), CamemBERT: BERT whose padding takes positions' first rows."""

from __future__ import annotations

from boostr.models import bert, encoder
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

VOCAB_SIZES = {"roberta": 50265}  # of the others it is BERT's


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = bert.KEYS
    gguf = bert.Model.gguf

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        rows = VOCAB_SIZES.get(config.get("model_type", str), bert.DEFAULTS["vocab_size"])
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        config = config.filled(**bert.DEFAULTS | ids | {"vocab_size": rows})
        padding = config.get("pad_token_id", int)
        return bert.bert_config(config, first_position=padding + 1, padding=padding)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        return bert.bert_plan("roberta.", "lm_head.")
