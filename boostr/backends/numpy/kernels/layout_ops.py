"""Sizes that launches and kernels must agree on; imports no numba, as `layout.py`."""

CHUNK = 512  # elements of a row that are one item of an elementwise kernel
