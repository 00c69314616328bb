"""Make the tiny checkpoints in tests/models/data and the outputs transformers computes from them.

    python tests/models/make_tiny.py [CASE ...]      needs torch and transformers 5; CPU, 3 minutes

Run it by hand when a case is added, and commit what it writes; tests import neither it nor torch.
Each case is data/FAMILY/CASE/ with config.json (as transformers 5 writes it, or by hand, see OLD),
model.safetensors (or shards) and expected.npz; data/cases.json lists them, cases.py reads them.
Cases that differ in the config alone share the weights of another ("weights" in cases.json).

expected.npz of decoders: input_ids [T], cu_seqlens [B+1], logits f32 [T, V], prompt, greedy_ids
[64] (argmax, with a KV cache), min_gap (the smallest top-1 to top-2 distance on the way). bf16
checkpoints have logits computed in f32 from the bf16 weights, and logits_bf16 computed in bf16.
BERT has last_hidden_state [T, E], and pooler_output [B, E] or logits [T, V]. Sequences run one at
a time.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

DATA = Path(__file__).parent / "data"
V, GREEDY, MIN_GAP = 199, 64, 0.01
COMMON = {
    "vocab_size": V,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
THETA = {"rope_theta": 500.0}
LONGROPE = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.3, 1.9, 2.6, 3.3, 4.5, 6.0, 8.0],
}
SHORT = {"max_position_embeddings": 96}  # scaled 4x from 24: prompts of 40 lie beyond 24
TIED = SMALL | {"tie_word_embeddings": True}
GEMMA3 = SMALL | {"sliding_window": 9, "query_pre_attn_scalar": 10}
NEOX = {
    key: value for key, value in SMALL.items() if key not in ("head_dim", "num_key_value_heads")
}
NEOX |= {"hidden_size": 32, "num_attention_heads": 4}
OLMO2 = {key: value for key, value in SMALL.items() if key != "head_dim"}
QWEN2 = {key: value for key, value in SMALL.items() if key != "head_dim"}  # hidden / heads
QWEN3 = SMALL | {"num_key_value_heads": 1, "head_dim": 24}


def rope(kind, **parameters):
    return {"rope_parameters": THETA | {"rope_type": kind, **parameters}}


# family/case -> (class, config, options: weights of another case, shards, bf16, lengths)
CASES = {
    "llama/untied": (
        "Llama",
        SMALL | {"hidden_size": 36, "num_attention_heads": 6, "head_dim": 8},
        {},
    ),
    "llama/tied": ("Llama", TIED | rope("default"), {}),
    "llama/odd": (
        "Llama",
        COMMON
        | {"hidden_size": 21, "intermediate_size": 45, "head_dim": 80, "num_hidden_layers": 1}
        | {"num_attention_heads": 7, "num_key_value_heads": 1}
        | {"attention_bias": True, "mlp_bias": True},
        {},
    ),
    "llama/linear": ("Llama", TIED | rope("linear", factor=4.0), {"weights": "llama/tied"}),
    "llama/dynamic": (
        "Llama",
        TIED | rope("dynamic", factor=4.0) | {"max_position_embeddings": 24},
        {"weights": "llama/tied", "cache_sensitive": True},
    ),
    "llama/llama3": (
        "Llama",
        TIED
        | rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        ),
        {"weights": "llama/tied"},
    ),
    "llama/yarn": (
        "Llama",
        TIED | SHORT | rope("yarn", factor=4.0, original_max_position_embeddings=24, beta_fast=8.0),
        {"weights": "llama/tied"},
    ),
    "llama/longrope": (
        "Llama",
        TIED | SHORT | rope("longrope", original_max_position_embeddings=24, **LONGROPE),
        {"weights": "llama/tied", "cache_sensitive": True},
    ),
    "llama/bf16": ("Llama", SMALL | {"num_attention_heads": 2}, {"bf16": True}),
    "llama/sharded": ("Llama", SMALL | {"num_hidden_layers": 1}, {"shards": 3}),
    "mistral/window": ("Mistral", SMALL | {"sliding_window": 8}, {}),
    "mistral/full": ("Mistral", SMALL | {"sliding_window": None}, {"weights": "mistral/window"}),
    "qwen2/tied": ("Qwen2", QWEN2 | {"tie_word_embeddings": True}, {}),
    "qwen2/window": (
        "Qwen2",
        QWEN2
        | {"num_hidden_layers": 3}
        | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        {},
    ),
    "qwen3/tied": ("Qwen3", QWEN3 | {"tie_word_embeddings": True}, {}),
    "qwen3/untied": ("Qwen3", QWEN3 | {"attention_bias": True}, {}),
    "gemma3_text/tied": (
        "Gemma3Text",
        GEMMA3
        | {"num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {},
    ),
    "gemma3_text/odd": (
        "Gemma3Text",
        GEMMA3
        | {"num_hidden_layers": 7, "hidden_size": 21, "intermediate_size": 28, "head_dim": 8}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "final_logit_softcapping": 12.0}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            }
        },
        {},
    ),
    "gpt_neox/parallel": ("GPTNeoX", NEOX, {}),
    "gpt_neox/serial": (
        "GPTNeoX",
        NEOX
        | {"use_parallel_residual": False, "hidden_size": 36, "num_attention_heads": 3}
        | {"rope_parameters": THETA | {"rope_type": "default", "partial_rotary_factor": 0.5}}
        | {"hidden_act": "gelu_new", "tie_word_embeddings": True},
        {},
    ),
    "olmo2/untied": ("Olmo2", OLMO2, {}),
    "olmo2/odd": (
        "Olmo2",
        OLMO2
        | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
        | {"attention_bias": True, "rms_norm_eps": 1e-3},
        {},
    ),
    "bert/pooler": ("Bert", {}, {"head": "Model"}),
    "bert/mlm": ("Bert", {}, {"head": "ForMaskedLM"}),
}
CLASSES = {"Gemma3Text": "Gemma3"}  # where the model is named otherwise than its config
BERT = {
    "vocab_size": V,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
}
# Configs as transformers 4 wrote them, next to the weights and the outputs of a case above.
OLD = {
    "llama/old_linear": ("llama/linear", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama/old_llama3": (
        "llama/llama3",
        {
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 128,
                "rope_type": "llama3",
            }
        },
    ),
    "qwen2/old_window": ("qwen2/window", {"layer_types": None}),  # from max_window_layers
}


def initialise(model, seed):
    """Weights that keep activations near 1, attention away from uniform and logits near 3."""
    generator = torch.Generator().manual_seed(seed)
    gemma = model.config.model_type.startswith("gemma")  # norms are stored minus 1, rows times √E
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif p.ndim == 1:
                mean = (4 if name == "model.norm.weight" else 0) if gemma else 1
                p.copy_(mean + 0.2 * noise)
            elif "embed" in name or "lm_head" in name:
                p.copy_((0.1 if gemma else 0.5) * noise)
            else:
                p.copy_(noise * 1.4 / p.shape[1] ** 0.5)


def build(cls, config, head="ForCausalLM"):
    if cls == "Bert":
        config = BERT
    config = getattr(transformers, f"{cls}Config")(**config)
    config._attn_implementation = "eager"
    return getattr(transformers, f"{CLASSES.get(cls, cls)}{head}")(config).eval()


def round_parameters(model):
    """Parameters only: model.to(bfloat16) would round rope's inv_freq too; loading does not."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))


def in_bf16(model, folder):
    """The model as from_pretrained(dtype=bfloat16) gives it: bf16 parameters, f32 rope tables."""
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    return loaded.eval()


@torch.inference_mode()
def greedy(model, prompt, use_cache=True):
    """-> 64 ids and the smallest top-1 to top-2 distance."""
    ids, gap, cache, fresh = list(prompt), np.inf, None, list(prompt)
    for _ in range(GREEDY):
        result = model(torch.tensor([fresh]), past_key_values=cache, use_cache=use_cache)
        top = torch.topk(result.logits[0, -1], 2)
        gap = min(gap, float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
        cache = result.past_key_values if use_cache else None
        fresh = ids[-1:] if use_cache else ids
    return ids[len(prompt) :], gap


def sequences(lengths, seed=7):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, V, n).astype(np.int32) for n in lengths]


@torch.inference_mode()
def packed(model, parts, field):
    """One output field of all sequences, each run alone, end to end."""
    rows = [model(torch.tensor(p[None].astype(np.int64)))[field][0] for p in parts]
    return torch.stack(rows) if rows[0].ndim == 1 else torch.cat(rows)


def inputs(parts):
    lengths = np.cumsum([0, *(len(p) for p in parts)]).astype(np.int32)
    return {"input_ids": np.concatenate(parts), "cu_seqlens": lengths}


def good_greedy(model, prompt):
    """ids, gap if the run is a fair test: no near tie, no EOS, not one token over and over."""
    ids, gap = greedy(model, prompt)
    return (ids, gap) if gap > MIN_GAP and 2 not in ids and len(set(ids)) >= 12 else None


def decoder_expected(model, prompt, found, options):
    parts = sequences((1, 7, 40))
    ids, gap = found
    expected = inputs(parts) | {
        "logits": packed(model, parts, "logits").numpy(),
        "prompt": prompt,
        "greedy_ids": np.array(ids, np.int32),
        "min_gap": np.float32(gap),
    }
    if options.get("cache_sensitive"):
        return expected | {
            "greedy_ids_no_cache": np.array(greedy(model, prompt, False)[0], np.int32)
        }
    if greedy(model, prompt, False)[0] != ids:
        raise SystemExit("greedy with and without a cache differ")
    return expected


def make_decoder(name, cls, config, options):
    """Take the first seed (with borrowed weights: the first prompt) whose greedy run is fair."""
    folder, shared = DATA / name, options.get("weights")
    for trial in range(2000):
        model = build(cls, config)
        if shared:
            owner = transformers.AutoModelForCausalLM.from_pretrained(DATA / shared)
            model.load_state_dict(owner.state_dict())
        else:
            initialise(model, trial)
        if options.get("bf16"):
            round_parameters(model)
        prompt = sequences((5,), seed=trial)[0]
        if found := good_greedy(model, prompt):
            break
    else:
        raise SystemExit(f"{name}: no fair greedy run")
    expected = decoder_expected(model, prompt, found, options)
    if options.get("bf16"):
        model = in_bf16(model, folder)
        expected["logits_bf16"] = packed(model, sequences((1, 7, 40)), "logits").float().numpy()
    save(model, folder, expected, shared, options.get("shards"))
    print(f"{name}: trial {trial}, gap {found[1]:.3f}, {len(set(found[0]))} tokens", end=" ")
    print(f"logits rms {expected['logits'].std():.2f}")


def make_bert(name, head):
    model = build("Bert", {}, head)
    initialise(model, 1)
    parts = sequences((1, 9, 48, 17))
    if head == "Model":
        fields = ("last_hidden_state", "pooler_output")
        expected = {field: packed(model, parts, field).numpy() for field in fields}
    else:
        expected = {"logits": packed(model, parts, "logits").numpy()}
        expected["last_hidden_state"] = packed(model.bert, parts, "last_hidden_state").numpy()
    save(model, DATA / name, inputs(parts) | expected)
    print(name, {key: round(float(value.std()), 2) for key, value in expected.items()})


def save(model, folder, expected, shared=None, shards=None):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shared:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = "float32"
        model.config.save_pretrained(folder)
    else:
        total = sum(p.nbytes for p in model.parameters())
        size = total // shards + 9000 if shards else "50GB"
        model.save_pretrained(folder, max_shard_size=size)
    np.savez_compressed(folder / "expected.npz", **expected)


def make_old(name, source, changes):
    """The v5 config of `source` respelled by hand; transformers must read it as the same model."""
    folder = DATA / name
    config = json.loads((DATA / source / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    config |= {"rope_theta": theta, "torch_dtype": config.pop("dtype")} | changes
    config["transformers_version"] = "4.45.2"
    config = {key: value for key, value in config.items() if value is not None}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    auto = transformers.AutoModelForCausalLM
    read = transformers.AutoConfig.from_pretrained(folder)
    model = auto.from_config(read, attn_implementation="eager").eval()
    weights = auto.from_pretrained(DATA / CASES[source][2].get("weights", source))
    model.load_state_dict(weights.state_dict())
    with np.load(DATA / source / "expected.npz") as expected:
        again = packed(model, sequences((1, 7, 40)), "logits").numpy()
        np.testing.assert_allclose(again, expected["logits"], rtol=1e-6, atol=1e-6)
    print(name, "reads as", source)


def listing():
    """cases.json: for each case its folder, and the folders its weights and outputs are in."""
    rows = []
    for name, (_, _, options) in CASES.items():
        row = {"name": name, "family": name.split("/")[0], "expected": name}
        row["weights"] = options.get("weights", name)
        row["cache_sensitive"] = options.get("cache_sensitive", False)
        rows.append(row)
    for name, (source, _) in OLD.items():
        rows.append(next(r for r in rows if r["name"] == source) | {"name": name})
    return rows


def main(names):
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name, (cls, config, options) in CASES.items():
        if names and name not in names:
            continue
        if cls == "Bert":
            make_bert(name, options["head"])
        else:
            make_decoder(name, cls, config, options)
    for name, (source, changes) in OLD.items():
        if not names or name in names:
            make_old(name, source, changes)
    (DATA / "cases.json").write_text(json.dumps(listing(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
