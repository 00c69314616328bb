"""Make tests/train/data/torch.npz: gradients and curves of training as torch computes them.

    python tests/train/make_golden_torch.py    needs torch and transformers 5; CPU, minutes

Run it by hand when a case of tests/models/families is added or changed, and commit what it writes;
tests import neither it nor torch. `names`: a line for each parameter, "family/case:NAME", as in
the checkpoint; `summaries` float32 [N, 3]: the norm of its gradient and two projections of it
(`golden.summary`). By "family.case" of golden.CURVES: float64 [STEPS], the losses of AdamW.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "models"), str(TESTS / "train")]

import golden  # noqa: E402
import numpy as np  # noqa: E402
import seeded  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from families import all_families  # noqa: E402
from make_tiny import loaded  # noqa: E402


def loss_of(model, sequences, generates):
    """What golden.py says, of sequences run one at a time."""
    total, count, states = 0.0, 0, []
    for ids in sequences:
        tokens = torch.tensor(ids[None].astype(np.int64))
        run = model(tokens, output_hidden_states=True)
        if generates:
            labels = torch.tensor(golden.labels(ids).astype(np.int64))[1:]
            count += int((labels != -100).sum())
            total = total + torch.nn.functional.cross_entropy(
                run.logits[0, :-1], labels, ignore_index=-100, reduction="sum"
            )
        else:
            states.append(run.hidden_states[-1][0])
    if generates:
        return total / count
    whole = torch.cat(states)
    return (whole * torch.from_numpy(golden.noise(whole.shape))).sum()


def gradients(model, generates, vocab_size):
    model.zero_grad()
    loss_of(model, seeded.sequences(vocab_size), generates).backward()
    return {
        name: golden.summary(name, p.grad.double().numpy())
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def curve(model, vocab_size):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=golden.DECAY)
    losses = []
    for step in range(golden.STEPS):
        loss = loss_of(model, golden.step_sequences(step, vocab_size), True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), golden.CLIP)
        optimizer.param_groups[0]["lr"] = golden.rate(step)
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


def main():
    import json

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    arrays, curves = {}, {}
    for name, family in all_families().items():
        records = json.loads((TESTS / "models" / "data" / f"{name}.json").read_text())["cases"]
        for key, case in family.cases.items():
            record, generates = records[key], family.generates(case)
            if family.own is not None:
                continue  # whose config transformers does not read
            vocab_size = record["config"].get("text_config", record["config"])["vocab_size"]
            model = loaded(family, case, record)
            found = gradients(model, generates, vocab_size)
            arrays |= {f"{name}/{key}:{parameter}": a for parameter, a in found.items()}
            if f"{name}/{key}" in golden.CURVES:
                curves[f"{name}.{key}"] = curve(model, vocab_size)
                print(f"{name}/{key}: {curves[f'{name}.{key}'][::20]}", flush=True)
    golden.DATA.parent.mkdir(exist_ok=True)
    summaries = np.array([*arrays.values()], np.float32)
    names = np.array("\n".join(arrays))
    np.savez_compressed(golden.DATA, names=names, summaries=summaries, **curves)
    print(f"{len(arrays)} arrays, {golden.DATA.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
