"""One benchmark in two checkouts, in turns: what has changed, and how much of it is noise.

    python benchmarks/compare_trees.py OLD NEW [--pairs 5] -- benchmarks/cpu_models.py FOLDER ...

Runs `python SCRIPT ...` with OLD's and NEW's own benchmarks and library: in each pair old, new and
old again. The figures are the numbers in the tables that the script prints, by row and column (a
row is named by its cells before the first number). For each figure: the median over the pairs of
new / old, and between which ratios old / old lies when nothing has changed. A figure is marked
where the median is outside of that and more than 2 % from 1: "<" where it fell, ">" where it rose.
Ends with exit status 1 if a figure is marked "<" in a column of `--rates`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOLERANCE = 0.02
RATES = r"^(boostr, )?tok/s$"
_NUMBER = re.compile(r"^[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?\b")
Figures = dict[tuple[str, str], float]


def figures(text: str) -> Figures:
    """(row, column) -> the number that a cell of a markdown table begins with."""
    found: Figures = {}
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            head = []
        elif not head:
            head = cells
        elif set(line) - set("|-: "):
            numbers = [_NUMBER.match(cell) for cell in cells]
            first = next((i for i, n in enumerate(numbers) if n and i), len(cells))
            name = ", ".join(cells[:first])
            for column, number in list(zip(head, numbers, strict=False))[first:]:
                if number:
                    found[name, column] = float(number[0])
    return found


def run(tree: Path, command: Sequence[str]) -> Figures:
    """The figures of one run in a checkout; what it says beside them goes to stderr."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)} ended with status {done.returncode}")
    found = figures(done.stdout)
    if not found:
        raise SystemExit(f"{tree}: {' '.join(command)} printed no table")
    return found


def compare(runs: Sequence[tuple[Figures, Figures, Figures]]) -> list[tuple[str, ...]]:
    """Rows (row, column, old, new / old, least and most of old / old, mark) of (old, new, old)."""
    rows = []
    for key in runs[0][0]:
        if any(key not in part or not part[key] for three in runs for part in three):
            continue
        changed = statistics.median(new[key] / ((a[key] + b[key]) / 2) for a, new, b in runs)
        noise = [b[key] / a[key] for a, _, b in runs]
        low, high = min(*noise, 1.0), max(*noise, 1.0)
        mark = ""
        if not low <= changed <= high and abs(changed - 1) > TOLERANCE:
            mark = "<" if changed < 1 else ">"
        old = statistics.median((a[key] + b[key]) / 2 for a, _, b in runs)
        numbers = (f"{old:.4g}", f"{changed:.3f}", f"{low:.3f} to {high:.3f}", mark)
        rows.append((*key, *numbers))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rates", default=RATES, help="columns that must not fall, as a regex")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if not command or options.pairs < 1:
        parser.error("expected -- SCRIPT ... and one pair or more")
    old, new = (tree.resolve() for tree in (options.old, options.new))
    runs = []
    for pair in range(options.pairs):
        runs.append((run(old, command), run(new, command), run(old, command)))
        print(f"pair {pair + 1} of {options.pairs} is done", file=sys.stderr)
    rows = compare(runs)
    print("| row | column | old | new / old | old / old | |\n|---|---|--:|--:|--:|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    fallen = [row for row in rows if row[-1] == "<" and re.search(options.rates, row[1])]
    return 1 if fallen else 0


if __name__ == "__main__":
    raise SystemExit(main())
