"""The CPU kernels compiled for narrower vectors than this machine's: 8 lanes (AVX2) and 4."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
from boostr.backends.numpy.runtime import jit

HERE = Path(__file__).parent
SELECTION = ("rms_norm and 37", "rope and 80", "swiglu", "softmax and 37", "embedding_blocks",
             "penalize", "sample and 1000", "argmax", "odd-everything", "decode_rows and 80",
             "captured_lengths", "everything", "int8_gemm", "products and int5-floors",
             "products and int8-zeros", "products and int3-supers", "products and fp4-e4m3",
             "products and nf4", "products and e4m3-e8m0", "every_bit and int2-floors",
             "gradient and narrow-values", "products and 33-1300", "norm and 37-False-33",
             "gradients and activation and 37-", "adamw_of_many",
             "cross_entropy and shape3")  # fmt: skip
RUN = """
import sys
import pytest
from boostr.backends.numpy.runtime import jit
jit.use_target("haswell", sys.argv[1])
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", sys.argv[2], *sys.argv[3:]]))
"""


@pytest.mark.parametrize(
    ("lanes", "features"), ((8, "+avx2,+fma,+f16c"), (4, "+sse2,+avx,+fma,+f16c"))
)
def test_narrower_vectors(lanes, features):
    here = jit.target()
    if not (here.has("avx2") and here.has("fma")):
        pytest.skip("this processor has no AVX2 with FMA")
    if lanes == here.lanes and not here.dots_bytes:
        pytest.skip("this processor's own kernels are these")
    off = "-avx512f" if lanes == 8 else "-avx512f,-avx2"
    assert jit.Target("haswell", f"{features},{off}").lanes == lanes
    chosen = " or ".join(f"({part})" for part in SELECTION)
    names = ("kernels", "attention", "int8_gemm", "schemes", "gradients", "attention_backward")
    files = [str(path) for name in names for path in HERE.rglob(f"test_numpy_{name}.py")]
    command = [sys.executable, "-c", RUN, f"{features},{off}", chosen, *files]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
