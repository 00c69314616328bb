"""OPT: learned positions from the third row on, relu; norms after the halves and a narrower
embedding in OPT-350m."""

from __future__ import annotations

from typing import Any

from boostr import nn
from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.models.stack import Stack
from boostr.nn import fusion
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec
from boostr.tensor import Tensor

DEFAULTS = {
    "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
    "num_attention_heads": 12, "max_position_embeddings": 2048, "activation_function": "relu",
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True, "tie_word_embeddings": True,
}  # fmt: skip
_FIRST = 2  # the row of position 0


class OPTStack(Stack):
    """Where tokens' rows are narrower than E, a product makes E of them before positions are added,
    and another makes so many again of the last hidden states."""

    def __init__(self, config: ModelConfig, block: Any) -> None:
        super().__init__(config, block)
        E, spec = config.hidden_size, config.embedding
        self.project_out = None
        if spec.width is not None:
            self.embed_positions = nn.Embedding(config.max_position_embeddings + _FIRST, E)
            self.embed_project = nn.Linear(spec.width, E, bias=False)
            self.project_out = nn.Linear(E, spec.width, bias=False)

    def _embedded(self, batch: nn.Batch) -> Tensor:
        x = self.embed_tokens(batch.ids) if batch.embeddings is None else batch.embeddings
        x = x if self.embed_project is None else self.embed_project(x)
        return x + self.embed_positions(self._position_rows(batch))

    def ended(self, x: Tensor) -> Tensor:
        """The last hidden states under the final norm, as wide as the embedding."""
        ended = super().ended(x)
        return ended if self.project_out is None else self.project_out(ended)


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    stack = OPTStack

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        width = config.size("word_embed_proj_dim", None)
        width = None if width == config.size("hidden_size") else width
        if width is not None and not config.get("tie_word_embeddings", bool):
            raise ModelFileError(
                f"{config.source}: a word_embed_proj_dim other than hidden_size with a head of its "
                "own (tie_word_embeddings false) is not supported"
            )
        before, bias = (config.get(n, bool) for n in ("do_layer_norm_before", "enable_bias"))
        affine = config.get("layer_norm_elementwise_affine", bool)
        norm = NormSpec(1e-5, "layer", bias=affine, weight=affine)
        mixer = read.attention(config, bias=bias, output_bias=bias, rope=None)
        mlp = MLPSpec(config.size("ffn_dim"), config.get("activation_function", str), False, bias)
        norms = LayerNorms(before_mixer=norm, before_mlp=norm)
        if not before:
            norms = LayerNorms(after_mixer=norm, after_mlp=norm)
        layer = LayerSpec(mixer, mlp, norms, "serial" if before else "post")
        rows = config.size("max_position_embeddings") + _FIRST
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={},
            embedding=EmbeddingSpec(positions=rows, first_position=_FIRST, width=width),
            norm=norm if before and not config.get("_remove_final_layer_norm", bool) else None,
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names, with or without `model.`."""
        layer, norms = decoder.LAYER, ("input_layernorm", "post_attention_layernorm")
        if config.layers[0].form == "post":
            norms = ("attention_output_norm", "mlp_output_norm")
        names = {
            "model.project_in": "model.embed_project",
            "model.final_layer_norm": "model.norm",
            layer + "self_attn.out_proj": layer + "self_attn.o_proj",
            layer + "self_attn_layer_norm": layer + norms[0],
            layer + "final_layer_norm": layer + norms[1],
            layer + "fc1": layer + "mlp.up_proj",
            layer + "fc2": layer + "mlp.down_proj",
        }
        return LoadPlan((
            plan.prefixes("model.decoder.", ("model.decoder.", "decoder."), outside=("lm_head.",)),
            plan.rename("model.decoder.{path}", "model.{path}"),
            *(plan.rename(old, new) for old, new in names.items()),
        )) + decoder.CausalLM.load_plan(config)  # fmt: skip

    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]."""
        model: Any = self.model
        if model.project_out is None:
            return super().head(hidden)
        weight = model.embed_tokens.weight
        logits: Any = fusion.products(model.ended(hidden), None, [weight], [None], dtype="float32")
        return logits
