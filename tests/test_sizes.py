"""Files and functions stay short enough to read (DESIGN.md, section 5)."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("boostr", "tests", "benchmarks", "examples")
PYTHON = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
SHADERS = sorted(p for p in (ROOT / "shaders").rglob("*") if p.is_file())
FILE, KERNEL_FILE, FUNCTION, MEDIAN = 400, 600, 60, 150
VAGUE = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_kernel_source(path: Path) -> bool:
    return path in SHADERS or "kernels" in path.parts


@pytest.mark.parametrize("path", [*PYTHON, *SHADERS], ids=name)
def test_file(path):
    limit = KERNEL_FILE if is_kernel_source(path) else FILE
    lines = len(path.read_text().splitlines())
    assert lines <= limit, f"{name(path)} has {lines} lines, at most {limit}: split it by subject"
    assert path.name not in VAGUE, f"{name(path)}: name the file after what is in it"


@pytest.mark.parametrize("path", [p for p in PYTHON if not is_kernel_source(p)], ids=name)
def test_functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
            assert lines <= FUNCTION, f"{name(path)}: {node.name} has {lines} lines"


def test_median():
    lines = [len(p.read_text().splitlines()) for p in PYTHON if "boostr" in p.parts]
    assert statistics.median(lines) <= MEDIAN
