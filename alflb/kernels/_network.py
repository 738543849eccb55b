"""Sorting networks that move values only: the best few of many columns, in every lane of a register at once."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from alflb.kernels._jit import jit_inline
from alflb.kernels._simd import address, in_llvm, larger_of, load_part, register_type, smaller_of, store_parts

WIDEST = 32
"""Values that a network can keep of each lane: twice as many would not fit into registers."""


def sorting_network(width: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of Batcher's odd-even merge sort; a width that is a power of two.

    Examples
    --------
    >>> sorting_network(4)
    [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)]
    """
    pairs = []
    merged = 1
    while merged < width:
        step = merged
        while step >= 1:
            for start in range(step % merged, width - step, 2 * step):
                for i in range(start, min(start + step, width - step)):
                    if i ^ (i + step) < 2 * merged:  # both in one pair of merged runs
                        pairs.append((i, i + step))
            step //= 2
        merged *= 2
    return pairs


def bitonic_merge(width: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, that sort a sequence which first rises, then falls, or the other way round.

    Examples
    --------
    >>> bitonic_merge(4)
    [(0, 2), (1, 3), (0, 1), (2, 3)]
    """
    steps = [1 << bit for bit in reversed(range(width.bit_length() - 1))]
    return [(i, i + step) for step in steps for i in range(width) if not i & step]


def _plain_absorb(columns_GL, start, best_KL, width):
    lanes = best_KL.size // width
    new_KL = columns_GL[start:][: best_KL.size].reshape(width, lanes).copy()
    old_KL = best_KL.reshape(width, lanes)
    best_KL[:] = np.sort(np.concatenate([old_KL, new_KL]), axis=0)[::-1][:width].reshape(-1)


@in_llvm(_plain_absorb, literal=True)
def absorb(_, columns_GL, start, best_KL, width):
    """Replace the best `width` values of each lane by the best of them and of the `width` columns at `start`.

    `best_KL` holds them in descending order, before and after.
    """
    if not isinstance(width, types.IntegerLiteral):
        return None
    register = register_type(best_KL.dtype)
    count, element_bytes = width.literal_value, best_KL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        columns = address(context, builder, columns_GL, args[0], args[1], register)
        best = address(context, builder, best_KL, args[2], ir.Constant(ir.IntType(64), 0), register)
        new = [load_part(builder, columns, i, element_bytes) for i in range(count)]
        for i, j in sorting_network(count):
            new[i], new[j] = larger_of(builder, new[i], new[j]), smaller_of(builder, new[i], new[j])
        # Largest against smallest: the larger of each pair are the best `count` of both, rising then falling.
        merged = [larger_of(builder, load_part(builder, best, i, element_bytes), new[-1 - i]) for i in range(count)]
        for i, j in bitonic_merge(count):
            merged[i], merged[j] = larger_of(builder, merged[i], merged[j]), smaller_of(builder, merged[i], merged[j])
        store_parts(builder, merged, best, element_bytes)
        return context.get_dummy_value()

    return types.void(columns_GL, types.intp, best_KL, width), codegen


@jit_inline
def keep_best(columns_GL, best_KL, lanes):
    """Write the best values of all columns to `best_KL`, lane by lane, descending.

    Parameters
    ----------
    columns_GL : float array, flat
        The lanes of column 0, of column 1, ...; overwritten.
    best_KL : float array of the same dtype, flat
        As many values per lane as its width, a power of two up to `WIDEST`, says.
    lanes : int
    """
    width = best_KL.size // lanes
    best_KL[:] = -np.inf
    for start in range(0, columns_GL.size, best_KL.size):
        # In registers if the width is a constant of the code.
        if width == 1:
            absorb(columns_GL, start, best_KL, 1)
        elif width == 2:
            absorb(columns_GL, start, best_KL, 2)
        elif width == 4:
            absorb(columns_GL, start, best_KL, 4)
        elif width == 8:
            absorb(columns_GL, start, best_KL, 8)
        elif width == 16:
            absorb(columns_GL, start, best_KL, 16)
        else:
            absorb(columns_GL, start, best_KL, WIDEST)
