"""The device: driver, compiler, kernels from CUDA C++, programs."""
