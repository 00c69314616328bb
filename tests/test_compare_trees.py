"""benchmarks/compare_trees.py on checkouts whose benchmark prints what the test says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARK = """
from pathlib import Path
count = Path("count")
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
rates = {rates}
print("a line\\n| model | test | tok/s | peer |\\n|---|---|---|---|")
print(f"| 8B | decode | {{rates[n % len(rates)]}} (1 ± 2) | 7 |")
print("| 8B | prefill 512 | 1e3 | nan |")
"""


def compare(folder: Path, old: list[float], new: list[float]) -> subprocess.CompletedProcess[str]:
    for name, rates in (("old", old), ("new", new)):
        (folder / name).mkdir()
        (folder / name / "bench.py").write_text(BENCHMARK.format(rates=rates))
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_trees.py"), str(folder / "old"),
               str(folder / "new"), "--pairs", "3", "--", "bench.py"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("old", "new", "ratio", "mark", "status"),
    [
        ([100], [90], "0.900", "<", 1),
        ([100], [120], "1.200", ">", 0),
        ([100], [99], "0.990", "", 0),  # within the tolerance
        ([100, 88], [90], "0.957", "", 0),  # within what old differs from old
    ],
)
def test_figures_are_compared_with_noise(tmp_path, old, new, ratio, mark, status):
    done = compare(tmp_path, old, new)
    assert done.returncode == status, done.stderr
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    by_name = {(row[0], row[1]): row for row in rows[2:]}
    row = by_name["8B, decode", "tok/s"]
    assert (row[3], row[5]) == (ratio, mark)
    assert by_name["8B, prefill 512", "tok/s"][3] == "1.000"
    assert by_name["8B, decode", "peer"][2] == "7" and len(by_name) == 3


def test_a_run_without_a_table_is_an_error(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.py").write_text("print('nothing')")
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_trees.py"), str(tmp_path / "old"),
               str(tmp_path / "new"), "--", "bench.py"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "printed no table" in done.stderr
