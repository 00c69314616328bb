"""The kernel of an op on this backend."""

from boostr.backends.kernel_table import finder

find_kernel = finder("wgpu")
