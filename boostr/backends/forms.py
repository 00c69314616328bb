"""Which forms of weights the kernels of each backend read; needs no device."""

from __future__ import annotations

import importlib
import importlib.util

from boostr.quant.forms import Form

_MODULES = {
    "numpy": "boostr.backends.numpy.products.planes",
    "wgpu": "boostr.backends.wgpu.products.planes",
    "cupy": "boostr.backends.cupy.products.stored",
}


def form_refusal(backend: str, form: Form) -> str | None:
    """Why no kernel of a backend multiplies by weights of a form; None if they do."""
    if backend == "numpy" and importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    return importlib.import_module(_MODULES[backend]).form_refusal(form)
