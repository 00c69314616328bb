"""Atomic words, pauses and calls by address: what the thread pool is written with."""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.runtime.simd import I32, I64, call, intrinsic, signature
from boostr.backends.numpy.runtime import jit


def _word(builder, pointer, index):
    offset = builder.mul(index, I64(8))
    return builder.inttoptr(builder.add(pointer, offset), ir.PointerType(I64))


def _rmw(operation: str, doc: str):
    def op(typingctx, pointer, index, value):
        def codegen(context, builder, sig, values):
            where = _word(
                builder, values[0], context.cast(builder, values[1], sig.args[1], types.int64)
            )
            number = context.cast(builder, values[2], sig.args[2], types.int64)
            return builder.atomic_rmw(operation, where, number, "seq_cst")

        return signature(types.int64, pointer, index, value), codegen

    op.__doc__ = doc
    return intrinsic(op)


fetch_add = _rmw("add", "p[i] += value at once; the old value")
exchange = _rmw("xchg", "p[i] = value at once; the old value")


def _reader(ordering: str):
    def op(typingctx, pointer, index):
        def codegen(context, builder, sig, values):
            where = _word(
                builder, values[0], context.cast(builder, values[1], sig.args[1], types.int64)
            )
            return builder.load_atomic(where, ordering, 8)

        return signature(types.int64, pointer, index), codegen

    op.__doc__ = f"p[i], read with {ordering} order"
    return intrinsic(op)


read, read_relaxed = _reader("seq_cst"), _reader("monotonic")


@intrinsic
def write(typingctx, pointer, index, value):
    """p[i] = value; everything written before it is seen by who reads it."""

    def codegen(context, builder, sig, values):
        where = _word(
            builder, values[0], context.cast(builder, values[1], sig.args[1], types.int64)
        )
        number = context.cast(builder, values[2], sig.args[2], types.int64)
        builder.store_atomic(number, where, "release", 8)
        return context.get_dummy_value()

    return signature(types.none, pointer, index, value), codegen


@intrinsic
def pause(typingctx):
    """Tells the core that this is a spin loop."""

    def codegen(context, builder, sig, values):
        here = jit.target()
        if here.has("sse2"):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif here.has("neon"):
            call(builder, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])
        return context.get_dummy_value()

    return signature(types.none), codegen


@intrinsic
def invoke(typingctx, address, params, start, stop):
    """Calls the kernel at `address`."""

    def codegen(context, builder, sig, values):
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return signature(types.none, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def invoke_plain(typingctx, address):
    """Calls an `int f(void)`, such as sched_yield, at `address`."""

    def codegen(context, builder, sig, values):
        kind = ir.FunctionType(I32, [])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return signature(types.none, types.int64), codegen
