"""Native CPU kernels: compiled once with numba, kept on disk, loaded without numba afterwards.

`kernel("linear.gemv", form=Form("bf16"), columns=1)` gives the address of a native function

    void f(int64 *params, int64 start, int64 stop)

made by the factory `gemv(form=Form("bf16"), columns=1)` of `kernels/products/linear.py`. The first
time on a machine the factory's Python function goes through numba to LLVM IR, through llvmlite to
an object file, and into `<cache>/kernels/<key>`; after that the file is mapped (`kernel_files.py`,
`elf.py`), and neither numba nor LLVM nor the factory is imported. The key covers the name and
constants, the sources of all kernels, the versions and the processor. A file that is damaged is
compiled again, a cache that cannot be written costs one warning.
"""

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from boostr import env
from boostr.backends.numpy.runtime import elf, kernel_files
from boostr.errors import BackendError

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_lock = threading.RLock()
_addresses: dict[tuple, int] = {}
_alive: list = []  # LLVM's engines: their code lives as long as they do
_override: "Target | None" = None
compiled, loaded = 0, 0  # kernels compiled by this process, kernels taken from the disk
compile_seconds = 0.0
if hasattr(os, "register_at_fork"):  # a child of a process that compiles could never do so
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


@dataclass(frozen=True)
class Target:
    """The processor that kernels are compiled for."""

    cpu: str
    features: str  # LLVM's list, "+avx2,-avx512f,..."

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")

    @functools.cached_property
    def lanes(self) -> int:
        """f32 lanes of a vector register."""
        if self.has("avx512f"):
            return 16
        return 8 if self.has("avx2") else 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 32 if self.has("avx512f") or self.has("neon") else 16

    @functools.cached_property
    def tile(self) -> tuple[int, int]:
        """(rows, vectors per row) of the matrix product's register tile.

        Accumulators, one row of vectors and a spread element fill the 32 registers of AVX-512 and
        NEON, the 16 of AVX2 and SSE.
        """
        if self.has("avx512f"):
            return 14, 2
        return (12, 2) if self.has("neon") else (6, 2)

    @property
    def digit_tile(self) -> tuple[int, int]:
        """The same of the product of integer codes; where bytes meet digits, 8 words of each vector
        of columns are in registers too."""
        if not self.dots_bytes:
            return self.tile
        return (4, 2) if self.has("avx512f") or self.has("neon") else (4, 1)

    def tile_rows(self, rows: int, digits: bool) -> int:
        """The rows of a tile for a product with `rows` rows of x.

        Up to 32 rows lower tiles may leave less of the last one empty; each height is a kernel to
        compile, so there are few.
        """
        tallest = self.digit_tile[0] if digits else self.tile[0]
        heights = {4: (4, 3), 6: (6, 5, 4), 12: (12, 10, 8), 14: (14, 10, 8)}[tallest]
        return (
            tallest if rows > 32 else min(heights, key=lambda height: -(-rows // height) * height)
        )

    @property
    def converts_f16(self) -> bool:
        """Whether LLVM has an instruction for f16 -> f32; without one it would call a library."""
        return self.has("f16c") or self.has("neon")

    @property
    def shuffles_bytes(self) -> bool:
        """Whether an instruction looks up bytes in a table of 16."""
        return self.adds_pairs or self.has("neon")

    @functools.cached_property
    def int8_dot(self) -> str:
        """The instruction of the int8 product for many rows; "" where float32 is as good.

        VNNI and NEON's dot product do four times the multiplications of an f32 instruction.
        `pmaddwd` does twice as many and needs an addition, which other ports do; not so with 512
        bits on Intel, where what is left are operands of half the bytes.
        """
        if self.vnni or (self.has("avxvnni") and self.lanes == 8):
            return "dpbusd"
        if self.has("neon") and self.has("dotprod"):
            return "sdot"
        wanted = {16: "avx512bw", 8: "avx2", 4: "sse2"}[self.lanes]
        return "pmaddwd" if self.has(wanted) else ""

    @property
    def adds_pairs(self) -> bool:
        """Whether an instruction adds two products of bytes in 16 bits (`pmaddubsw`)."""
        return self.has({16: "avx512bw", 8: "avx2", 4: "ssse3"}[self.lanes])

    @property
    def dots_bytes(self) -> bool:
        """Whether an instruction adds 4 products of bytes to 32 bits."""
        return self.int8_dot in ("dpbusd", "sdot")

    @property
    def vnni(self) -> bool:
        return self.has("avx512vnni") and self.has("avx512f")


@functools.cache
def _host() -> Target:
    """This machine, as LLVM calls it; kept on disk, so that a warm start need not load LLVM."""
    name = hashlib.sha256(_cpu_lines().encode() + _version_of("llvmlite").encode()).hexdigest()
    path = kernel_files.folder() / f"target-{name[:24]}"
    found = kernel_files.read(path) if _cpu_lines() else None
    if found is not None:
        cpu, features = found.body.decode().split("\n")
    else:
        import llvmlite.binding as llvm

        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        if _cpu_lines():
            kernel_files.write(path, f"{cpu}\n{features}".encode())
    if platform.machine() in ("aarch64", "arm64"):
        features = _arm_features(cpu, features, _cpu_lines())
    return Target(cpu, features)


def _arm_features(cpu: str, features: str, cpu_lines: str) -> str:
    """LLVM's list with what it leaves out: NEON, which every aarch64 has, and the dot products.

    These not of a processor that LLVM does not know by name: numba compiles each kernel once for
    "generic" then, which has none.
    """
    known = features.split(",") if features else []
    found = ["+neon"]
    if "asimddp" in cpu_lines.split() and cpu != "generic":
        found.append("+dotprod")
    return ",".join([*known, *(feature for feature in found if feature not in known)])


def target() -> Target:
    """The processor to compile for: this one, unless a test said otherwise."""
    return _override or _host()


def use_target(cpu: str, features: str) -> None:
    """For tests: compile for a lesser processor. Must come before the first kernel."""
    global _override
    _override = Target(cpu, features)


def available() -> bool:
    """Whether kernels can be compiled here: numba is installed and BOOSTR_JIT is not 0."""
    return env.JIT.integer() != 0 and importlib.util.find_spec("numba") is not None


# ---------------------------------------------------------------- keys


@functools.cache
def _cpu_lines() -> str:
    """What the system says of the processor; empty where only LLVM can tell."""
    try:
        with open("/proc/cpuinfo") as file:
            block = file.read(8192).split("\n\n")[0]
    except OSError:
        return ""
    wanted = ("flags", "Features", "model", "CPU part", "CPU implementer", "isa")
    return "\n".join(line for line in block.splitlines() if line.startswith(wanted))


def _version_of(package: str) -> str:
    """The version file of an installed package: read, not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return "none"
    return (Path(spec.origin).parent / "_version.py").read_text()


def _kernel_folder() -> Path:
    return Path(__file__).parents[1] / "kernels"


@functools.cache
def _fingerprint() -> bytes:
    """The hash of everything but name and constants that a compiled kernel depends on."""
    digest = hashlib.sha256()
    own = [Path(__file__).parent / name for name in ("jit.py", "elf.py", "kernel_files.py")]
    for path in [*own, *sorted(_kernel_folder().rglob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("numba", "llvmlite"):
        digest.update(_version_of(package).encode())
    digest.update(f"{platform.machine()} {sys.platform} {_override}".encode())
    digest.update((_cpu_lines() or str(_host())).encode())
    return digest.digest()


def _key(name: str, constants: tuple) -> str:
    digest = hashlib.sha256(_fingerprint() + repr((name, constants)).encode())
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------- compiling and loading


@functools.cache
def _machine():
    """llvmlite's target machine for `target()`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    here = target()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=here.cpu, features=here.features, opt=3, reloc="pic", codemodel="small"
    )


def _object(function, name: str, symbol: str) -> bytes:
    """Compiles one kernel: Python function -> numba -> LLVM IR -> object file."""
    import llvmlite.binding as llvm

    from boostr.backends.numpy.kernels.runtime import build

    code = llvm.parse_assembly(build.llvm_ir(function, symbol))
    code.verify()
    _strip(code, symbol, name)
    machine = _machine()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(code, builder)
    if env.DEBUG.integer() >= 4:
        kernel_files.say(f"{name}\n{machine.emit_assembly(code)}")
    return machine.emit_object(code)


def _function(name: str, constants: tuple):
    """The Python function of a kernel, from its factory."""
    family, factory = name.split(".")
    (path,) = _kernel_folder().glob(f"*/{family}.py")
    module = importlib.import_module(f"boostr.backends.numpy.kernels.{path.parent.name}.{family}")
    return getattr(module, factory)(**dict(constants))


def _strip(code, symbol: str, name: str) -> None:
    """Makes everything but the entry private and refuses a kernel that would need Python to run."""
    for function in code.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    for variable in code.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    needed = {
        function.name
        for function in code.functions
        if function.is_declaration and not function.name.startswith("llvm.")
    }
    if needed:
        raise BackendError(f"kernel {name} is not self-contained, it calls {sorted(needed)}")


def _load(body: bytes, symbol: str) -> int:
    """The address of `symbol` in an object file, mapped into this process."""
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(body))
    engine.finalize_object()
    _alive.append(engine)
    return engine.get_function_address(symbol)


def _from_disk(path: Path, symbol: str) -> int | None:
    """The address of a stored kernel; None if there is none or it is damaged."""
    found = kernel_files.read(path)
    if found is None:
        return None
    if found.address is not None:
        return found.address
    return None if found.entry != kernel_files.OBJECT else _load(found.body, symbol)


def _obtain(name: str, constants: tuple) -> int:
    global compiled, loaded, compile_seconds
    key = _key(name, constants)
    symbol, path = f"boostr_{key}", kernel_files.folder() / key
    address = _from_disk(path, symbol)
    if address is not None:
        loaded += 1
        return address
    if compiled == 0:
        kernel_files.say(f"compiling CPU kernels for {target().cpu} (kept for later runs) ...")
    started = time.perf_counter()
    body = _object(_function(name, constants), f"{name} {dict(constants)}", symbol)
    seconds = time.perf_counter() - started
    compiled, compile_seconds = compiled + 1, compile_seconds + seconds
    if env.DEBUG.integer() >= 1:
        kernel_files.say(f"compiled {name} {dict(constants)} in {seconds:.2f} s, {len(body)} bytes")
    flat = elf.flatten(body, symbol, kernel_files.HEAD)
    kernel_files.write(path, *(flat or (body, kernel_files.OBJECT)))
    # from the file, if it could be written: what later starts run is what this one has run
    return _from_disk(path, symbol) or _load(body, symbol)


def kernel(name: str, **constants) -> int:
    """The address of a native kernel, compiled now if this machine has never done so.

    `name` is "family.factory": `kernels/<room>/<family>.py` has `factory(**constants)`, which
    returns the Python function to compile. Constants are ints, strings, bools, and tuples and
    frozen dataclasses of them.
    """
    wanted = (name, tuple(sorted(constants.items())))
    address = _addresses.get(wanted)
    if address is None:
        with _lock:
            address = _addresses.get(wanted)
            if address is None:
                address = _addresses[wanted] = _obtain(*wanted)
    return address


def from_function(function) -> int:
    """The address of a kernel given as its Python function; compiled each time, for trying out."""
    with _lock:
        return _load(_object(function, function.__name__, "boostr_trial"), "boostr_trial")


def call(address: int, params, start: int, stop: int) -> None:
    """Runs a kernel on the calling thread; `params` is an int64 array."""
    FUNCTION(address)(params.ctypes.data, start, stop)


def float_bits(value: float) -> int:
    """A float as an int64 kernel parameter; `memory.float_param` reads it."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
