"""Captured training steps beside torch.compile's in the same run, a row for each.

    python benchmarks/train_step.py [--rows 135m,1b-lora] [--limit 240] [--no-peer] [--tiny]

Weights are bf16 with float32 masters, random; adapters are float32. Sequences have 2048 tokens,
those of 135m-documents 256 to 2048. 135m-two and 1b-two, which --rows has to name, are on two GPUs
together, each with as many tokens. The peer is transformers' Llama (and peft's LoRA) under
torch.compile, with SDPA, float32 weights under bf16 autocast (bf16 ones under adapters) and the
fused AdamW. Each row of ours, and each of a peer, is a process of its own with a time limit, and is
printed when it ends. MFU is as in docs/training.md, of --tflops or the device's data sheet; a
peer's is of the same flops. TORCH_PYTHON names the interpreter of the peer. --tiny runs the code of
all rows with a tiny model, on a CPU by --backend numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BEGIN = "result "


@dataclass(frozen=True)
class Row:
    """What is measured. Targets are tokens a second, or a share of another row's; and GiB."""

    shape: str
    tokens: int
    target: float | tuple[float, str]
    gib: float | None = None
    lora: bool = False
    form: str = "bf16"
    recompute: str = "none"
    documents: bool = False
    peer: bool = True
    backend: str = ""  # if not the one that is asked for
    devices: int = 1  # that train together, each on as many tokens


ROWS = {
    "135m": Row("135M", 32768, 330e3, 20),
    "135m-documents": Row("135M", 32768, (1.0, "135m"), documents=True, peer=False),
    "135m-wgpu": Row("135M", 4096, 33e3, peer=False, backend="wgpu"),
    "135m-two": Row("135M", 32768, (1.85, "135m"), peer=False, devices=2),
    "1b": Row("1B", 16384, 69e3, 34),
    "1b-two": Row("1B", 16384, (1.85, "1b"), peer=False, devices=2),
    "1b-lora": Row("1B", 16384, 78e3, 35, lora=True),
    "8b-lora": Row("8B", 4096, 15e3, 40, lora=True),
    "8b-int8": Row("8B", 4096, (0.92, "8b-lora"), lora=True, form="int8", peer=False),
    "8b-nf4": Row("8B", 4096, (0.88, "8b-lora"), lora=True, form="nf4/int8-g32", peer=False),
    "8b-int8-recompute": Row(
        "8B", 4096, (0.6, "8b-int8"), 14, lora=True, form="int8", recompute="layer", peer=False
    ),
    "8b-nf4-recompute": Row(
        "8B",
        4096,
        (0.6, "8b-nf4"),
        11,
        lora=True,
        form="nf4/int8-g32",
        recompute="layer",
        peer=False,
    ),
}
FIRST = "first"  # of a new process whose kernels are cached: seconds of 135m's first step
FIRST_TARGET = 2.0


def batch_lengths(row: Row, options: argparse.Namespace) -> list[int]:
    """Tokens of the sequences of one pack."""
    tokens, sequence = (64, 16) if options.tiny else (row.tokens, 2048)
    if not row.documents:
        return [sequence] * (tokens // sequence)
    rng, made = np.random.default_rng(0), list[int]()
    while sum(made) < tokens:
        made.append(int(min(rng.integers(sequence // 8, sequence + 1), tokens - sum(made))))
    return made


def timed(step: Callable[[], Any], wait: Callable[[], None], tiny: bool) -> float:
    """Seconds a step, the best of three rounds of a second or more."""
    count = 1
    for count in (1, 1 if tiny else 2):  # warm, then to know how many
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        one = (time.perf_counter() - start) / count
    count = 1 if tiny else max(3, round(1.0 / one))
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        rounds.append((time.perf_counter() - start) / count)
    return min(rounds)


# -- ours ----------------------------------------------------------------------------------------
def fill(made: Any, block: Any) -> None:
    """Write a block over and over."""
    flat = made.reshape(-1)
    for at in range(0, flat.size, block.size):
        flat[at : at + block.size] = block[: len(flat[at : at + block.size])]


def random_model(row: Row, options: argparse.Namespace, backend: Any) -> Any:
    """A model of random weights that are made on the device."""
    from model_shapes import RandomWeights, decoder_module

    from boostr import dtypes
    from boostr.engine.model import LanguageModel
    from boostr.models.weights import load_parameters
    from boostr.quant.scheme import QuantizedTensor

    if backend.name == "wgpu":
        from wgpu_models import fill as fill_of
    else:
        fill_of = fill
    module = decoder_module(options.config)
    load_parameters(module, RandomWeights(module, row.form, backend, fill_of), backend)
    backend.release_memory()  # what the blocks took
    if isinstance(module.model.embed_tokens.weight, QuantizedTensor):
        module.model.embed_tokens.dtype = backend.activation_dtype(dtypes.bfloat16)
    model = LanguageModel(module, None, backend, "random", ())
    if not row.lora:
        model.make_trainable()
    return model


def ours(row: Row, options: argparse.Namespace) -> dict:
    from boostr import backends
    from boostr.backends.collectives import Alone
    from boostr.train import run_ranks

    backend = options.backend if options.tiny else row.backend or options.backend
    if row.devices == 1:
        return one(row, options, Alone(backends.get(backend)))
    return run_ranks(lambda rank: one(row, options, rank), range(row.devices), backend)


def one(row: Row, options: argparse.Namespace, rank: Any) -> dict:
    """What a device finds; tokens and flops are of all."""
    from boostr import train
    from boostr.train.flops import ModelFlops, peak_flops

    model = random_model(row, options, rank.backend)
    if row.lora:
        train.add_lora(model, r=16, alpha=32)
    model.recompute = row.recompute
    optimizer = train.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    rng, lengths = np.random.default_rng(0), batch_lengths(row, options)
    batch = train.pack([rng.integers(0, model.config.vocab_size, n).tolist() for n in lengths])
    step: Any = train.compile_step(model, optimizer, tokens=sum(lengths), rank=rank)
    start = time.perf_counter()
    loss = step(batch).loss
    first = time.perf_counter() - start
    found = {"first": first, "loss": loss, "tokens": len(batch) * rank.size}
    if options.only == FIRST:
        return found
    seconds = timed(lambda: step(batch), model.backend.synchronize, options.tiny)
    if options.calls and rank.rank == 0:
        for name, count in Counter(step.program.calls()).most_common(60):
            print(f"  {count:6} {name}", file=sys.stderr)
    for line in step.program.composites() if rank.rank == 0 else ():
        print(f"  {line}", file=sys.stderr)
    used, peak = model.backend.used_memory(), peak_flops(model)
    return {
        **found, "seconds": seconds, "gib": (used or step.program.memory or 0) / 2**30,
        "flops": ModelFlops(model).of(batch) * rank.size, "peak": peak and peak * rank.size,
    }  # fmt: skip


# -- the peer ------------------------------------------------------------------------------------
def peer(row: Row, options: argparse.Namespace) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    more = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "use_cache": False}
    config = LlamaConfig(**options.config, **more)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16 if row.lora else torch.float32)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if row.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1, fused=True)
    lengths = batch_lengths(row, options)
    ids = torch.randint(0, config.vocab_size, (len(lengths), lengths[0]), device=device)
    run = model if options.eager else torch.compile(model)

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    start = time.perf_counter()
    loss = step().item()
    first = time.perf_counter() - start
    cuda = device == "cuda"
    seconds = timed(step, torch.cuda.synchronize if cuda else lambda: None, options.tiny)
    gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {"first": first, "loss": loss, "tokens": ids.numel(), "seconds": seconds, "gib": gib}


# -- rows ----------------------------------------------------------------------------------------
def worker(name: str, who: str, options: argparse.Namespace) -> dict | str:
    """What one process of its own found, or why it did not; the peer's may not have boostr."""
    from model_shapes import MODELS

    python = os.environ.get("TORCH_PYTHON", sys.executable) if who == "peer" else sys.executable
    config = MODELS["tiny" if options.tiny else ROWS["135m" if name == FIRST else name].shape]
    again = [python, "-u", __file__, *sys.argv[1:], "--only", name, "--worker", who]
    again += ["--config", json.dumps(config)]
    try:
        done = subprocess.run(
            again, stdout=subprocess.PIPE, text=True, check=False, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return f"more than {options.limit:.0f} s"
    lines = [x for x in done.stdout.splitlines() if x.startswith(BEGIN)]
    return json.loads(lines[-1][len(BEGIN) :]) if lines else f"failed, exit {done.returncode}"


def line(name: str, who: str, own: dict | str, about: dict[str, str]) -> None:
    if isinstance(own, str):
        print(f"| {name} | {who} | {own} |", flush=True)
        return
    speed, flops, peak = own["tokens"] / own["seconds"], own.get("flops"), own.get("peak")
    mfu = f"{flops / own['seconds'] / peak:.1%}" if flops and peak else ""
    cells = (
        name, who, f"{speed / 1e3:.2f}k", f"{own['seconds'] * 1e3:.1f}", f"{own['gib']:.2f}", mfu,
        f"{own['first']:.1f}", about.get("ratio", ""), about.get("memory", ""),
        about.get("target", ""), f"{own['loss']:.2f}",
    )  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def shares(row: Row, own: dict, other: dict | None, rates: dict[str, float]) -> dict[str, str]:
    """Against the peer, and of the targets."""
    speed, about = own["tokens"] / own["seconds"], dict[str, str]()
    if other is not None:
        about["ratio"] = f"{other['seconds'] / own['seconds']:.2f}x"
        if other["gib"]:
            about["memory"] = f"{own['gib'] / other['gib']:.2f}x"
    share, base = row.target if isinstance(row.target, tuple) else (1.0, "")
    wanted = share * rates[base] if base in rates else None if base else row.target
    if wanted is not None:
        about["target"] = f"{speed / wanted:.2f} of {wanted / 1e3:.1f}k"
    if row.gib is not None:
        memory = f"{own['gib']:.1f} of {row.gib} GiB"
        about["target"] = f"{about['target']}, {memory}" if "target" in about else memory
    return about


def measure(name: str, options: argparse.Namespace, rates: dict[str, float]) -> None:
    row = ROWS[name]
    own = worker(name, "ours", options)
    other: dict | str | None = None
    if isinstance(own, dict):
        rates[name] = own["tokens"] / own["seconds"]
        if options.tflops:
            own["peak"] = options.tflops * 1e12 * row.devices
    if row.peer and not options.no_peer:
        other = worker(name, "peer", options)
        if isinstance(own, dict) and isinstance(other, dict):
            other |= {"flops": own["flops"], "peak": own["peak"]}
        line(name, "torch" if options.eager else "torch.compile", other, {})
    known = other if isinstance(other, dict) else None
    line(name, "boostr", own, shares(row, own, known, rates) if isinstance(own, dict) else {})


def measure_first(options: argparse.Namespace) -> None:
    """Twice, of which the second has its kernels on disk."""
    found = [worker(FIRST, "ours", options) for _ in range(2)]
    said = [x if isinstance(x, str) else f"{x['first']:.2f} s" for x in found]
    target = f"target {FIRST_TARGET} s"
    print(f"| {FIRST} | boostr | {said[0]}, then with cached kernels {said[1]}; {target} |")


def main() -> None:
    known = [*ROWS, FIRST]
    usual = [name for name in known if name == FIRST or ROWS[name].devices == 1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(usual), help="some of " + ", ".join(known))
    parser.add_argument("--limit", type=float, default=240.0, help="seconds of each process")
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--tflops", type=float, help="what the device can do; for MFU")
    parser.add_argument("--calls", action="store_true", help="list what the program launches")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--eager", action="store_true", help="the peer without torch.compile")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in every row")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--config", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        row = ROWS["135m" if options.only == FIRST else options.only]
        found = (ours if options.worker == "ours" else peer)(row, options)
        print(BEGIN + json.dumps(found), flush=True)
        return
    rows, rates = [name.strip() for name in options.rows.split(",")], dict[str, float]()
    if unknown := [name for name in rows if name not in known]:
        parser.error(f"--rows: there is no {', '.join(unknown)}; known: {', '.join(known)}")
    print("| row | | tok/s | ms | GiB | MFU | first step, s | ratio | memory | of target | loss |")
    print("|---" * 11 + "|", flush=True)
    for name in rows:
        if name == FIRST:
            measure_first(options)
        else:
            measure(name, options, rates)


if __name__ == "__main__":
    main()
