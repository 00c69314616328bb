"""Classification heads over encoders and decoders, chosen by `architectures` of a config.json.

A head is a row: which parts it has, what they are called in checkpoints, and how a text's hidden
states are pooled before them. Source: the …ForSequenceClassification and …ForTokenClassification
classes of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from boostr import nn
from boostr.errors import ModelFileError
from boostr.models import family, plan
from boostr.models.base import GENERATES
from boostr.models.config import RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn import fusion
from boostr.nn.norm import maybe_norm
from boostr.nn.specs import NormSpec
from boostr.ops import core
from boostr.tensor import Tensor


@dataclass(frozen=True)
class ClassifierSpec:
    """Logits = output(norm(act(dense(pooled states)))).

    Attributes:
        names: part ("dense", "norm", "output") -> its name in checkpoints.
        pooling: one of POOLINGS.   late: whether it comes after `act`.
        act: after `dense`, "tanh" or a config's `hidden_act`.
        bias: of the output.   dense_bias, norm: of the parts between, where `names` has them.
    """

    names: Mapping[str, str]
    pooling: str = "first"
    act: str = "tanh"
    bias: bool = True
    dense_bias: bool = True
    norm: NormSpec | None = None
    late: bool = False

    def owns(self, name: str) -> bool:
        """Whether a tensor of a checkpoint is the head's."""
        return name.startswith(tuple(f"{own}." for own in self.names.values()))

    def load_plan(self) -> LoadPlan:
        """From the names of checkpoints to those of `Classifier`."""
        return LoadPlan(tuple(plan.rename(own, part) for part, own in self.names.items()))


def _mean(hidden: Tensor, batch: nn.Batch) -> Tensor:
    starts = batch.cu_seqlens
    sums = core.scatter_add((len(starts), hidden.shape[1]), batch.owners, hidden.to("float32"))
    lengths = core.maximum(starts[1:] - starts[:-1], 1).to("float32")
    return (sums[:-1] / lengths.unsqueeze(1)).to(hidden.dtype)


def unit(x: Tensor) -> Tensor:
    """Rows of x [N, E] in float32, of length 1."""
    wide = x.to("float32")
    return wide * core.rsqrt(core.maximum(core.sum(wide * wide, -1, keepdims=True), 1e-24))


# name -> vectors [N, E] of hidden states [T, E] of packed texts
POOLINGS: dict[str, Callable[[Tensor, nn.Batch], Tensor]] = {
    "first": lambda hidden, batch: core.take(hidden, batch.first_tokens),
    "last": lambda hidden, batch: core.take(hidden, batch.last_tokens),
    "mean": _mean,
    "each": lambda hidden, batch: hidden,
}


class Classifier(nn.Module):
    """The head that a spec describes: logits float32 of the labels."""

    def __init__(self, features: int, labels: int, spec: ClassifierSpec) -> None:
        E, self.spec = features, spec
        self.dense = nn.Linear(E, E, spec.dense_bias) if "dense" in spec.names else None
        self.norm = maybe_norm(E, spec.norm)
        self.output = nn.Linear(E, labels, spec.bias)

    @property
    def reads_last(self) -> bool:
        """Whether a text is labelled by its last token."""
        return self.spec.pooling == "last"

    def __call__(self, hidden: Tensor, batch: nn.Batch) -> Tensor:
        """Logits [B, labels], or [T, labels] where each token is labelled, of states [T, E]."""
        pool, late = POOLINGS[self.spec.pooling], self.spec.late
        x = hidden if late else pool(hidden, batch)
        if self.dense is not None and self.spec.act == "tanh":
            x = core.tanh(self.dense(x))
        elif self.dense is not None:
            weights, biases = [self.dense.weight], [self.dense.bias]
            x = fusion.products(x, None, weights, biases, nn.activation(self.spec.act))
        if self.norm is not None:
            x = self.norm(x)  # type: ignore[arg-type]
        x = pool(x, batch) if late else x  # type: ignore[arg-type]
        weights, biases = [self.output.weight], [self.output.bias]
        return fusion.products(x, None, weights, biases, dtype="float32")  # type: ignore


def _pooler(dense: str) -> ClassifierSpec:
    """BERT's: the pooler of the encoder, then one product."""
    return ClassifierSpec({"dense": dense, "output": "classifier"})


def _pooling(config: RawConfig, default: str, poolings: Mapping[str, str]) -> str:
    """What `classifier_pooling` says, in our words."""
    named = config.get("classifier_pooling", str, default)
    if named not in poolings:
        raise ModelFileError(
            f"{config.source}: classifier_pooling must be one of {list(poolings)}, got {named!r}"
        )
    return poolings[named]


def _eurobert(config: RawConfig) -> ClassifierSpec:
    pooling = _pooling(config, "late", {"late": "late", "bos": "first", "mean": "mean"})
    names, late = {"dense": "dense", "output": "classifier"}, pooling == "late"
    return ClassifierSpec(names, "mean" if late else pooling, "gelu", late=late)


def _modernbert(config: RawConfig) -> ClassifierSpec:
    norm = NormSpec(
        config.get("norm_eps", float, 1e-5), "layer", config.get("norm_bias", bool, False)
    )
    return ClassifierSpec(
        {"dense": "head.dense", "norm": "head.norm", "output": "classifier"},
        _pooling(config, "cls", {"cls": "first", "mean": "mean"}),
        config.get("classifier_activation", str, "gelu"),
        dense_bias=config.get("classifier_bias", bool, False),
        norm=norm,
    )


_Row = ClassifierSpec | Callable[[RawConfig], ClassifierSpec]
_ROBERTA = ClassifierSpec({"dense": "classifier.dense", "output": "classifier.out_proj"})
_EACH = ClassifierSpec({"output": "classifier"}, "each")
_DECODER = "a decoder"  # of any model_type that has no row of its own
# what `architectures` ends with -> model_type -> head
HEADS: dict[str, dict[str, _Row]] = {
    "ForSequenceClassification": {
        "albert": _pooler("albert.pooler"),
        "bert": _pooler("bert.pooler.dense"),
        "camembert": _ROBERTA,
        "distilbert": replace(_pooler("pre_classifier"), act="relu"),
        "electra": replace(_ROBERTA, act="gelu"),
        "eurobert": _eurobert,
        "gte": _pooler("gte.pooler.dense"),
        "modernbert": _modernbert,
        "mpnet": _ROBERTA,
        "new": _pooler("new.pooler.dense"),
        "nomic_bert": _pooler("nomic_bert.pooler.dense"),
        "roberta": _ROBERTA,
        "xlm-roberta": _ROBERTA,
        _DECODER: ClassifierSpec({"output": "score"}, "last", bias=False),
    },
    "ForTokenClassification": {
        **dict.fromkeys(
            ("albert", "bert", "camembert", "distilbert", "electra", "eurobert", "gpt2",
             "gpt_neox", "gte", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"), _EACH),
        "modernbert": lambda config: replace(_modernbert(config), pooling="each"),
        _DECODER: ClassifierSpec({"output": "score"}, "each"),
    },
}  # fmt: skip


def classifier_spec(config: RawConfig) -> ClassifierSpec | None:
    """The head that `architectures` names; None if it names no classifier.

    Raises:
        ModelFileError: an encoder whose head is not known.
    """
    named = next(iter(config.get("architectures", list, [])), None)
    task = next((task for task in HEADS if isinstance(named, str) and named.endswith(task)), None)
    if task is None:
        return None
    model_type, rows = config.get("model_type", str), HEADS[task]
    if model_type not in rows and GENERATES in family(model_type, config.source).capabilities:
        model_type = _DECODER
    if model_type not in rows:
        raise ModelFileError(
            f"{config.source}: the head of {named} is not known; boostr has those of "
            f"{', '.join(rows)}"
        )
    row = rows[model_type]
    return row(config) if callable(row) else row
