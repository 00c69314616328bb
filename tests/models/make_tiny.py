"""Make tests/models/data: what transformers computes of the checkpoints of tests/models/families.

    python tests/models/make_tiny.py [FAMILY ...]    needs torch and transformers 5; CPU, minutes

Run it by hand when a case is added or changed, and commit what it writes; tests import neither it
nor torch. A family is two files:
data/FAMILY.json: `defaults`, the config that its class has without arguments; for each case its
config.json as transformers 5 writes it, the shapes of its weights by name, and the seed of these
and of the prompt (seeded.py).
data/FAMILY.npz, by "case.field": for the tokens seeded.ROWS of three sequences, run one at a time,
`hidden_states` [L + 1, N, E] (a narrower last one apart, `last_hidden_state`) and `logits` [N, V]
(of other heads: one row a sequence) and `pooler_output`; of decoders `greedy_ids` [64] (argmax,
with a KV cache). All in float32; of bf16 checkpoints `logits_bf16`, too.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import seeded
import torch
import transformers
from families import Case, Family, all_families, bare
from safetensors.torch import safe_open, save_file

DATA = Path(__file__).parent / "data"
GREEDY, MIN_GAP, TRIALS = 64, 0.01, 2000


def defaults(family: Family) -> dict:
    """What the class of its config has without arguments, beside what all classes have."""
    if family.own is not None:
        return dict(family.defaults)
    config = json.loads(getattr(transformers, family.config)().to_json_string(use_diff=False))
    shared = transformers.PretrainedConfig().to_dict()
    own = {key: value for key, value in config.items() if key not in shared}
    return {"model_type": config["model_type"], **own}


def named_as_saved(family: Family, case: Case) -> tuple[dict, dict]:
    """(config.json, shapes of the weights) of a checkpoint that transformers writes."""
    config = getattr(transformers, case.config_class or family.config)(**case.config)
    model = getattr(transformers, case.model or family.model)(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="50GB")
        raw = json.loads(Path(folder, "config.json").read_text())
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: s.get_dtype() for name, s in slices.items()}
            shapes = {name: s.get_shape() for name, s in slices.items()}
    if set(kinds.values()) != {"F32"}:
        raise SystemExit(f"tensors that are no numbers: {kinds}")
    return raw | {"dtype": case.dtype}, shapes


def loaded(family: Family, case: Case, record: dict, dtype="float32"):
    """The model as from_pretrained reads it from a folder."""
    drawn = seeded.weights(record["seed"], record["shapes"], family.weights)
    stored = getattr(torch, case.dtype)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: torch.from_numpy(a).to(stored) for name, a in drawn.items()}
        save_file(tensors, Path(folder, "model.safetensors"), {"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(record["config"]))
        model, report = getattr(transformers, case.model or family.model).from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=case.attention,
            output_loading_info=True,
        )  # fmt: skip
    if wrong := {key: names for key, names in report.items() if names}:
        raise SystemExit(f"transformers does not load it whole: {wrong}")
    return model.eval()


@torch.inference_mode()
def outputs(model, sequences) -> dict[str, np.ndarray]:
    """Fields of its outputs: of all sequences end to end the rows that are kept."""
    runs = [
        model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
        for ids in sequences
    ]
    rows = list(seeded.ROWS)
    layers = zip(*(run.hidden_states for run in runs), strict=True)
    states = [torch.cat(layer, 1)[0, rows] for layer in layers]
    fields = {}
    if states[-1].shape != states[0].shape:  # what a narrower head reads
        fields["last_hidden_state"] = states.pop()
    fields["hidden_states"] = torch.stack(states)
    for name in ("logits", "pooler_output"):
        if name in runs[0]:
            whole = [run[name] for run in runs]
            fields[name] = torch.cat(whole, 1)[0, rows] if whole[0].ndim == 3 else torch.cat(whole)
    return {name: value.float().numpy() for name, value in fields.items()}


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


def is_fair(ids, gap) -> bool:
    """Whether a greedy run tests anything: no near tie, no EOS, not one token over and over."""
    return gap > MIN_GAP and 2 not in ids and len(set(ids)) >= 12


def make(family: Family, case: Case):
    """(record of the JSON file, arrays) of a case; decoders take the first seed that is fair."""
    config, shapes = named_as_saved(family, case)
    record = {"seed": 0, "config": config, "shapes": shapes}
    if family.own is None:
        check_spellings(family, record["config"])
    vocab_size = config.get("text_config", config)["vocab_size"]
    greedy_ids = {}
    for seed in range(TRIALS if family.generates(case) else 1):
        record["seed"] = seed
        model = loaded(family, case, record)
        if not family.generates(case):
            break
        prompt = seeded.token_ids(seed, seeded.PROMPT, vocab_size).tolist()
        ids, gap = greedy(model, prompt)
        if is_fair(ids, gap):
            greedy_ids["greedy_ids"] = np.array(ids, np.int32)
            break
    else:
        raise SystemExit("no seed gives a fair greedy run: other `weights`?")
    if greedy_ids and not case.cache_sensitive and greedy(model, prompt, False)[0] != ids:
        raise SystemExit("greedy with and without a cache differ")
    sequences = seeded.sequences(vocab_size)
    arrays = outputs(model, sequences) | greedy_ids
    if case.dtype != "float32":
        rounded = outputs(loaded(family, case, record, case.dtype), sequences)
        arrays["logits_bf16"] = rounded["logits"]
    return record, arrays


def read_back(raw: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(raw))
        config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    (config.get("rope_parameters") or {}).pop("type", None)  # kept beside the newer name for it
    return config | {"_name_or_path": ""}


def check_spellings(family: Family, raw: dict) -> None:
    """transformers itself must read the older and the bare spelling as the same config."""
    want = read_back(raw)
    for spelling in (family.v4(json.loads(json.dumps(raw))), bare(raw, defaults(family))):
        got = read_back(spelling)
        if differs := {k: (got.get(k), v) for k, v in want.items() if got.get(k) != v}:
            raise SystemExit(f"transformers reads another spelling otherwise: {differs}")


def write(name: str, family: Family) -> None:
    records, arrays = {}, {}
    for key, case in family.cases.items():
        records[key], made = make(family, case)
        if family.own is not None:
            records[key]["config"] = family.own(records[key]["config"])
        arrays |= {f"{key}.{field}": array for field, array in made.items()}
        rms = {field: round(float(a.std()), 2) for field, a in made.items() if a.dtype.kind == "f"}
        print(f"{name}/{key}: seed {records[key]['seed']}, spread {rms}", flush=True)
    text = json.dumps({"defaults": defaults(family), "cases": records}, indent=1)
    lists = re.compile(r"\[[^\[\]{}]*\]")  # on one line each
    text = lists.sub(lambda found: json.dumps(json.loads(found[0])), text)
    (DATA / f"{name}.json").write_text(text + "\n")
    np.savez_compressed(DATA / f"{name}.npz", **arrays)
    size = sum(DATA.joinpath(f"{name}.{end}").stat().st_size for end in ("json", "npz"))
    print(f"{name}: {size / 1000:.0f} kB")
    if size > 100_000:
        raise SystemExit("at most 100 kB a family: fewer or smaller cases")


def main(names):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name, family in all_families().items():
        if not names or name in names:
            write(name, family)


if __name__ == "__main__":
    main(sys.argv[1:])
