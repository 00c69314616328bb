"""The compile gate: every CUDA kernel for every architecture, without a GPU. Between sm_80 and
sm_89 only instructions differ that no kernel has, so that `--large` alone compiles for all three.

NVRTC and CUDA's headers come by pip; a kernel that spills registers, or whose wgmma the assembler
serialises, fails here.
"""

import importlib
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import pytest

from boostr import env, shaders
from boostr.backends.cupy.runtime import nvrtc
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.kernel_table import OPS_OF
from boostr.errors import BackendError

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
EVERY_ARCHITECTURE = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a")
MODULES = [
    *OPS_OF, "attention.attention_combine", "attention.attention_decode",
    "attention.attention_sm90", "attention.attention_split_sm90", "products.gemv",
    "products.gemv_qkv", "rows.pointwise",
]  # fmt: skip


def variants(module: str) -> list[Variant]:
    """All that a launch module can ask for; such modules import nothing of CUDA."""
    return list(getattr(importlib.import_module(f"boostr.backends.cupy.{module}"), "VARIANTS", []))


def architectures(variant: Variant, every: bool) -> list[str]:
    if variant.only:
        return [variant.only]
    listed = EVERY_ARCHITECTURE if every else ARCHITECTURES
    return [a for a in listed if int(a[3:5]) >= variant.least]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.library()
        nvrtc.include_folder()
    except BackendError as error:
        if "nvrtc" in env.REQUIRE.text().split(","):
            pytest.fail(f"{env.REQUIRE.name} names nvrtc, which is missing: {error}")
        pytest.skip(str(error))


@pytest.mark.parametrize("module", MODULES)
def test_compiles_without_spills(module, request):
    listed, every = variants(module), request.config.getoption("--large")
    jobs = [(v, arch) for v in listed for arch in architectures(v, every)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        results = pool.map(lambda job: job[0].compile(job[1]), jobs)
        for (variant, arch), made in zip(jobs, results, strict=True):
            what = f"{variant.family} {dict(variant.defines)} {arch}"
            assert made.spilled_bytes == 0, f"{what} spills {made.spilled_bytes} bytes"
            assert not made.warnings, f"{what}: {made.warnings}"


def test_every_source_is_compiled():
    """A file that no variant names would be dead or untested."""
    named = {v.family for module in MODULES for v in variants(module)}
    files = {path.stem for room in shaders.rooms("cuda") for path in room.glob("*.cu")}
    assert files == named


def test_a_source_that_does_not_compile_says_where():
    with pytest.raises(nvrtc.CompileError, match=r"broken for sm_80 does not compile(?s:.)*line"):
        nvrtc.compile_source("__global__ void line() { undefined(); }", "sm_80", "broken")
