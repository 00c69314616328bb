"""The native CPU kernels of the numpy backend, and how to write one.

A kernel is a Python function `kernel(params, start, stop)` that numba compiles to

    void f(int64 *params, int64 start, int64 stop)

`params` holds addresses, sizes and strides as int64 (a float as `jit.float_bits`); `start..stop` is
the part of the work, in items of the kernel's choice (rows, heads, tokens), that this call shall
do. The function lies in a factory of `kernels/<room>/<family>.py`; the factory's arguments are
compile-time constants.

    # kernels/rows/norm.py                      y = x / sqrt(mean(x**2) + eps) * weight
    from boostr.backends.numpy.kernels.runtime.memory import f32, float_param, load, load_n, store_n
    from boostr.backends.numpy.kernels.runtime.simd import LANES, fma, vector
    from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

    def rms_norm():                             # one item = one row
        def kernel(params, start, stop):
            weight, K, eps = f32(params[2]), params[3], float_param(params[4])
            for row in range(start, stop):
                x, y = f32(params[0]) + row * K, f32(params[1]) + row * K
                squares = vector(0.0)
                for k in range(0, K, LANES):
                    v = load_n(x, k, K - k)     # the lanes past K are 0
                    squares = fma(v, v, squares)
                scale = 1.0 / math.sqrt(reduce_add(squares) / K + eps)
                for k in range(0, K, LANES):
                    store_n(y, k, load_n(x, k, K - k) * scale * load_n(weight, k, K - k), K - k)

        return kernel

    # the launch, in boostr/backends/numpy/rows/norm.py
    sizes = (x.ctypes.data, y.ctypes.data, w.ctypes.data, K, jit.float_bits(eps))
    params = np.array(sizes, np.int64)
    calls = threads.Calls()
    calls.add(jit.kernel("norm.rms_norm"), params, items=T, grain=1)
    threads.pool().run(calls.freeze().records)

What is in the language: `simd.py` (vectors, arithmetic, masks, `fill`), `memory.py` (pointers,
loads, stores, prefetch, `stack`, decoding of bf16, f16, int8), `vmath.py` (sums over lanes, exp),
`weights.py` (blocks of stored weights), `tiles.py` (register tiles). `simd.inline` marks helpers.
- The threads share the items of a call evenly, in runs of consecutive items, and take them `grain`
  at a time: choose it so that a chunk takes a microsecond or more (weights: 16 to 64 KB), and order
  the items so that a run of them reads memory in order.
- `range`, `while`, `if`, integers, `math.sqrt` work as in numba. Nothing may allocate or raise: no
  arrays, no lists, no `assert`, no division of Python ints that could be by zero. `jit.py` refuses
  such a kernel.
- Float literals next to vectors become f32. Scalars alone are f64 in numba unless both sides are
  f32; wrap literals in `numba.float32(...)` where that matters.
- A tuple of vectors is the register tile: `acc = fill(4, 0.0)`, `acc = fma(w, x, acc)`. Tuples must
  keep their length; loops over their elements go by constant index.
- Masked loads (`load_n`) cost little with AVX-512 and more elsewhere: run full vectors to K - K %
  LANES and one masked step after it where speed matters.
- `BOOSTR_DEBUG=4` prints the assembly of each compiled kernel.

This file must not import numba: only what compiles may (`jit.py` imports the families when needed).
"""
