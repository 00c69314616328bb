"""What the layers of a decoder are made of, as data. A family's `read_config` makes them; the parts
in `boostr.nn` take theirs. A field is here when two families need it."""

from __future__ import annotations

from dataclasses import dataclass

from boostr.errors import ModelFileError

FORMS = ("serial", "parallel")


@dataclass(frozen=True)
class NormSpec:
    """A norm over the last axis.

    Attributes:
        kind: "rms" or "layer".   bias: whether a layer norm has one.
        offset: added to the stored weight (1 in Gemma's checkpoints).
    """

    eps: float = 1e-6
    kind: str = "rms"
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class AttentionSpec:
    """Causal self-attention.

    Attributes:
        heads, kv_heads, head_dim: H, K, D.   bias: of q, k, v.   output_bias: of the output.
        q_norm, k_norm: norms before rope, of each head, or with `norm_all_heads` over all at once.
        rope: the name of a table in the model's `ropes`; None: no positions.
        layout: how rotated pairs lie, see `ops.rope`.
        window: tokens seen, itself included; None: all.
        scale: of the scores, default D**-0.5.   softcap: see `ops.varlen_attention`.
        sinks: whether every head has a learned one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    norm_all_heads: bool = False
    rope: str | None = "full"
    layout: str = "split-half"
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelFileError(
                f"config: num_attention_heads {self.heads} is not a multiple of "
                f"num_key_value_heads {self.kv_heads}"
            )


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

    Pre-norm blocks have the first and third, post-norm ones (OLMo 2) the second and fourth,
    sandwich ones (Gemma) all.
    """

    before_mixer: NormSpec | None = None
    after_mixer: NormSpec | None = None
    before_mlp: NormSpec | None = None
    after_mlp: NormSpec | None = None


@dataclass(frozen=True)
class LayerSpec:
    """One layer: how tokens are mixed, then an MLP.

    Attributes:
        form: "serial" (the MLP reads x + mixed) or "parallel" (both read x).
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
    """Attributes: factor: of the rows, rounded to their dtype (√E in Gemma)."""

    factor: float = 1.0


@dataclass(frozen=True)
class HeadSpec:
    """The final norm and the product that gives logits.

    Attributes:
        tied: whether its weight is the embedding.   bias: of the product.
        softcap: logits become softcap · tanh(logits / softcap).
    """

    norm: NormSpec
    tied: bool = False
    bias: bool = False
    softcap: float | None = None
