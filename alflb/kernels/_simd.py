"""The vector layer: operations on many numbers at once that compiled loops need beyond what numba makes of loops.

Numba turns a loop into vector code only when it can prove that nothing aliases, which fails for short loops over
buffers. The operations here emit LLVM's generic vectors instead, which every processor accepts. Each stands here
twice: as LLVM code, and as its *twin*, a plain function with the same result, bit for bit, which defines what it does
and takes its place where numba is switched off.

Two kinds of vectors occur. The row loops of the exact solver keep `WIDTH` numbers in a variable (`load`, `add`, ...),
a numpy array for the twins. The allocator works on whole blocks in memory, register by register (`transpose_biased`,
`mark_hits`, ...); a register has `register_lanes` lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models, register_default
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, register_jitable
from numba.np.numpy_support import as_dtype

WIDTH = 16
"""Numbers in a vector variable: a register of float32 with AVX-512, two or four on smaller machines."""

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_HAS_AVX512 = "+avx512f" in (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES)


def register_lanes(dtype: np.dtype[Any]) -> int:
    """Numbers of this dtype in a register of the allocator.

    Without AVX-512 two real registers serve as one for float64, but not for float32: a sorting network of 16 lanes
    then needs more registers than there are.
    """
    return 16 if dtype == np.float32 and _HAS_AVX512 else 8


def in_llvm(twin: Callable[..., Any], *, literal: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorate LLVM code that does what `twin` does; where numba is switched off, the twin takes its place.

    With `literal`, numbers that stand in the calling code arrive as literal types.
    """

    def choose(typing: Callable[..., Any]) -> Any:
        return twin if config.DISABLE_JIT else intrinsic(prefer_literal=literal)(typing)

    return choose


# ------------------------------------------------------------------------------------- parts of LLVM code


def register_type(dtype):
    """The LLVM type of one full register of this numba dtype."""
    element = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(element, register_lanes(as_dtype(dtype)))


def address(context, builder, array_type, array, index, pointee):
    """Pointer to array[index] of a flat array, to be read as `pointee`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(pointee))


def load_part(builder, pointer, index, element_bytes):
    """Vector number `index` from a pointer on; elements, not vectors, are aligned."""
    return builder.load(builder.gep(pointer, [ir.Constant(_I64, index)]), align=element_bytes)


def store_parts(builder, vectors, pointer, element_bytes):
    """Store vectors one behind the other."""
    for index, vector in enumerate(vectors):
        builder.store(vector, builder.gep(pointer, [ir.Constant(_I64, index)]), align=element_bytes)


def lane_mask(lanes):
    """Constant that says which lanes a shuffle takes."""
    return ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)


def every_lane(builder, scalar, lanes):
    """A vector of equal numbers."""
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, lane_mask([0] * lanes))


def ordered(builder, op, left, right):
    """Compare two vectors of integers or floats; NaN is in no order."""
    if isinstance(left.type.element, ir.IntType):
        return builder.icmp_signed(op, left, right)
    return builder.fcmp_ordered(op, left, right)


def larger_of(builder, left, right):
    """Element by element, the larger number."""
    return builder.select(ordered(builder, ">", left, right), left, right)


def smaller_of(builder, left, right):
    """Element by element, the smaller number."""
    return builder.select(ordered(builder, "<", left, right), left, right)


def _bits_of(builder, mask):
    """The lanes of a comparison as the bits of an int64."""
    return builder.zext(builder.bitcast(mask, ir.IntType(mask.type.count)), _I64)


def _call(builder, name, result, *args):
    function = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


# ------------------------------------------------------------------------------------- bits


def _plain_count_bits(bits):
    return int(bits).bit_count()


@in_llvm(_plain_count_bits)
def count_bits(_, bits):
    """How many bits are set."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


def _plain_lowest_bit(bits):
    return (int(bits) & -int(bits)).bit_length() - 1


@in_llvm(_plain_lowest_bit)
def lowest_bit(_, bits):
    """Index of the lowest bit that is set; `bits` is not 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), codegen


def _plain_float_to_bits(x):
    return np.float32(x).view(np.int32)


@in_llvm(_plain_float_to_bits)
def float_to_bits(_, x):
    """The float32's bits as an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), codegen


def _plain_bits_to_float(bits):
    return np.int32(bits).view(np.float32)


@in_llvm(_plain_bits_to_float)
def bits_to_float(_, bits):
    """The float32 with the bits of this int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


# ------------------------------------------------------------------------------------- vector variables


class Vector(types.Type):
    """WIDTH numbers of one type."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, WIDTH))


def _vector_address(context, builder, array_type, array, index):
    element = context.make_array(array_type)(context, builder, array).data.type.pointee
    return address(context, builder, array_type, array, index, ir.VectorType(element, WIDTH))


def _plain_load(array, index):
    return array[index : index + WIDTH].copy()


@in_llvm(_plain_load)
def load(_, array, index):
    """array[index : index + WIDTH]."""

    def codegen(context, builder, signature, args):
        return load_part(builder, _vector_address(context, builder, array, *args), 0, array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), codegen


def _plain_store(array, index, vector):
    array[index : index + WIDTH] = vector


@in_llvm(_plain_store)
def store(_, array, index, vector):
    """array[index : index + WIDTH] = vector."""

    def codegen(context, builder, signature, args):
        target = _vector_address(context, builder, array, *args[:2])
        store_parts(builder, [args[2]], target, array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def _plain_splat(scalar):
    return np.full(WIDTH, scalar)


@in_llvm(_plain_splat)
def splat(_, scalar):
    """The same number everywhere."""

    def codegen(context, builder, signature, args):
        return every_lane(builder, args[0], WIDTH)

    return Vector(scalar)(scalar), codegen


def _plain_add(left, right):
    return left + right


@in_llvm(_plain_add)
def add(_, left, right):
    """Element by element, left + right."""

    def codegen(context, builder, signature, args):
        return (builder.add if isinstance(left.dtype, types.Integer) else builder.fadd)(*args)

    return left(left, right), codegen


def _plain_multiply(left, right):
    return left * right


@in_llvm(_plain_multiply)
def multiply(_, left, right):
    """Element by element, left * right; floats only."""

    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return left(left, right), codegen


def _plain_margins(vector, last_in, first_out):
    return vector - np.where(vector >= last_in, first_out, last_in)


@in_llvm(_plain_margins)
def margins(_, vector, last_in, first_out):
    """Element by element, what exceeds `first_out` if `last_in` is reached, and `last_in` if not; floats only."""

    def codegen(context, builder, signature, args):
        value, last, first = args[0], every_lane(builder, args[1], WIDTH), every_lane(builder, args[2], WIDTH)
        return builder.fsub(value, builder.select(builder.fcmp_ordered(">=", value, last), first, last))

    return vector(vector, vector.dtype, vector.dtype), codegen


def _plain_larger(left, right):
    return np.where(left > right, left, right)


@in_llvm(_plain_larger)
def larger(_, left, right):
    """Element by element, the larger number."""

    def codegen(context, builder, signature, args):
        return larger_of(builder, *args)

    return left(left, right), codegen


def _plain_finite_size(vector):
    size = np.abs(vector)
    return np.where(size < np.inf, size, vector.dtype.type(0))


@in_llvm(_plain_finite_size)
def finite_size(_, vector):
    """Element by element, the absolute value; 0 for an infinite one."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        size = _call(builder, f"llvm.fabs.v{WIDTH}f{vector.dtype.bitwidth}", kind, args[0])
        finite = builder.fcmp_ordered("<", size, ir.Constant(kind, [np.inf] * WIDTH))
        return builder.select(finite, size, ir.Constant(kind, [0.0] * WIDTH))

    return vector(vector), codegen


def _plain_smaller_if(least, vector, rank, limit):
    return np.where((rank <= limit) & (vector < least), vector, least)


@in_llvm(_plain_smaller_if)
def smaller_if(_, least, vector, rank, limit):
    """Where rank <= limit, the smaller of `least` and `vector`; elsewhere `least`."""

    def codegen(context, builder, signature, args):
        low, value, ranks, most = args
        wanted = builder.icmp_signed("<=", ranks, every_lane(builder, builder.trunc(most, _I32), WIDTH))
        return builder.select(builder.and_(wanted, ordered(builder, "<", value, low)), value, low)

    return least(least, vector, rank, types.int64), codegen


def _plain_no_ranks():
    return np.zeros(WIDTH, np.int32)


@in_llvm(_plain_no_ranks)
def no_ranks(_):
    """Ranks of 0."""

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH)

    return Vector(types.int32)(), codegen


def _plain_rank_against(rank, vector, pivot):
    return rank + (vector < pivot)


@in_llvm(_plain_rank_against)
def rank_against(_, rank, vector, pivot):
    """Raise the rank of every element that `pivot` exceeds by one."""

    def codegen(context, builder, signature, args):
        ranks, value, scalar = args
        exceeded = ordered(builder, "<", value, every_lane(builder, scalar, WIDTH))
        return builder.sub(ranks, builder.sext(exceeded, ranks.type))

    return rank(rank, vector, pivot), codegen


def _plain_least_element(vector):
    return vector.min()


@in_llvm(_plain_least_element)
def least_element(_, vector):
    """The smallest of the WIDTH numbers."""

    def codegen(context, builder, signature, args):
        value, half = args[0], WIDTH // 2
        while half:
            turned = builder.shuffle_vector(value, value, lane_mask([(n + half) % WIDTH for n in range(WIDTH)]))
            value = smaller_of(builder, value, turned)
            half //= 2
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return vector.dtype(vector), codegen


def _plain_at_least(vector, bound):
    return np.uint64(_pack(vector >= bound))


@in_llvm(_plain_at_least)
def at_least(_, vector, bound):
    """Bit n of the result says whether element n is >= bound."""

    def codegen(context, builder, signature, args):
        return _bits_of(builder, ordered(builder, ">=", args[0], every_lane(builder, args[1], WIDTH)))

    return types.uint64(vector, bound), codegen


def _plain_reaches(left, right):
    return np.uint64(_pack(left >= right))


@in_llvm(_plain_reaches)
def reaches(_, left, right):
    """Bit n of the result says whether element n of left is >= that of right."""

    def codegen(context, builder, signature, args):
        return _bits_of(builder, ordered(builder, ">=", *args))

    return types.uint64(left, right), codegen


def _plain_exceeds(left, right):
    return np.uint64(_pack(left > right))


@in_llvm(_plain_exceeds)
def exceeds(_, left, right):
    """Bit n of the result says whether element n of left is > that of right."""

    def codegen(context, builder, signature, args):
        return _bits_of(builder, ordered(builder, ">", *args))

    return types.uint64(left, right), codegen


def _plain_add_bits(array, index, bits):
    array[index : index + WIDTH] += [int(bits) >> n & 1 for n in range(WIDTH)]


@in_llvm(_plain_add_bits)
def add_bits(_, array, index, bits):
    """Add bit n to array[index + n], for n < WIDTH; the array is of int32."""
    if array.dtype != types.int32:
        return None

    def codegen(context, builder, signature, args):
        target = _vector_address(context, builder, array, *args[:2])
        mask = builder.bitcast(builder.trunc(args[2], ir.IntType(WIDTH)), ir.VectorType(_I1, WIDTH))
        counts = load_part(builder, target, 0, 4)
        store_parts(builder, [builder.sub(counts, builder.sext(mask, counts.type))], target, 4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), codegen


def _plain_off_grid(vector, per_unit):
    scaled = vector.astype(np.asarray(per_unit).dtype) * per_unit
    return np.uint64(_pack(scaled != np.rint(scaled)))


@in_llvm(_plain_off_grid)
def off_grid(_, vector, per_unit):
    """Bit n of the result says whether element n times per_unit, in the type of that, is not a whole number."""

    def codegen(context, builder, signature, args):
        numbers, factor = args
        kind = ir.VectorType(factor.type, WIDTH)
        wide = numbers if numbers.type == kind else builder.fpext(numbers, kind)
        scaled = builder.fmul(wide, every_lane(builder, factor, WIDTH))
        bits = 32 if factor.type == ir.FloatType() else 64
        whole = _call(builder, f"llvm.rint.v{WIDTH}f{bits}", kind, scaled)
        return _bits_of(builder, builder.fcmp_ordered("!=", scaled, whole))

    return types.uint64(vector, per_unit), codegen


def _pack(is_set):
    """Booleans as the bits of a whole number, the first one lowest."""
    return sum(1 << n for n in np.flatnonzero(is_set).tolist())


# ------------------------------------------------------------------------------------- appending what is chosen


@register_jitable
def _plain_append_chosen(array, first, bits, indices, values, count):
    while bits != np.uint64(0):
        index = first + lowest_bit(bits)
        indices[count] = index
        values[count] = array[index]
        bits &= bits - np.uint64(1)
        count += 1
    return count


@intrinsic
def compress_chosen(_, array, first, bits, indices, values, count):
    """`append_chosen` without branches, by an instruction of AVX-512."""

    def codegen(context, builder, signature, args):
        source, base, word, index_array, value_array, start = args
        pointer = _vector_address(context, builder, array, source, base)
        here = load_part(builder, pointer, 0, array.dtype.bitwidth // 8)
        steps = lane_mask(list(range(WIDTH)))
        numbers = builder.add(every_lane(builder, builder.trunc(base, _I32), WIDTH), steps)
        mask = builder.bitcast(builder.trunc(word, ir.IntType(WIDTH)), ir.VectorType(_I1, WIDTH))
        _store_packed(context, builder, indices, index_array, start, numbers, mask, word)
        _store_packed(context, builder, values, value_array, start, here, mask, word)
        return builder.add(start, builder.ctpop(word))

    return types.int64(array, types.int64, types.uint64, indices, values, types.int64), codegen


def _store_packed(context, builder, array_type, array, start, vector, mask, word):
    """Store the masked elements of a vector side by side, register by register (wider compression crashes LLVM)."""
    bitwidth = array_type.dtype.bitwidth
    lanes = min(WIDTH, 512 // bitwidth)
    kind = "i" if isinstance(array_type.dtype, types.Integer) else "f"
    for first in range(0, WIDTH, lanes):
        order = lane_mask(list(range(first, first + lanes)))
        part = builder.shuffle_vector(vector, vector, order)
        chosen = builder.shuffle_vector(mask, mask, order)
        before = builder.ctpop(builder.and_(word, ir.Constant(word.type, (1 << first) - 1)))
        target = address(context, builder, array_type, array, builder.add(start, before), part.type)
        packed = _call(
            builder, f"llvm.experimental.vector.compress.v{lanes}{kind}{bitwidth}", part.type, part, chosen, part
        )
        store_parts(builder, [packed], target, bitwidth // 8)


HAS_COMPRESS = llvm_version_info[0] >= 20 and _HAS_AVX512
append_chosen = compress_chosen if HAS_COMPRESS and not config.DISABLE_JIT else _plain_append_chosen
"""append_chosen(array, first, bits, indices, values, count): for every set bit n of `bits`, append first + n to the
first `count` of the int32 `indices`, and array[first + n] to `values`; the new count. Both need room for WIDTH more."""


# ------------------------------------------------------------------------------------- blocks in memory


def _plain_read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


@in_llvm(_plain_read_only)
def read_only(_, array):
    """The same numbers, not to be written to: what reads a tile is compiled once, for it and for a problem's scores."""

    def codegen(context, builder, signature, args):
        return impl_ret_borrowed(context, builder, array, args[0])

    return array.copy(readonly=True)(array), codegen


def _plain_transpose_biased(source, start, pitch, bias_P, group, groups, columns_GL):
    lanes, stride = columns_GL.size // groups, bias_P.size
    row_R1 = start + np.arange(lanes)[:, None] * pitch
    best_RG = np.full((lanes, lanes), -np.inf, columns_GL.dtype)
    for first in range(group, stride, groups):
        expert_G = np.arange(first, first + lanes)
        best_RG = _plain_larger(source[row_R1 + expert_G] + bias_P[expert_G], best_RG)
    columns_GL[group * lanes : (group + lanes) * lanes] = best_RG.T.reshape(-1)


@in_llvm(_plain_transpose_biased)
def transpose_biased(_, source, start, pitch, bias_P, group, groups, columns_GL):
    """Columns of a register of groups from `group` on, rows being `pitch` apart: maxima of score + bias."""
    register = register_type(bias_P.dtype)
    lanes, element_bytes = register.count, bias_P.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source_, start_, pitch_, bias_, group_, groups_, columns_ = args
        stride = builder.extract_value(context.make_array(bias_P)(context, builder, bias_).shape, 0)

        def biased_rows(expert):
            bias = load_part(builder, address(context, builder, bias_P, bias_, expert, register), 0, element_bytes)
            index = builder.add(start_, expert)
            for _ in range(lanes):
                row = address(context, builder, source, source_, index, register)
                yield builder.fadd(load_part(builder, row, 0, element_bytes), bias)
                index = builder.add(index, pitch_)

        slots = [cgutils.alloca_once(builder, register) for _ in range(lanes)]
        for slot, row in zip(slots, biased_rows(group_)):
            builder.store(row, slot)
        others = cgutils.for_range_slice(builder, builder.add(group_, groups_), stride, groups_, _I64)
        with others as (expert, _):
            for slot, row in zip(slots, biased_rows(expert)):
                builder.store(larger_of(builder, row, builder.load(slot)), slot)

        # A transposition is log2(lanes) rounds of interleaving row i with row i + lanes / 2.
        rows = [builder.load(slot) for slot in slots]
        half = lanes // 2
        interleaved = [i // 2 + i % 2 * lanes for i in range(lanes)]
        low, high = lane_mask(interleaved), lane_mask([i + half for i in interleaved])
        for _ in range(lanes.bit_length() - 1):
            rows = [builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in (low, high)]
        first = builder.mul(group_, ir.Constant(_I64, lanes))
        store_parts(builder, rows, address(context, builder, columns_GL, columns_, first, register), element_bytes)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, bias_P, types.intp, types.intp, columns_GL), codegen


def _plain_sum_best(best_KL, top_k, sum_L):
    sum_L[:] = 0.0
    for k in range(top_k):
        sum_L += best_KL[k * sum_L.size :][: sum_L.size]


@in_llvm(_plain_sum_best)
def sum_best(_, best_KL, top_k, sum_L):
    """Sum of the first top_k values of each lane, in float64, written to `sum_L`."""
    register = register_type(best_KL.dtype)
    wide = register_type(types.float64)
    element_bytes = best_KL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        best = address(context, builder, best_KL, args[0], ir.Constant(_I64, 0), register)
        zero = ir.Constant(wide, [0.0] * wide.count)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(register.count // wide.count)]
        with cgutils.for_range(builder, args[1]) as loop:
            values = builder.load(builder.gep(best, [loop.index]), align=element_bytes)
            for part, total in enumerate(sums):
                first = part * wide.count
                addend = builder.shuffle_vector(values, values, lane_mask(list(range(first, first + wide.count))))
                if addend.type != wide:
                    addend = builder.fpext(addend, wide)
                builder.store(builder.fadd(builder.load(total), addend), total)
        target = address(context, builder, sum_L, args[2], ir.Constant(_I64, 0), wide)
        store_parts(builder, [builder.load(total) for total in sums], target, 8)
        return context.get_dummy_value()

    return types.void(best_KL, types.intp, sum_L), codegen


def _plain_mark_hits(source, row_start, next_block, bias_P, first, tau, load_P, count):
    hit_C = source[row_start + first :][:count] + bias_P[first:][:count] >= tau
    load_P[first:][:count] += hit_C
    return np.uint64(_pack(hit_C))


@in_llvm(_plain_mark_hits, literal=True)
def mark_hits(_, source, row_start, next_block, bias_P, first, tau, load_P, count):
    """Of `count` experts from `first` on, the bits of those that reach tau; each is counted in load_P, int32."""
    if not isinstance(count, types.IntegerLiteral) or load_P.dtype != types.int32:
        return None
    register = register_type(bias_P.dtype)
    lanes, element_bytes = register.count, bias_P.dtype.bitwidth // 8
    counters = ir.VectorType(_I32, lanes)

    def codegen(context, builder, signature, args):
        source_, row_start_, next_block_, bias_, first_, tau_, load_, _ = args
        index = builder.add(row_start_, first_)
        row = address(context, builder, source, source_, index, register)
        next_row = address(context, builder, source, source_, builder.add(index, next_block_), register)
        bias = address(context, builder, bias_P, bias_, first_, register)
        load = address(context, builder, load_P, load_, first_, counters)
        bar = every_lane(builder, tau_, lanes)
        word = ir.Constant(_I64, 0)
        new_loads = []
        for part in range(count.literal_value // lanes):
            # While the core is busy here, fetch the rows it will want next.
            _prefetch(builder, builder.gep(next_row, [ir.Constant(_I64, part)]))
            score = load_part(builder, row, part, element_bytes)
            value = builder.fadd(score, load_part(builder, bias, part, element_bytes))
            hits = builder.fcmp_ordered(">=", value, bar)
            new_loads.append(builder.add(load_part(builder, load, part, 4), builder.zext(hits, counters)))
            word = builder.or_(word, builder.shl(_bits_of(builder, hits), ir.Constant(_I64, part * lanes)))
        store_parts(builder, new_loads, load, 4)
        return word

    signature = types.uint64(source, types.intp, types.intp, bias_P, types.intp, bias_P.dtype, load_P, count)
    return signature, codegen


def _prefetch(builder, pointer):
    pointer = builder.bitcast(pointer, ir.PointerType(ir.IntType(8)))
    function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type)
    read, keep_close, data = (ir.Constant(_I32, flag) for flag in (0, 3, 1))
    builder.call(prefetch, [pointer, read, keep_close, data])
