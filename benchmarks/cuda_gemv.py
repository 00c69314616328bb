"""Products of a few rows with a weight on a CUDA device, as a decode step runs them.

    python benchmarks/cuda_gemv.py [--rows 1] [--forms bfloat16,int8] [--shapes 0,2]
        [--no-torch]

Each shape runs over as many matrices as fill three L2 caches, in a CUDA graph; random data. Beside
us: torch's `F.linear` in bf16, also in a graph. "floor" is the share of a copy's speed,
in bytes of weights.
"""

import argparse
import sys
from pathlib import Path

import cupy
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from cuda_timing import copy_bytes, graph_time_us, rotation, table, terabytes, torch_graph_time_us

from boostr import Tensor, backends
from boostr.backends.cupy.products import gemv
from boostr.quant.scheme import SCHEMES, QuantizedTensor

# (out, in): 8B gate or up, down, o; 1B qkv, o, gate or up, down; 8B head; 135M head, up, down
SHAPES = (
    (14336, 4096), (4096, 14336), (4096, 4096), (3072, 2048), (2048, 2048), (8192, 2048),
    (2048, 8192), (128256, 4096), (49152, 576), (1536, 576), (576, 1536),
)  # fmt: skip
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FORMS = (
    "bfloat16,int8,int8-g32,int4-g128,int4-g32,nf4,fp8,q8_0,q6_k,q5_0,q5_k,q4_k,q3_k,q2_k,mxfp4,"
    "w8a8"
)
LEAST_CALLS = 24  # so that starting the graph counts for little


def random_weight(backend, form: str, N: int, K: int):
    """A weight of random bytes whose floats are ordinary numbers."""

    def tensor(a):
        return Tensor.wrap(a, backend)

    if form in FLOATS:
        w = (cupy.random.rand(N, K, dtype=np.float32) - 0.5).astype(FLOATS[form])
        return tensor(w)
    scheme, parts = SCHEMES[form], {}
    for name, part in scheme.parts.items():
        shape = (N, part.columns(K))
        if part.dtype.kind in "iu":
            made = cupy.random.randint(0, 127, shape).astype(np.uint8)  # above are nans
            made = made.view(part.dtype)
        else:
            made = cupy.random.rand(*shape, dtype=np.float32).astype(part.dtype)
        parts[name] = tensor(made)
    return QuantizedTensor(scheme, (N, K), parts)


def measure_ours(backend, form: str, M: int, N: int, K: int) -> tuple[float, int]:
    """(microseconds, bytes of the weight)."""
    first = random_weight(backend, form, N, K)
    count = rotation(first.nbytes)
    weights = [first, *(random_weight(backend, form, N, K) for _ in range(count - 1))]
    x = cupy.random.rand(M, K, dtype=np.float32).astype(ml_dtypes.bfloat16)
    calls = [lambda w=w: gemv.gemv(backend, x, w) for w in weights]
    calls *= -(-LEAST_CALLS // len(calls))
    with backend.constant_weights():  # as a decode step: the next weights are fetched early
        return graph_time_us(calls), first.nbytes


def measure_torch(M: int, N: int, K: int) -> float:
    import torch

    count = rotation(2 * N * K)
    weights = [torch.randn(N, K, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
    calls = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
    calls *= -(-LEAST_CALLS // len(calls))
    return torch_graph_time_us(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--shapes", help="numbers of SHAPES; all by default")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    backend = backends.get("cupy")
    forms = options.forms.split(",")
    head = [f"{options.rows} row(s) x", *(f"{f}: us, TB/s, floor" for f in forms)]
    if not options.no_torch:
        head += ["torch bf16 us", "ours / torch"]
    rows = []
    chosen = map(int, options.shapes.split(",")) if options.shapes else range(len(SHAPES))
    for N, K in (SHAPES[i] for i in chosen):
        row: list = [f"{N}x{K}"]
        peer = None if options.no_torch else measure_torch(options.rows, N, K)
        for form in forms:
            if form in SCHEMES and K % SCHEMES[form].multiple:
                row.append("")
                continue
            us, nbytes = measure_ours(backend, form, options.rows, N, K)
            speed = terabytes(nbytes, us)
            row.append(f"{us:.1f}, {speed:.2f}, {1e12 * speed / copy_bytes():.0%}")
            if form == forms[0]:
                first = us
        if peer is not None:
            row += [peer, f"{peer / first:.2f}x"]
        rows.append(row)
        cupy.get_default_memory_pool().free_all_blocks()
    print(table(head, rows))


if __name__ == "__main__":
    main()
