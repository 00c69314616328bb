"""Train a language model from scratch on some of Shakespeare's sonnets, and let it write.

    python examples/tiny_shakespeare.py [STEPS]

Tokens are bytes. The last sonnets are held out: the loss on them says when the model begins to
learn the others by heart.
"""

import sys
import time
from pathlib import Path

import numpy as np

import boostr
from boostr import train

TEXT = Path(__file__).parent / "data" / "sonnets.txt"
STEPS = 400
LENGTH, SEQUENCES = 128, 16  # bytes of a sequence, sequences of a step
CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}


def main(steps: int = STEPS) -> None:
    sonnets = TEXT.read_bytes().split(b"\n\n")
    held_out = train.pack([list(sonnet) for sonnet in sonnets[-3:]])
    text = np.frombuffer(b"\n\n".join(sonnets[:-3]), np.uint8)
    rng = np.random.default_rng(0)

    model = boostr.create("llama", CONFIG, seed=0)
    optimizer = train.AdamW(model.parameters(), lr=0.0, weight_decay=0.1)
    step = train.compile_step(model, optimizer, tokens=LENGTH * SEQUENCES)
    count = sum(p.size for p in model.parameters())
    print(f"{count} parameters on {model.backend.name}, {len(text)} bytes of text")

    start = time.perf_counter()
    for index in range(steps):
        optimizer.lr = 3e-3 * min((index + 1) / 20, 1 - index / steps)  # up, then down to 0
        starts = rng.integers(0, len(text) - LENGTH, SEQUENCES)
        metrics = step(train.pack([text[i : i + LENGTH] for i in starts]))
        if (index + 1) % 50 == 0 or index + 1 == steps:
            with boostr.no_grad():
                unseen = model.loss(held_out).item()
            seconds = time.perf_counter() - start
            print(f"{index + 1:5} loss {metrics.loss:.3f}  held out {unseen:.3f}  {seconds:.0f} s")

    written = model.generate(list(b"When I "), max_tokens=300, temperature=0.8, seed=0).token_ids
    print("When I " + bytes(written).decode(errors="replace"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
