"""`import boostr` is light: what it must not import, and how long it may take."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("numba", "llvmlite", "wgpu", "cupy", "torch", "transformers", "tokenizers", "jinja2",
         "huggingface_hub", "scipy")  # fmt: skip
# seconds of a processor, whatever else runs: of the specification, so the one limit among tests
LIMIT = 0.4
TIMED = (
    "import time; start = time.process_time(); import boostr; print(time.process_time() - start)"
)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_imports_nothing_heavy():
    found = python(f"import sys, boostr; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert found == ""


def test_import_time():
    assert min(float(python(TIMED)) for _ in range(5)) < LIMIT


def test_lazy_names_are_listed():
    assert python("import boostr; print({'load', 'SamplingOptions'} <= {*dir(boostr)})") == "True"


def test_names_stay_what_they_are_when_all_modules_are_there():
    every = "{name: getattr(boostr, name) for name in boostr._LAZY}"
    said = python(f"import boostr; first, then = {every}, {every}; print(first == then)")
    assert said == "True"


def test_tensors_are_computed_with_before_anything_else_is_used():
    code = "import boostr; print((boostr.Tensor([3.0], backend='numpy') * 2).numpy())"
    assert python(code) == "[6.]"


def test_numpy_comes_with_the_first_use():
    loaded = "'numpy' in sys.modules"
    said = python(f"import sys, boostr; print({loaded}, boostr.ops and {loaded})")
    assert said == "False True"


def test_version():
    assert python("import boostr; print(boostr.__version__)").count(".") == 2
