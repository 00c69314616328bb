"""The compile gate: every WGSL kernel for GPUs with all features and with none, by two compilers.

naga (wgpu) lets some errors pass, above all barriers in control flow that is not uniform; Tint
(wgpudawn) finds them. Modules alone are made here, so that the adapter's own limits do not matter.
"""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache

import pytest
from strict_wgpu import BARE

from boostr import env, shaders
from boostr.backends import wgpu as package
from boostr.backends.kernel_table import OPS_OF
from boostr.backends.wgpu.runtime import adapters, provider, wgsl
from boostr.backends.wgpu.runtime.device import Caps, open_device
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.errors import BackendError

BIG = Caps(
    "big", "any", "any", matrices=(("f16", "f32", 16, 16, 16),), f16=True,
    subgroup_min=32, subgroup_max=32, dot4=True, dot4_native=True, immediate_bytes=128,
    f32_atomics=True, workgroup_bytes=49152, workgroup_threads=1024,
)  # fmt: skip
SOFTWARE = replace(
    BIG,
    name="software",
    kind="software",
    dot4_native=False,
    subgroup_min=4,
    subgroup_max=128,
    workgroup_bytes=32768,
)
LEAST = replace(BIG, name="least", **BARE)
FEATURES = ("shader-f16", "subgroups", "chromium-experimental-subgroup-matrix")
GPUS = (BIG, SOFTWARE, LEAST)
PREFIX = "boostr.backends.wgpu."
MODULES = sorted(
    module.name.removeprefix(PREFIX) for module in pkgutil.walk_packages(package.__path__, PREFIX)
    if hasattr(importlib.import_module(module.name), "VARIANTS")
)  # fmt: skip


def variants(module: str) -> list[Variant]:
    """All that a launch module can ask for; such modules import no GPU library."""
    return importlib.import_module(PREFIX + module).VARIANTS


@cache
def device(name: str):
    """A device of the library `name`, on any adapter that has what the sources ask for."""
    if not provider.installed(name):
        return f"{name} is not installed"
    library = provider.load(name)
    if name == "wgpudawn":  # without hardware every feature is there
        null = library.null_adapter()
        return library.device(null, [f for f in FEATURES if f in null.features], {}, True)
    found = adapters.ranked(library)
    return open_device(library, found[0])[0] if found else "no adapter answers"


@pytest.fixture(params=provider.NAMES)
def compiler(request):
    found = device(request.param)
    if not isinstance(found, str):
        return request.param
    if "wgpu" in env.REQUIRE.text().split(","):
        pytest.fail(f"{env.REQUIRE.name} names wgpu, but {request.param}: {found}")
    pytest.skip(f"{request.param}: {found}")


def problems(variant: Variant, compiler: str) -> list[str]:
    """What the compiler says of a variant on each GPU that it exists for."""
    made, found = device(compiler), []
    library = provider.load(compiler)
    for gpu in GPUS:
        caps = replace(gpu, provider=compiler)
        if compiler == "wgpu":
            caps = replace(caps, matrices=())  # naga knows none
        if any(not getattr(caps, need) for need in variant.needs):
            continue
        for immediates in {caps.immediate_bytes > 0 and compiler == "wgpu", False}:
            for poison in (False, True):
                text = variant.source(caps, immediates, poison)
                try:
                    made.create_shader_module(code=text)
                except library.errors as error:
                    what = f"{variant.family} {dict(variant.values)} on {gpu.name}"
                    found.append(f"{what}, poison {poison}: {error}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_compiles(module, compiler):
    found = [text for variant in variants(module) for text in problems(variant, compiler)]
    assert not found, "\n".join(found[:3])


@pytest.mark.parametrize("module", MODULES)
def test_workgroup_memory_is_there(module):
    """No library that we use counts it, and NVIDIA's driver hung on a draw that had too much."""
    caps = replace(BIG, provider="wgpu")
    for variant in variants(module):
        needed = wgsl.shared_bytes(variant.source(caps, False, False))
        assert needed <= caps.workgroup_bytes, (variant.family, variant.values)


def test_workgroup_memory_is_counted():
    text = """alias Run = array<vec4<f32>, 2>;
    struct Found { bin: u32, at: vec2<u32>, sums: array<f32, 3> }
    var<workgroup> a: array<atomic<u32>, 8>;
    var<workgroup> b: array<Run, 4>;
    var<workgroup> c: Found;
    var<workgroup> d: array<vec3<f16>, 2>;"""
    assert wgsl.shared_bytes(text) == 32 + 128 + 24 + 16


def test_every_source_is_compiled():
    """A file that no variant names and no other includes would be dead or untested."""
    files = [path for room in shaders.rooms("wgsl") for path in room.glob("*.wgsl")]
    texts = {path.stem: path.read_text() for path in files}
    named = {v.family for module in MODULES for v in variants(module)} | {"prelude"}
    included = {name for name in texts if any(f'"{name}.wgsl"' in t for t in texts.values())}
    assert set(texts) == named | included


def test_every_kernel_module_lists_its_variants():
    """Some choose among the kernels of others."""
    choosing = {"products.linear", "products.linear_backward", "products.fusion"}
    assert set(OPS_OF) - set(MODULES) <= choosing


def test_a_source_that_does_not_compile_says_where(compiler):
    library = provider.load(compiler)
    with pytest.raises(library.errors, match="nothing"):
        device(compiler).create_shader_module(code="@compute fn f() { nothing(); }")


def test_workgroup_arrays_are_poisoned_only_on_request():
    declared = wgsl._Declarations(True, True)
    assert "array<f32, 8>" in declared.workgroup("tile", "f32", 8)
    assert "tile[i_]" in declared.poison("lane", 64)
    assert wgsl._Declarations(True, False).poison("lane", 64) == ""


def test_an_unknown_provider_is_named(monkeypatch):
    monkeypatch.setenv(env.WGPU.name, "webgl")
    with pytest.raises(BackendError, match="wgpu, wgpudawn"):
        provider.chosen()
