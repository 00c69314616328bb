"""StarCoder 2: layer norms, biases everywhere, an MLP without a gate, and a window."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
    "num_attention_heads": 24, "max_position_embeddings": 4096, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "starcoder2",
            "Starcoder2ForCausalLM",
            keys={"attention.layer_norm_epsilon": "norm_epsilon"},
            says=lambda config: {"use_bias": config["attention_bias"]},
            spelled={"attention_bias": "use_bias"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm = NormSpec(config.get("norm_epsilon", float, 1e-5), "layer", bias=True)
        bias, act = config.get("use_bias", bool, True), "gelu_pytorch_tanh"
        window = config.size("sliding_window", None)
        mixer = read.attention(config, bias=bias, output_bias=bias, window=window)
        mlp = MLPSpec(
            config.size("intermediate_size"), config.get("hidden_act", str, act), False, bias
        )
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"), norm=norm)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names of the MLP."""
        layer = "model.layers.{i}.mlp."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "c_fc", layer + "up_proj"),
            plan.rename(layer + "c_proj", layer + "down_proj"),
        ))  # fmt: skip
