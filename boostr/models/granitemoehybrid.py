"""Granite 4 without state layers and experts: Granite 3 whose MLP is called the shared expert."""

from __future__ import annotations

from typing import ClassVar

from boostr.errors import ModelFileError
from boostr.io.settings import INERT, Table
from boostr.models import decoder, granite, plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = {
    "num_local_experts": 8, "shared_intermediate_size": 1024, "position_embedding_type": "nope",
}  # fmt: skip
# of layers with states and of experts
_OF_OTHERS = (
    "intermediate_size", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
    "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit",
)  # fmt: skip
_ATTENTION = ("attention", "full_attention")  # of transformers 4 and 5


class CausalLM(granite.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = dict.fromkeys(_OF_OTHERS, INERT)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        experts = config.get("num_local_experts", int)
        if experts:
            raise ModelFileError(
                f"{config.source}: experts (num_local_experts {experts}) are not supported"
            )
        layers = config.size("num_hidden_layers", 32)
        kinds = config.get("layer_types", list, ["linear_attention"] * layers)
        if len(kinds) != layers or any(kind not in _ATTENTION for kind in kinds):
            raise ModelFileError(
                f"{config.source}: layer_types must be {layers} of {_ATTENTION}, as layers with "
                f"states are not supported, got {kinds!r:.80}"
            )
        hidden = config.size("shared_intermediate_size")
        dense = RawConfig({**config.raw, "intermediate_size": hidden}, config.source)
        return granite.CausalLM.read_config(dense)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its MLP's names, with gate and up end to end."""
        layer = decoder.LAYER
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            decoder.packed_gate_up("shared_mlp.input_linear", config.layers[0].mlp),
            plan.rename(layer + "shared_mlp.output_linear", layer + "mlp.down_proj"),
        ))  # fmt: skip
