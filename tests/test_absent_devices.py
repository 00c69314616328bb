"""What a run says of tests whose device is not there: one skip a file, or a failure if required."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1"}  # no machine has a GPU then
FILES = (
    "tests/backends/sampling/test_gpu_sampling.py",
    "tests/backends/products/test_gpu_quant.py",
)


def run(required: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | HIDDEN | {"BOOSTR_REQUIRE": required}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cupy", *FILES]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_one_skip_a_file():
    done = run("")
    assert done.returncode == 0, done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(shown) == len(FILES) and all("cupy: " in line for line in shown)
    assert "tests did not run: cupy: " in done.stdout and "2 skipped" in done.stdout


def test_a_required_device_that_is_not_there_fails():
    done = run("numpy,cupy")
    assert done.returncode == 1 and "BOOSTR_REQUIRE names cupy" in done.stdout
    assert "skipped" not in done.stdout and "deselected" in done.stdout
