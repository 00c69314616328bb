"""Make tests/train/data/bf16.npz: how far torch's autocast is from the gradients of float64.

    python tests/train/make_golden_bf16.py    needs torch and transformers 5; CPU, seconds

Run it by hand, and commit what it writes. By parameter of the case: its gradient in float64, whose
matrices are rounded to bfloat16 first, as float32; `autocast`: the norm of the error of float32
weights under torch.autocast in bfloat16 on a CPU, as a share of the norm of all gradients.
"""

import json

import make_golden_torch as golden_torch  # which sets the path
import numpy as np
import seeded
import torch
from families import all_families
from golden import BF16_CASE, BF16_DATA
from make_tiny import loaded


def gradients(model, vocab_size):
    model.zero_grad()
    golden_torch.loss_of(model, seeded.sequences(vocab_size), True).backward()
    return {name: p.grad.double().numpy() for name, p in model.named_parameters()}


def main():
    name, _, key = BF16_CASE.partition("/")
    family = all_families()[name]
    records = json.loads((golden_torch.TESTS / "models" / "data" / f"{name}.json").read_text())
    record = records["cases"][key]
    model, vocab_size = loaded(family, family.cases[key], record), record["config"]["vocab_size"]
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(p.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, vocab_size)
    truth = gradients(model.double(), vocab_size)
    off = sum(((found[n] - g) ** 2).sum() for n, g in truth.items()) ** 0.5
    share = off / sum((g**2).sum() for g in truth.values()) ** 0.5
    np.savez_compressed(
        BF16_DATA, autocast=share, **{n: g.astype(np.float32) for n, g in truth.items()}
    )
    print(f"autocast: {share:.2e}, {BF16_DATA.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
