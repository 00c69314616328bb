"""Qwen2: biases of q, k and v alone; windows from a layer on."""

from families import GGUF, SMALL, Case, Family, flat_rope, without

SIZES = without(SMALL, "head_dim")
WINDOW = {
    "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1
}  # fmt: skip


def v4(raw):
    """Windows by layer come from `max_window_layers`."""
    return flat_rope(without(raw, "layer_types"))


FAMILY = Family(
    config="Qwen2Config",
    model="Qwen2ForCausalLM",
    cases={
        "tied": Case(SIZES | {"tie_word_embeddings": True}),
        "window": Case(SIZES | WINDOW, in_gguf=False),
    },
    v4=v4,
    gguf=GGUF("qwen2"),
)
