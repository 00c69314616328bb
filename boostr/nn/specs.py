"""What the layers of a model are made of, as data. A family's `read_config` makes them; the parts
in `boostr.nn` take theirs. A field is here when two families need it."""

from __future__ import annotations

from dataclasses import dataclass

from boostr.errors import ModelFileError

FORMS = ("serial", "parallel", "post")
NORMS_OVER = ("head", "heads", "all")


@dataclass(frozen=True)
class NormSpec:
    """A norm over the last axis.

    Attributes:
        kind: "rms" or "layer".   weight, bias: whether it has them.
        offset: added to the stored weight (1 in Gemma's checkpoints).
    """

    eps: float = 1e-6
    kind: str = "rms"
    bias: bool = False
    offset: float = 0.0
    weight: bool = True


@dataclass(frozen=True)
class AttentionSpec:
    """Self-attention.

    Attributes:
        heads, kv_heads, head_dim: H, K, D.   bias: of q, k, v.   output_bias: of the output.
        clip: q, k and v are clamped to ±clip as they come; None: not.
        q_norm, k_norm: norms of q and k before rope, or after it with `norm_after_rope`.
        norm_over: what they go over: "head": each head, with one weight [D] for all; "heads": each
            with a weight of its own, [H, D]; "all": all heads at once, [H·D].
        rope: the name of a table in the model's `ropes`; None: no positions.
        layout: how rotated pairs lie, see `ops.rope`.
        causal: whether a token sees none after it.
        window: tokens seen, itself included, or without `causal` on either side; None: all.
        scale: of the scores, default D**-0.5.   softcap: see `ops.varlen_attention`.
        alibi: slopes of the heads; None: none.   sinks: whether every head has a learned one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    norm_over: str = "head"
    norm_after_rope: bool = False
    clip: float | None = None
    rope: str | None = "full"
    layout: str = "split-half"
    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    alibi: tuple[float, ...] | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelFileError(
                f"config: num_attention_heads {self.heads} is not a multiple of "
                f"num_key_value_heads {self.kv_heads}"
            )
        if self.norm_over not in NORMS_OVER:
            raise ModelFileError(f"config: norm_over must be of {NORMS_OVER}, got {self.norm_over}")


@dataclass(frozen=True)
class MLPSpec:
    """down(act(gate(x)) · up(x)), or down(act(up(x))) without `gated`.

    Attributes:
        hidden: F.   act: a config's `hidden_act`.   bias: of all its products.
    """

    hidden: int
    act: str = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class LayerNorms:
    """The norms of a layer; None where there is none.

    Pre-norm blocks have the first and third, post-norm ones (OLMo 2, BERT) the second and fourth,
    sandwich ones (Gemma) all. In a parallel block without the third the MLP reads through the
    first.
    """

    before_mixer: NormSpec | None = None
    after_mixer: NormSpec | None = None
    before_mlp: NormSpec | None = None
    after_mlp: NormSpec | None = None


@dataclass(frozen=True)
class LayerSpec:
    """One layer: how tokens are mixed, then an MLP.

    Attributes:
        form: "serial" (the MLP reads x + mixed), "parallel" (both read x) or "post" (as serial, but
            norms after a half are of its sum with the residual, as in BERT).
        residual_factor: of what is added to the residual (Granite).
    """

    mixer: AttentionSpec
    mlp: MLPSpec
    norms: LayerNorms
    form: str = "serial"
    residual_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ModelFileError(f"config: a layer's form must be one of {FORMS}, got {self.form}")


@dataclass(frozen=True)
class EmbeddingSpec:
    """What the first layer reads: the rows of the tokens and of other tables, their sum normalised.

    Attributes:
        factor: of the tokens' rows, rounded to their dtype (√E in Gemma).
        positions: rows of a table of learned positions; None: there is none.
        first_position: the row of position 0.
        padding: an id whose tokens take no position (RoBERTa): those after them do not count them,
            and they have the row before the first.
        types: rows of a table of token types.
        width: of the tables and the norm, where a product with a bias makes E of it (ALBERT).
    """

    factor: float = 1.0
    positions: int | None = None
    first_position: int = 0
    padding: int | None = None
    types: int | None = None
    width: int | None = None
    norm: NormSpec | None = None


@dataclass(frozen=True)
class HeadSpec:
    """The product that gives logits.

    Attributes:
        tied: whether its weight is the embedding.   bias: of the product.   factor: of the logits.
        softcap: logits become softcap · tanh(logits / softcap).
    """

    tied: bool = False
    bias: bool = False
    factor: float = 1.0
    softcap: float | None = None
