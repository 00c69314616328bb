"""Teach an embedding model that "three hundred and seven" and "307" mean the same.

    python examples/embeddings.py FOLDER [STEPS]

FOLDER is a sentence-transformers checkpoint such as all-MiniLM-L6-v2. Numbers that are held out say
what was learned: how many find their digits nearest among those of all that are held out.
"""

import sys
import time

import numpy as np

import boostr
from boostr import train

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
PAIRS, HELD_OUT, STEPS = 32, 200, 160  # pairs of a step, numbers, steps


def words(n: int) -> str:
    """A number below 1000 in words."""
    if n >= 100:
        rest = f" and {words(n % 100)}" if n % 100 else ""
        return f"{ONES[n // 100]} hundred{rest}"
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def found(model, numbers: np.ndarray) -> float:
    """The share of numbers in words whose nearest digits are their own."""
    anchors = model.embed([words(n) for n in numbers])
    positives = model.embed([str(n) for n in numbers])
    return float(np.mean((anchors @ positives.T).argmax(1) == np.arange(len(numbers))))


def main(folder: str, steps: int = STEPS) -> None:
    model = boostr.load(folder)
    rng = np.random.default_rng(0)
    held_out, learned = np.split(rng.permutation(1000), [HELD_OUT])
    print(f"before: {found(model, held_out):.1%} of {HELD_OUT} held out are found")

    train.add_lora(model, r=16, alpha=32)
    optimizer = train.AdamW(model.parameters(), lr=0.0)
    step = train.compile_step(
        model, optimizer, tokens=512, max_sequences=2 * PAIRS, objective=train.Contrastive(model)
    )
    start = time.perf_counter()
    for index in range(steps):
        optimizer.lr = 2e-3 * (1 - index / steps)
        numbers = rng.choice(learned, PAIRS, replace=False)  # equal ones would be told apart
        texts = [text for n in numbers for text in (words(n), str(n))]  # anchor, positive, ...
        metrics = step(train.pack([encoding.ids for encoding in model.encode(texts, "train")]))
        if (index + 1) % 20 == 0:
            print(f"{index + 1:4} loss {metrics.loss:.3f}  {time.perf_counter() - start:.0f} s")
    print(f"after:  {found(model, held_out):.1%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
