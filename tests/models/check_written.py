"""What `boostr quantize` writes, read by the programs that it is written for. Run by hand:

    python tests/models/check_written.py [SCHEME ...]

Needs torch, transformers, compressed-tensors, bitsandbytes, mlx and mlx-lm; readers that are not
installed are named and left out. A small model is drawn, written in every scheme and run by boostr
and by its reader; logits must agree to 2e-3 of the largest (bf16: mlx rounds activations: 3e-2).
vLLM, which pins its own torch, is asked by `check_written_vllm.py`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import boostr

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LIMIT = 2e-3
IDS = list(range(3, 40))
SCHEMES = (
    "int8", "int8-g32", "int8-g128", "w8a8", "int4-g32", "int4-g64", "int4-g128", "fp8", "nf4",
    "mlx:2", "mlx:3", "mlx:4", "mlx:4-g32", "mlx:5", "mlx:6", "mlx:8",
)  # fmt: skip


def make_model(folder: Path, tied: bool) -> Path:
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(**CONFIG, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.08)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def by_transformers(folder: Path) -> np.ndarray:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes'
            module.compute_dtype = torch.float32
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


def by_mlx(folder: Path) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)  # of scales, biases and so of activations
    return np.array(model(mx.array([IDS]))[0].astype(mx.float32))


def reader_of(scheme: str):
    """(function, packages that it needs)."""
    if scheme.startswith("mlx:"):
        return by_mlx, ("mlx", "mlx_lm")
    package = "bitsandbytes" if scheme == "nf4" else "compressed_tensors"
    return by_transformers, ("transformers", package)


def check(source: Path, folder: Path, scheme: str) -> bool:
    read, packages = reader_of(scheme)
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{scheme:10} left out: {', '.join(absent)} not installed")
        return True
    made = boostr.quantize(source, folder, scheme, backend="numpy")
    model = boostr.load(folder, backend="numpy")
    ours = model.logits(IDS)
    plain = boostr.load(source, backend="numpy").logits(IDS)
    theirs = read(folder)
    # w8a8: activations are rounded by absmax / 127.5 there, by absmax / 127 here and in vLLM;
    # nf4: weights are decoded to the dtype of the model, bfloat16
    limit = {"w8a8": 6e-2, "nf4": 1e-2}.get(scheme, LIMIT)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    change = float(np.abs(ours - plain).max() / np.abs(plain).max())
    verdict = "ok" if error <= limit else "FAIL"
    print(
        f"{verdict:4} {scheme:10} {source.name:7} {made.weight_bytes:8} bytes, {dict(made.tables)}:"
        f" {error:.1e} from {read.__name__[3:]}, {change:.1e} from the model"
    )
    return error <= limit


def main(schemes: list[str]) -> None:
    ok = True
    with tempfile.TemporaryDirectory() as scratch:
        for tied in (False, True):
            source = make_model(Path(scratch) / ("tied" if tied else "untied"), tied)
            for scheme in schemes or SCHEMES:
                folder = Path(scratch) / "made"
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    ok &= check(source, folder, scheme)
                except Exception as error:
                    ok = False
                    print(f"FAIL {scheme:10} {source.name:7} {type(error).__name__}: {error}")
                    if (folder / "config.json").exists():
                        config = json.loads((folder / "config.json").read_text())
                        print("    ", json.dumps(config.get("quantization_config"))[:1000])
    if not ok:
        raise SystemExit("some readers do not agree")


if __name__ == "__main__":
    main(sys.argv[1:])
