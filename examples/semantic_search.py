"""Find the sentence that is nearest in meaning.

    python examples/semantic_search.py FOLDER "a question" sentences.txt

FOLDER is a sentence-transformers checkpoint such as all-MiniLM-L6-v2; the file has one sentence on
each line.
"""

import sys
from pathlib import Path

import boostr


def main() -> None:
    folder, question, file = sys.argv[1:]
    sentences = Path(file).read_text(encoding="utf-8").splitlines()
    model = boostr.load(folder)
    query, *rows = model.embed([question, *sentences])
    scores = [float(query @ row) for row in rows]  # unit vectors: the cosine
    for score, sentence in sorted(zip(scores, sentences, strict=True), reverse=True)[:3]:
        print(f"{score:.3f}  {sentence}")


if __name__ == "__main__":
    main()
