"""Sixteen numbers at a time in numba: a vector type and the few operations the row kernels need.

numba vectorises loops only when it can prove that nothing aliases, which fails for short loops over buffers. These
intrinsics emit LLVM's generic vectors instead, which every target accepts: one register of 16 float32 with
AVX-512, two or four on smaller machines.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features, llvm_version_info
from numba import njit
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

WIDTH = 16


class Vector(types.Type):
    """WIDTH numbers of one type."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):  # type: ignore[no-untyped-def]
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, WIDTH))


def _ordered(builder, op, left, right):  # type: ignore[no-untyped-def]
    """Compare two vectors of integers or floats."""
    if isinstance(left.type.element, ir.IntType):
        return builder.icmp_signed(op, left, right)
    return builder.fcmp_ordered(op, left, right)


def _splat(builder, scalar):  # type: ignore[no-untyped-def]
    vector_type = ir.VectorType(scalar.type, WIDTH)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), zeros)


def _pointer(context, builder, array_type, array, index):  # type: ignore[no-untyped-def]
    """Address of array[index] of a contiguous 1-D array, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    element = builder.gep(data, [index])
    return builder.bitcast(element, ir.VectorType(data.type.pointee, WIDTH).as_pointer())


@intrinsic
def load(typingctx, array, index):  # type: ignore[no-untyped-def]
    """array[index : index + WIDTH]."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value = builder.load(_pointer(context, builder, signature.args[0], *args))
        value.align = signature.args[0].dtype.bitwidth // 8
        return value

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, vector):  # type: ignore[no-untyped-def]
    """array[index : index + WIDTH] = vector."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        instruction = builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1]))
        instruction.align = signature.args[0].dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def splat(typingctx, scalar):  # type: ignore[no-untyped-def]
    """The same number everywhere."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0])

    return Vector(scalar)(scalar), codegen


@intrinsic
def add(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Element by element, left + right."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        is_int = isinstance(signature.return_type.dtype, types.Integer)
        return (builder.add if is_int else builder.fadd)(*args)

    return left(left, right), codegen


@intrinsic
def larger(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Element by element, the larger number."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.select(_ordered(builder, ">", *args), *args)

    return left(left, right), codegen


@intrinsic
def finite_size(typingctx, vector):  # type: ignore[no-untyped-def]
    """Element by element, the absolute value; 0 for an infinite one."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        vector_type = args[0].type
        name = f"llvm.fabs.v{WIDTH}f{signature.args[0].dtype.bitwidth}"
        fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector_type, [vector_type]), name)
        size = builder.call(fabs, (args[0],))
        finite = builder.fcmp_ordered("<", size, ir.Constant(vector_type, [np.inf] * WIDTH))
        return builder.select(finite, size, ir.Constant(vector_type, [0.0] * WIDTH))

    return vector(vector), codegen


@intrinsic
def smaller_if(typingctx, least, vector, rank, limit):  # type: ignore[no-untyped-def]
    """Where rank <= limit, the smaller of `least` and `vector`; elsewhere `least`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        low, value, ranks, most = args
        wanted = builder.icmp_signed("<=", ranks, _splat(builder, builder.trunc(most, ir.IntType(32))))
        return builder.select(builder.and_(wanted, _ordered(builder, "<", value, low)), value, low)

    return least(least, vector, rank, types.int64), codegen


@intrinsic
def no_ranks(typingctx):  # type: ignore[no-untyped-def]
    """Ranks of 0."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)

    return Vector(types.int32)(), codegen


@intrinsic
def rank_against(typingctx, rank, vector, pivot):  # type: ignore[no-untyped-def]
    """Raise the rank of every element that `pivot` exceeds by one."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        ranks, value, scalar = args
        exceeded = _ordered(builder, "<", value, _splat(builder, scalar))
        return builder.sub(ranks, builder.sext(exceeded, ranks.type))

    return rank(rank, vector, pivot), codegen


@intrinsic
def least_element(typingctx, vector):  # type: ignore[no-untyped-def]
    """The smallest of the WIDTH numbers."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        (value,) = args
        half = WIDTH // 2
        while half:
            order = [(n + half) % WIDTH for n in range(WIDTH)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), order)
            turned = builder.shuffle_vector(value, value, mask)
            value = builder.select(_ordered(builder, "<", value, turned), value, turned)
            half //= 2
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), codegen


@intrinsic
def at_least(typingctx, vector, bound):  # type: ignore[no-untyped-def]
    """Bit n of the result says whether element n is >= bound."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        mask = _ordered(builder, ">=", args[0], _splat(builder, args[1]))
        return builder.zext(builder.bitcast(mask, ir.IntType(WIDTH)), ir.IntType(64))

    return types.uint64(vector, bound), codegen


@intrinsic
def lowest_bit(typingctx, bits):  # type: ignore[no-untyped-def]
    """Index of the lowest bit that is set; `bits` is not 0."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def compress_chosen(typingctx, array, first, bits, indices, values, count):  # type: ignore[no-untyped-def]
    """`append_chosen` without branches, by an instruction of AVX-512."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        source, base, word, index_array, value_array, start = args
        value_bits = signature.args[0].dtype.bitwidth
        here = builder.load(_pointer(context, builder, signature.args[0], source, base))
        here.align = value_bits // 8
        steps = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), list(range(WIDTH)))
        numbers = builder.add(_splat(builder, builder.trunc(base, ir.IntType(32))), steps)
        mask_type = ir.VectorType(ir.IntType(1), WIDTH)
        mask = builder.bitcast(builder.trunc(word, ir.IntType(WIDTH)), mask_type)
        _store_packed(context, builder, signature.args[3], index_array, start, numbers, mask, word)
        _store_packed(context, builder, signature.args[4], value_array, start, here, mask, word)
        return builder.add(start, builder.ctpop(word))

    return types.int64(array, types.int64, types.uint64, indices, values, types.int64), codegen


def _store_packed(context, builder, array_type, array, start, vector, mask, word):  # type: ignore[no-untyped-def]
    """Store the masked elements of a vector side by side, register by register (wider compression crashes LLVM)."""
    bitwidth = array_type.dtype.bitwidth
    lanes = min(WIDTH, 512 // bitwidth)
    kind = "i" if isinstance(array_type.dtype, types.Integer) else "f"
    name = f"llvm.experimental.vector.compress.v{lanes}{kind}{bitwidth}"
    for first in range(0, WIDTH, lanes):
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(first, first + lanes)))
        part = builder.shuffle_vector(vector, vector, order)
        chosen = builder.shuffle_vector(mask, mask, order)
        function_type = ir.FunctionType(part.type, [part.type, chosen.type, part.type])
        compress = cgutils.get_or_insert_function(builder.module, function_type, name)
        before = builder.ctpop(builder.and_(word, ir.Constant(word.type, (1 << first) - 1)))
        data = context.make_array(array_type)(context, builder, array).data
        element = builder.gep(data, [builder.add(start, before)])
        instruction = builder.store(
            builder.call(compress, (part, chosen, part)), builder.bitcast(element, part.type.as_pointer())
        )
        instruction.align = bitwidth // 8


@njit(cache=True, nogil=True, error_model="numpy")
def loop_chosen(array, first, bits, indices, values, count):  # type: ignore[no-untyped-def]
    """`append_chosen` for every machine."""
    while bits != np.uint64(0):
        index = first + lowest_bit(bits)
        indices[count] = index
        values[count] = array[index]
        bits &= bits - np.uint64(1)
        count += 1
    return count


HAS_COMPRESS = llvm_version_info[0] >= 20 and get_host_cpu_features().get("avx512f", False)
append_chosen = compress_chosen if HAS_COMPRESS else loop_chosen
"""append_chosen(array, first, bits, indices, values, count): for every set bit n of `bits`, append first + n to the
first `count` of the int32 `indices`, and array[first + n] to `values`; the new count. Both need room for WIDTH more."""


@intrinsic
def to_grid(typingctx, vector, per_unit, forbidden):  # type: ignore[no-untyped-def]
    """Integers nearest to vector * per_unit; `forbidden` where the vector is -inf."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        scaled, whole = _scaled(builder, args[0], args[1])
        allowed = builder.fcmp_ordered(">", scaled, ir.Constant(scaled.type, [-np.inf] * WIDTH))
        safe = builder.select(allowed, whole, ir.Constant(scaled.type, [0.0] * WIDTH))
        integers = builder.fptosi(safe, ir.VectorType(ir.IntType(64), WIDTH))
        return builder.select(allowed, integers, _splat(builder, args[2]))

    return Vector(types.int64)(vector, types.float64, types.int64), codegen


@intrinsic
def off_grid(typingctx, vector, per_unit):  # type: ignore[no-untyped-def]
    """Bit n of the result says whether element n times per_unit is not a whole number."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        scaled, whole = _scaled(builder, *args)
        mask = builder.fcmp_ordered("!=", scaled, whole)
        return builder.zext(builder.bitcast(mask, ir.IntType(WIDTH)), ir.IntType(64))

    return types.uint64(vector, types.float64), codegen


def _scaled(builder, vector, per_unit):  # type: ignore[no-untyped-def]
    """Return vector * per_unit in float64, exact since per_unit is a power of two; and the same rounded to integers."""
    double = ir.VectorType(ir.DoubleType(), WIDTH)
    wide = vector if vector.type == double else builder.fpext(vector, double)
    scaled = builder.fmul(wide, _splat(builder, per_unit))
    name = f"llvm.rint.v{WIDTH}f64"
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(double, [double]), name)
    return scaled, builder.call(rint, (scaled,))
