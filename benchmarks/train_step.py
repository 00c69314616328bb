"""A training step, captured, beside torch.compile's in the same run.

    python benchmarks/train_step.py [--shape 135m|1b|tiny] [--tokens 32768] [--lora] [--no-peer]

Weights are bf16 with float32 masters, random; sequences have 2048 tokens, with --documents 256 to
2048. MFU counts 6·N·T, and with attention 3.5 · 2·S·H·D·L·T more, of --tflops. The peer is
transformers' Llama under torch.compile with bf16 autocast and the fused AdamW, in a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

SHAPES = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    },
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def lengths(options: argparse.Namespace, rng: np.random.Generator) -> list[int]:
    """Tokens of the sequences of one pack."""
    if not options.documents:
        whole, rest = divmod(options.tokens, options.sequence)
        return [options.sequence] * whole + [rest] * (rest > 0)
    made: list[int] = []
    while sum(made) < options.tokens:
        made.append(int(min(rng.integers(256, 2049), options.tokens - sum(made))))
    return made


def timed(step, count: int, wait) -> float:
    """Seconds a step, the best of three rounds."""
    for _ in range(2):
        step()
    wait()
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        rounds.append((time.perf_counter() - start) / count)
    return min(rounds)


def ours(options: argparse.Namespace) -> dict:
    import boostr
    from boostr import train

    config = {**SHAPES[options.shape], **COMMON}
    model: Any = boostr.create("llama", config, backend=options.backend, dtype=options.dtype)
    backend = model.backend
    if options.lora:
        train.add_lora(model, r=16, alpha=32)
    optimizer = train.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, config["vocab_size"], n).tolist() for n in lengths(options, rng)]
    batch = train.pack(ids)
    compiled: Any = train.compile_step(model, optimizer, tokens=options.tokens)
    start = time.perf_counter()
    first = compiled(batch).loss
    start = time.perf_counter() - start
    seconds = timed(lambda: compiled(batch), options.steps, backend.synchronize)
    if options.calls:
        for name, count in Counter(compiled.program.calls()).most_common(60):
            print(f"  {count:6} {name}", file=sys.stderr)
    for line in compiled.program.composites():
        print(f"  {line}", file=sys.stderr)
    used = backend.used_memory() or 0
    return {
        "seconds": seconds, "first": start, "gib": used / 2**30, "loss": first,
        "calls": len(compiled.program), "parameters": model.parameter_count,
    }  # fmt: skip


def peer(options: argparse.Namespace) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[options.shape], **COMMON, use_cache=False)
    model = LlamaForCausalLM(config).cuda()
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = model.to(torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1, fused=True)
    rows = options.tokens // options.sequence
    ids = torch.randint(0, config.vocab_size, (rows, options.sequence), device="cuda")
    run = torch.compile(model)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    start = time.perf_counter()
    first = float(step())
    start = time.perf_counter() - start
    seconds = timed(step, options.steps, torch.cuda.synchronize)
    gib = torch.cuda.max_memory_allocated() / 2**30
    return {"seconds": seconds, "first": start, "gib": gib, "loss": first}


def line(name: str, found: dict, options: argparse.Namespace, parameters: int) -> str:
    shape = SHAPES[options.shape]
    speed = options.tokens / found["seconds"]
    flop = 6 * parameters
    S = options.sequence
    attention = 3.5 * 2 * S * shape["hidden_size"] * shape["num_hidden_layers"]
    mfu, whole = (f * speed / options.tflops / 1e10 for f in (flop, flop + attention))
    return (
        f"| {name} | {speed / 1e3:.1f}k | {found['seconds'] * 1e3:.1f} | {mfu:.0f} % | "
        f"{whole:.0f} % | {found['gib']:.1f} | {found['first']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tflops", type=float, default=790.0, help="what the device can do")
    parser.add_argument("--calls", action="store_true", help="list what the program launches")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--only-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_peer:
        print(json.dumps(peer(options)))
        return
    own = ours(options)
    print("| | tok/s | ms | MFU | with attention | GiB | first step, s |")
    print("|---|---|---|---|---|---|---|")
    print(line("boostr", own, options, own["parameters"]), flush=True)
    if options.no_peer:
        return
    again = [sys.executable, __file__, *sys.argv[1:], "--only-peer"]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the peer failed:\n{done.stderr[-2000:]}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    print(line("torch.compile", found, options, own["parameters"]))
    print(f"{found['seconds'] / own['seconds']:.2f}x, {own['gib'] / found['gib']:.2f}x memory")


if __name__ == "__main__":
    main()
