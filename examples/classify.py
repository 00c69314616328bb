"""Classify texts with a small language model: the label whose tokens it finds likelier.

python examples/classify.py "text" label label ...
"""

import sys

import boostr


def main() -> None:
    text, *labels = sys.argv[1:]
    model = boostr.load()
    prompt = f"Review: {text}\nThe sentiment of this review is"
    base = model.score(prompt).nll
    for label in labels:
        print(f"{label:12} {base - model.score(f'{prompt} {label}').nll:8.2f}")


if __name__ == "__main__":
    main()
