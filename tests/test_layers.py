"""Imports run one way (DESIGN.md, section 2), and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what stands above: a layer imports itself, those before it, and what is not listed
LAYERS = ("errors", "env", "dtypes", "quant", "backends", "tensor", "dispatch", "ops", "nn",
          "models", "engine", "bench", "cli")  # fmt: skip
KNOWN_ABOVE = {
    ("quant", "tensor"), ("backends", "tensor"),  # kernels and packed weights hold tensors
    ("quant", "backends"),
    ("dispatch", "nn"),  # `coverage` lists the ops of all modules
}  # fmt: skip


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in (ROOT / "boostr").rglob("*.py")}


def _statements(body: list[ast.stmt], everywhere: bool) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported; `everywhere`: those in functions too."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []), everywhere)


def imports(name: str, everywhere: bool = False) -> set[str]:
    found = set()
    for node in _statements(ast.parse(MODULES[name].read_text()).body, everywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {f if f in MODULES else str(node.module) for f in full}
    return found & set(MODULES) - {name}


def test_no_circle_of_imports():
    edges = {name: imports(name) for name in MODULES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_stands_below(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    wrong = []
    for name in MODULES:
        if name.split(".")[1:2] == [layer]:
            for other in imports(name, everywhere=True):
                to = other.partition(".")[2].partition(".")[0]
                if to in above and (layer, to) not in KNOWN_ABOVE:
                    wrong.append(f"{name} imports {other}")
    assert not wrong, wrong
