"""Documentation that runs: code blocks of README and docs, and the tables made from the code.

`python tests/test_docs.py` rewrites the tables.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """The boostr commands of a page that can run by themselves."""
    lines = [line for code in blocks(page, "sh") for line in code.splitlines()]
    return [line for line in lines if line.startswith(("boostr ", "echo ")) and " chat" not in line]


def coverage_table() -> str:
    from boostr import backends
    from boostr.dispatch import OPS

    for module in ("engine.load", "recompute", "train"):  # all that define ops
        importlib.import_module(f"boostr.{module}")
    names = sorted(backends.names(), reverse=True)
    tables = [importlib.import_module(f"boostr.backends.{name}.kernel_table") for name in names]
    lines = [f"| op | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for op, found in sorted(OPS.items()):
        kernels = [table.find_kernel(op) for table in tables]
        without = "its parts" if found.fusion else "composite"
        cells = [without if isinstance(kernel, str) else "kernel" for kernel in kernels]
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return "\n".join(lines)


def variables_table() -> str:
    from boostr import env

    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for v in env.VARIABLES:
        meaning = v.help.replace("|", "&#124;")
        lines.append(f"| `{v.name}` | `{v.default}` | {meaning} |")
    return "\n".join(lines)


def models_table() -> str:
    from boostr.models.traits import all_traits

    lines = ["| `model_type` | for | GGUF | what it is |", "|---|---|---|---|"]
    rows = (
        f"| `{t.model_type}` | {t.kind} | {', '.join(t.gguf) or '–'} | {t.about} |"
        for t in all_traits()
    )
    return "\n".join([*lines, *rows])


def traits_table() -> str:
    from boostr.models.traits import all_traits

    names = ("block", "positions", "windows", "mlp", "head", "state")
    lines = [f"| `model_type` | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for t in all_traits():
        cells = " | ".join(getattr(t, name) for name in names)
        lines.append(f"| `{t.model_type}` | {cells} |")
    return "\n".join(lines)


def wrappers_table() -> str:
    from boostr.models.traits import text_parts

    lines = ["| `model_type` | its text part is a |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{n}` | `{text}` |" for n, text in text_parts().items())])


TABLES = {
    "coverage": coverage_table,
    "variables": variables_table,
    "models": models_table,
    "traits": traits_table,
    "wrappers": wrappers_table,
}


def with_tables(text: str) -> str:
    """The page with its generated tables as they should be."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.S)
        if pattern.search(text):
            table = make()
            text = pattern.sub(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text)
    return text


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_tables_are_current(page):
    pytest.importorskip("numba", reason="the table tells what has a kernel, which needs numba")
    assert with_tables(page.read_text()) == page.read_text(), "run: python tests/test_docs.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A BOOSTR_CACHE that has the default model, so that pages run without a network."""
    import real_models

    from boostr import env
    from boostr.io import wheel_model

    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").mkdir()
    shutil.copyfile(real_models.smollm2(), folder / "models" / wheel_model.GGUF_NAME)
    kernels = env.cache_dir() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels)  # compiled already: saves minutes
    return folder


@pytest.fixture
def with_cache(cache, monkeypatch):
    monkeypatch.setenv("BOOSTR_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


ADDED = "adding.md"  # its blocks are files: see test_adding.py
WITH_PYTHON = [p for p in PAGES if blocks(p, "python") and p.name != ADDED]
WITH_COMMANDS = [p for p in PAGES if commands(p)]


@pytest.mark.filterwarnings("ignore:.*a second time")  # the default model here is a Q4_1 file
@pytest.mark.parametrize("page", WITH_PYTHON, ids=[p.name for p in WITH_PYTHON])
def test_python_blocks_run(page, with_cache, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    scope: dict = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), scope)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=[p.name for p in WITH_COMMANDS])
def test_commands_run(page, with_cache, tmp_path):
    import real_models

    (tmp_path / "MiniLM").symlink_to(real_models.minilm())
    (tmp_path / "model.gguf").symlink_to(real_models.smollm2())
    (tmp_path / "book.txt").symlink_to(ROOT / "tests" / "data" / "lcet10.txt")
    for line in commands(page):
        line = re.sub(r"(^|\| )boostr ", rf"\1{sys.executable} -m boostr ", line)
        run = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, f"{line}\n{run.stderr}"


def run_example(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_example_semantic_search(tmp_path):
    import real_models

    sentences = tmp_path / "sentences.txt"
    sentences.write_text("Cats sleep all day.\nThe train was late.\nBread needs flour and water.\n")
    folder = str(real_models.minilm())
    first = run_example("semantic_search.py", folder, "How do I bake?", str(sentences))[0]
    assert first.endswith("Bread needs flour and water.")


def test_example_classify(with_cache):
    lines = run_example("classify.py", "I loved every minute of it.", "positive", "negative")
    scores = {line.split()[0]: float(line.split()[1]) for line in lines}
    assert scores["positive"] > scores["negative"]


def test_example_tiny_shakespeare(monkeypatch):
    """Few steps, of which none is a line by itself; the text that is written goes to the end."""
    monkeypatch.setenv("BOOSTR_BACKEND", "numpy")
    lines = run_example("tiny_shakespeare.py", "12")
    assert lines[0] == "836736 parameters on numpy, 15472 bytes of text"
    found = re.fullmatch(r" +12 loss (\S+)  held out (\S+)  \d+ s", lines[1])
    assert found and float(found[1]) < 4 and float(found[2]) < 4  # log 256 is 5.5
    assert lines[2].startswith("When I ")


def test_example_embeddings(monkeypatch):
    """A step; what is learned in more of them is in docs/training.md."""
    import real_models

    monkeypatch.setenv("BOOSTR_BACKEND", "numpy")
    first, last = run_example("embeddings.py", str(real_models.minilm()), "1")
    assert first.startswith("before: ") and first.endswith("of 200 held out are found")
    assert re.fullmatch(r"after:  \d+\.\d%", last)


def test_example_sft(with_cache, tmp_path):
    """The keys are known, the data fit, and what counts are the answers."""
    import real_models

    config = ROOT / "examples" / "sft.toml"
    command = (sys.executable, "-m", "boostr", "train", str(real_models.smollm2()), "--config",
               str(config), "--backend", "numpy", "--dry-run")  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "64 samples" in done.stderr and "14 steps of 512 tokens" in done.stderr
    assert done.stdout.count("<|im_start|>assistant\nIn short: ") > 5


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
