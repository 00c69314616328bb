"""Cross entropy and AdamW on one GPU: boostr, torch and torch.compile in one run.

    python benchmarks/cuda_training_ops.py [cross-entropy] [adamw] [--no-compile]

Bytes counted: cross entropy forward reads the logits, backward reads them and writes as many;
AdamW reads gradient and state and writes state and parameter (28 bytes an element in both layouts).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import cuda_timing as timing
import cupy
import numpy as np

import boostr
from boostr import Tensor, autograd, backends, ops

CROSS_ENTROPY = [(8192, 49152), (8192, 128256), (2048, 128256), (512, 32000)]


def shapes_135m() -> list[tuple[int, ...]]:
    """SmolLM2-135M: 272 tensors, 134.5 M elements."""
    layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    return [(49152, 576), *(s for _ in range(30) for s in [*layer, (576,), (576,)]), (576,)]


def shapes_1b() -> list[tuple[int, ...]]:
    """Llama-3.2-1B: 146 tensors, 1.24 G elements."""
    layer = [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048)]
    rest = [(2048, 8192), (2048,), (2048,)]
    return [(128256, 2048), *(s for _ in range(16) for s in [*layer, *rest]), (2048,)]


@cache
def device() -> Any:
    return backends.get("cupy")


def free() -> None:
    """Give memory back, so that both libraries find it."""
    import torch

    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def random(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Tensor:
    """Normal numbers on the device."""
    made = cupy.random.standard_normal(shape, dtype=cupy.float32) * cupy.float32(scale)
    return Tensor.wrap(made.astype(boostr.dtypes.parse(dtype)), device())


def as_torch(x: Tensor) -> Any:
    """The same memory as a torch tensor."""
    import torch

    if x.dtype == boostr.dtypes.bfloat16:
        return torch.from_dlpack(x.data.view(cupy.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x.data)


# -- cross entropy ---------------------------------------------------------------------------------
def our_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Microseconds of forward, and of forward and backward."""
    logits.requires_grad = True

    def both() -> Any:
        return autograd.gradients(ops.cross_entropy(logits, targets), [logits])

    def forward() -> Any:
        with autograd.no_grad():
            return ops.cross_entropy(logits, targets)

    return timing.graph_time_us([forward] * 4, 8), timing.graph_time_us([both] * 2, 8)


def torch_cross_entropy(logits: Any, targets: Any, compiled: bool) -> tuple[float, float]:
    """The same of torch; compiled: in float32, as ours; eager in the logits' dtype."""
    import torch

    leaf = logits.detach().requires_grad_()

    def loss(x: Any) -> Any:
        return torch.nn.functional.cross_entropy(x.float() if compiled else x, targets)

    run = torch.compile(loss, dynamic=False) if compiled else loss

    def both() -> Any:
        return torch.autograd.grad(run(leaf), leaf)

    def forward() -> Any:
        with torch.no_grad():
            return run(leaf)

    return timing.torch_time_us(forward, 8), timing.torch_time_us(both, 8)


def cross_entropy_rows(shapes: list[tuple[int, int]], compiled: bool = True) -> Iterator[list]:
    """A row for each shape and peer."""
    for T, V in shapes:
        x = random((T, V), "bfloat16", 3.0)
        targets = Tensor.wrap(cupy.random.randint(0, V, T).astype(cupy.int64), device())
        ours = our_cross_entropy(x, targets)
        peers = [("torch", False)] + ([("torch.compile", True)] if compiled else [])
        found = {"boostr": ours}
        for name, flag in peers:
            free()
            found[name] = torch_cross_entropy(as_torch(x), as_torch(targets), flag)
        for name, (forward, both) in found.items():
            nbytes = 2.0 * T * V
            yield [
                f"{T} x {V}", name, forward, 100 * nbytes / timing.copy_bytes() / forward * 1e6,
                both, 100 * 3 * nbytes / timing.copy_bytes() / both * 1e6,
                forward / ours[0], both / ours[1],
            ]  # fmt: skip
        del x
        free()


# -- AdamW -----------------------------------------------------------------------------------------
def our_adamw(shapes: list[tuple[int, ...]], mixed: bool) -> float:
    """Microseconds of a step; mixed: bf16 parameters and gradients with a float32 master."""
    kind = "bfloat16" if mixed else "float32"
    params, grads = ([random(s, kind, 0.02) for s in shapes] for _ in range(2))
    m, v = ([Tensor.wrap(cupy.zeros(s, cupy.float32), device()) for s in shapes] for _ in range(2))
    masters = [p.to("float32") for p in params] if mixed else None
    step = Tensor(np.ones(1, np.int32), backend=device())
    lr = Tensor(np.full(1, 1e-4, np.float32), backend=device())
    return timing.graph_time_us(
        [lambda: ops.adamw_step(params, grads, m, v, step, lr=lr, masters=masters)] * 2, 5
    )


def torch_fused_adamw(shapes: list[tuple[int, ...]]) -> float:
    """torch.optim.AdamW(fused=True) on float32 parameters: the layout of `mixed=False`."""
    import torch

    params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    return timing.torch_time_us(optimizer.step, 5, 2)


def compiled_adamw(n: int) -> float:
    """torch.compile of the mixed step on one flat parameter of n elements."""
    import torch

    def kinds(dtype: Any) -> Any:
        return torch.randn(n, device="cuda", dtype=dtype)

    state = [kinds(torch.bfloat16), kinds(torch.bfloat16)]
    state += [kinds(torch.float32), kinds(torch.float32).abs_(), kinds(torch.float32)]

    def step(p: Any, g: Any, m: Any, v: Any, master: Any, t: Any) -> None:
        g = g.float()
        m.lerp_(g, 0.1)
        v.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (v / (1 - 0.999**t)).sqrt_().add_(1e-8)
        master.mul_(1 - 1e-4 * 0.01).sub_(1e-4 / (1 - 0.9**t) * m / root)
        p.copy_(master)

    run, t = torch.compile(step, dynamic=False), torch.ones((), device="cuda")
    return timing.torch_time_us(lambda: run(*state, t), 5, 2)


def adamw_rows(compiled: bool = True) -> Iterator[list]:
    """A row for each model, layout and library."""
    for name, shapes in (("135M", shapes_135m()), ("1.24B", shapes_1b())):
        count = sum(int(np.prod(s)) for s in shapes)
        timed: list[tuple[str, str, Callable[[], float]]] = [
            ("float32", "boostr", partial(our_adamw, shapes, False)),
            ("float32", "torch fused", partial(torch_fused_adamw, shapes)),
            ("bf16 + master", "boostr", partial(our_adamw, shapes, True)),
        ]
        if compiled:
            timed.append(("bf16 + master", "torch.compile, flat", partial(compiled_adamw, count)))
        ours = 0.0
        for layout, library, run in timed:
            free()
            time = run()
            ours = time if library == "boostr" else ours
            share = 100 * 28.0 * count / timing.copy_bytes() / time * 1e6
            yield [name, layout, library, time, share, time / ours]
        free()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", default=["cross-entropy", "adamw"])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    compiled = not options.no_compile
    if "cross-entropy" in options.subjects:
        head = ["T x V, bf16", "library", "forward, us", "% of a copy", "with backward, us"]
        head += ["% of a copy", "boostr is faster by", "with backward"]
        print(timing.table(head, cross_entropy_rows(CROSS_ENTROPY, compiled)), "\n")
    if "adamw" in options.subjects:
        head = ["elements", "layout", "library", "us", "% of a copy", "boostr is faster by"]
        print(timing.table(head, adamw_rows(compiled)))


if __name__ == "__main__":
    main()
