"""Make tests/models/data/peft: adapters that peft writes, and what its models compute. By hand:

    python tests/models/make_golden_peft.py         needs torch, transformers 5 and peft; a minute
    python tests/models/make_golden_peft.py check   needs what boostr does, too

Each folder of data/peft is an adapter of random numbers over a tiny checkpoint (cases.py) as peft
saves it, with golden.npz: `outputs`, logits or hidden states of every fourth token of IDS. `check`
goes the other way: boostr loads each adapter, saves it, and peft's own loader must compute the same
with what was saved as with what it saved itself.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import cases  # noqa: E402
import numpy as np  # noqa: E402
import seeded  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

DATA = HERE / "data" / "peft"
IDS = 23  # tokens, of seed 7
# folder -> (tiny checkpoint, adapter)
ADAPTERS = {
    "patterns": ("llama/untied", LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, modules_to_save=["model.norm", "lm_head"],
        target_modules=r".*layers\.\d\.(self_attn\.[qkv]_proj|mlp\.down_proj)",
        rank_pattern={"layers.1.self_attn.q_proj": 5, r"layers\.0\..*_proj": 2},
        alpha_pattern={"down_proj": 7},
    )),
    "tables": ("llama/untied", LoraConfig(
        r=2, lora_alpha=4, target_modules=["embed_tokens", "lm_head", "o_proj"],
    )),
    "tied": ("llama/tied", LoraConfig(
        r=2, lora_alpha=3, target_modules=["embed_tokens", "up_proj"], ensure_weight_tying=True,
    )),
    "turned": ("gpt2/plain", LoraConfig(
        r=3, lora_alpha=6, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True,
    )),
    "packed": ("phi3/window", LoraConfig(r=2, target_modules="all-linear")),
    "by-head": ("gpt_neox/parallel", LoraConfig(r=2, target_modules=["query_key_value"])),
    "encoder": ("bert/pooler", LoraConfig(
        r=2, target_modules=["query", "value", "intermediate.dense"],
    )),
}  # fmt: skip


def base(case: cases.Tiny, folder: Path) -> torch.nn.Module:
    cases.checkpoint(case, folder)
    kind = getattr(transformers, case.spec.model or case.data.model)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def outputs(model: torch.nn.Module, case: cases.Tiny) -> np.ndarray:
    ids = torch.tensor(seeded.token_ids(7, IDS, case.vocab_size)[None].astype(np.int64))
    result = model(input_ids=ids)
    made = result.logits if "logits" in result else result.last_hidden_state
    return made[0, ::4].numpy()


def made(name: str) -> None:
    """Write one folder."""
    case, config = cases.named(ADAPTERS[name][0]), ADAPTERS[name][1]
    with tempfile.TemporaryDirectory() as folder:
        before = outputs(model := base(case, Path(folder)), case)
        config.task_type = "CAUSAL_LM" if case.generates else "FEATURE_EXTRACTION"
        adapted = get_peft_model(model, config)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in (p for p in adapted.parameters() if p.requires_grad):
                spread = 0.25 if weight.ndim > 1 else 0.5
                weight.add_(spread * torch.randn(weight.shape))
        after = outputs(adapted, case)
        adapted.save_pretrained(Path(folder, "out"))
        shutil.rmtree(DATA / name, ignore_errors=True)
        (DATA / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(Path(folder, "out", file), DATA / name)
    written = json.loads((DATA / name / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = case.name
    (DATA / name / "adapter_config.json").write_text(json.dumps(written, indent=1) + "\n")
    np.savez_compressed(DATA / name / "golden.npz", outputs=after)
    size = sum(file.stat().st_size for file in (DATA / name).iterdir())
    print(f"{name}: moves outputs by {np.abs(after - before).max():.2f}, {size / 1000:.0f} kB")


def checked(name: str) -> None:
    """Raises if peft computes something else with what boostr has saved."""
    import boostr

    case = cases.named(ADAPTERS[name][0])
    with tempfile.TemporaryDirectory() as folder:
        model = base(case, Path(folder))
        loaded = boostr.load(folder, adapter=DATA / name, backend="numpy")
        loaded.save_adapter(Path(folder, "ours"))
        adapted = PeftModel.from_pretrained(model, Path(folder, "ours")).eval()
        got = outputs(adapted, case)
    want = np.load(DATA / name / "golden.npz")["outputs"]
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name}: relative error {error:.1e}")
    if error > 1e-5:
        raise SystemExit(f"{name}: peft computes something else with what boostr saved")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for folder in ADAPTERS:
        checked(folder) if sys.argv[1:] == ["check"] else made(folder)
