"""Whether model and data are as a run would have them: asked before anything is computed."""

from __future__ import annotations

from boostr.engine.loaded import Loaded
from boostr.engine.model import LanguageModel
from boostr.errors import DataError, OptionError
from boostr.operands import LowRank
from boostr.train.config import TrainConfig
from boostr.train.data import Dataset


def adapter_ranks(model: Loaded) -> set[int]:
    """Of the adapters over its weights."""
    weights = model.module.weights().values()
    return {weight.down.shape[0] for weight in weights if isinstance(weight, LowRank)}


def check_model(model: Loaded, config: TrainConfig) -> None:
    """Raises OptionError where a model is not as a config says that it is trained."""
    trains, ranks = any(p.requires_grad for p in model.parameters()), adapter_ranks(model)
    if config.full and ranks:
        raise OptionError("full: the model has an adapter over its weights; merge it first (fuse)")
    if (config.full or ranks) and not trains:
        raise OptionError(f"nothing of {model.source} trains; load it with trainable=True")
    if trains and not config.full and not ranks:
        raise OptionError("all weights of the model train, and without full an adapter would")
    if ranks and config.lora_rank not in (TrainConfig.lora_rank, *ranks):
        raise OptionError(
            f"lora_rank {config.lora_rank}: the model has an adapter already, of rank {max(ranks)}"
        )
    if not config.sample_every:
        return
    if not isinstance(model, LanguageModel):
        raise OptionError(f"sample_every: {model.source} is {model.is_a}, and writes no text")
    length, context = len(model.encode(config.sample)), model.config.max_position_embeddings
    if length >= context:
        raise OptionError(f"sample has {length} tokens, and the model's context holds {context}")


def check_data(data: Dataset, model: Loaded) -> None:
    """Raises DataError where data has tokens that a model does not have."""
    if data.largest >= (vocabulary := model.module.config.vocab_size):
        raise DataError(
            f"{data.name} has the token id or label {data.largest}, and the vocabulary of "
            f"{model.source} is 0..{vocabulary - 1}; is it the data of another model?"
        )
