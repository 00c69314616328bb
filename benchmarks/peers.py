"""The peers that our benchmarks run beside us: llama.cpp's llama-bench and transformers + torch.

    python benchmarks/peers.py FOLDER [--threads 2] [--repetitions 5]     FOLDER from make_models.py

llama-bench comes from LLAMA_BENCH or the PATH, llama-batched-bench from LLAMA_BATCHED_BENCH, torch
from the interpreter named by TORCH_PYTHON (its own environment: nothing imports torch in this
process). A missing peer is a PeerMissingError, which a benchmark prints as a skipped row. All
rates are tokens per second, mean and standard deviation over the repetitions after one warm-up run,
as llama-bench counts them: no tokenizer, no sampling other than argmax.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path


class PeerMissingError(RuntimeError):
    """The peer is not installed here; the message says which variable names it."""


@dataclass
class Rate:
    engine: str
    weights: str
    test: str  # "pp512", "tg128"
    mean: float
    sd: float
    best: float  # of the repetitions: what to quote when the machine is shared


def llama_bench(model, *, threads=2, prompt=512, generate=128, repetitions=5, gpu=False):
    """Rates of llama.cpp on one GGUF file; on a GPU with flash attention and all layers there."""
    binary = os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench")
    if not binary:
        raise PeerMissingError("llama-bench not found: set LLAMA_BENCH or put it on the PATH")
    options = {"-m": model, "-t": threads, "-p": prompt, "-n": generate, "-r": repetitions}
    if gpu:
        options |= {"-ngl": 99, "-fa": 1}
    command = [binary, "-o", "json", *(str(x) for pair in options.items() for x in pair)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    weights = Path(model).stem.rsplit("-", 1)[-1]
    return [
        Rate(
            "llama.cpp",
            weights,
            f"tg{row['n_gen']}" if row["n_gen"] else f"pp{row['n_prompt']}",
            row["avg_ts"],
            row["stddev_ts"],
            max(row["samples_ts"]),
        )
        for row in json.loads(done.stdout)
    ]


def batched_bench(model, *, rows=(1,), depth=128, new=32, threads=2):
    """{rows: generated tokens per second of all together} of llama.cpp on one GGUF file, after
    prompts of `depth` tokens each."""
    binary = os.environ.get("LLAMA_BATCHED_BENCH") or shutil.which("llama-batched-bench")
    if not binary:
        raise PeerMissingError(
            "llama-batched-bench not found: set LLAMA_BATCHED_BENCH or put it on the PATH"
        )
    options = {
        "-m": model, "-t": threads, "-tb": threads, "-c": max(rows) * (depth + new + 8),
        "-npp": depth, "-ntg": new, "-npl": ",".join(map(str, rows)), "--output-format": "jsonl",
    }  # fmt: skip
    command = [binary, *(str(x) for pair in options.items() for x in pair)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {found["pl"]: found["speed_tg"] for found in map(json.loads, lines)}


def transformers_bench(
    folder, dtype, *, threads=2, prompt=512, generate=128, repetitions=5, attention="sdpa"
):
    """Rates of transformers + torch on one HF folder; dtype "float32" or "bfloat16"."""
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        raise PeerMissingError("set TORCH_PYTHON to an interpreter that has torch and transformers")
    job = {
        "folder": str(folder),
        "dtype": dtype,
        "threads": threads,
        "prompt": prompt,
        "generate": generate,
        "repetitions": repetitions,
        "attention": attention,
    }
    command = [python, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Rate(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _torch_worker(job):
    """Runs inside TORCH_PYTHON. Prefill computes the last position's logits only, as generate()."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=getattr(torch, job["dtype"]), attn_implementation=job["attention"]
    ).eval()
    V = model.config.vocab_size
    ids = torch.randint(V, (1, job["prompt"]), generator=torch.Generator().manual_seed(0))

    def prefill():
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return job["prompt"]

    def decode():
        token, cache = ids[:, :1], None
        for _ in range(job["generate"]):
            result = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = result.past_key_values, result.logits[:, -1:].argmax(-1)
        return job["generate"]

    rows = []
    with torch.inference_mode():
        for test, run in ((f"pp{job['prompt']}", prefill), (f"tg{job['generate']}", decode)):
            row = Rate("transformers", job["dtype"], test, *rate(run, job["repetitions"]))
            rows.append(asdict(row))
    print(json.dumps(rows))


def rate(run, repetitions):
    """Mean, sd and best of run()'s count per second, after one warm-up."""
    run()
    rates = []
    for _ in range(repetitions):
        start = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - start))
    sd = statistics.stdev(rates) if len(rates) > 1 else 0.0
    return statistics.mean(rates), sd, max(rates)


def read_bandwidth(threads=2, megabytes=1024, repetitions=10):
    """GB/s of reading memory far larger than the caches, all threads together; best run."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    x = np.arange(megabytes * 2**17, dtype=np.uint64)
    parts, best = np.array_split(x, threads), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repetitions):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # vectorised, without the GIL
            best = max(best, x.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def all_rates(folder, threads, repetitions):
    """Every peer on every variant that make_models.py writes; missing peers are printed."""
    options = {"threads": threads, "repetitions": repetitions}
    jobs = [
        (llama_bench, (folder / f"SmolLM2-135M-{kind}.gguf",))
        for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_1")
    ]
    jobs += [
        (transformers_bench, (folder / f"smollm2-{name}", dtype))
        for name, dtype in (("f32", "float32"), ("bf16", "bfloat16"))
    ]
    for bench, arguments in jobs:
        try:
            yield from bench(*arguments, **options)
        except PeerMissingError as missing:
            print(f"skipped: {missing}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _torch_worker(json.loads(arguments.worker))
        return
    if arguments.folder is None:
        parser.error("FOLDER is missing")
    print(
        f"read bandwidth, {arguments.threads} threads: {read_bandwidth(arguments.threads):.1f} GB/s"
    )
    for row in all_rates(arguments.folder, arguments.threads, arguments.repetitions):
        figures = f"{row.mean:.1f} ± {row.sd:.1f} | {row.best:.1f}"
        print(f"| {row.engine} | {row.weights} | {row.test} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
