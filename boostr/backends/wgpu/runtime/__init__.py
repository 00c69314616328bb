"""The device: adapters, memory, commands, kernels from WGSL, programs."""
