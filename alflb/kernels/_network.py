"""Sorting networks that move values only: the best few of many columns, in every lane of a register at once.

Up to `WIDEST` values are kept in registers all the time (`absorb`). More of them are sorted in runs of that many, and
the runs are merged in memory, a pair of columns at a time; a step between near columns again happens in registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from alflb.kernels._jit import jit_borrowing
from alflb.kernels._simd import (
    address,
    in_llvm,
    larger_of,
    load_part,
    register_lanes,
    register_type,
    smaller_of,
    store_parts,
)

WIDEST = 32
"""Values of each lane that a network can keep in registers; twice as many would not fit."""


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


def _plain_absorb(columns_GL, start, best_KL, merges):
    width = 2 ** len(merges)
    lanes = best_KL.size // width
    new_KL = columns_GL[start:][: best_KL.size].reshape(width, lanes).copy()
    old_KL = best_KL.reshape(width, lanes)
    best_KL[:] = np.sort(np.concatenate([old_KL, new_KL]), axis=0)[::-1][:width].reshape(-1)


@in_llvm(_plain_absorb)
def absorb(_, columns_GL, start, best_KL, merges):
    """Replace the best values of each lane by the best of them and of as many columns at `start`, in registers.

    `best_KL` holds them in descending order, before and after. There are 2 to the length of the tuple `merges`: a
    width must be a constant of the code, and the length of a tuple is.
    """
    register = register_type(best_KL.dtype)
    count, element_bytes = 2**merges.count, best_KL.dtype.bitwidth // 8

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

    return types.void(columns_GL, types.intp, best_KL, merges), codegen


def _plain_sort_run(columns_GL, start, merges):
    run = _run(columns_GL, start, merges)
    run[:] = np.sort(run, axis=0)[::-1]


@in_llvm(_plain_sort_run)
def sort_run(_, columns_GL, start, merges):
    """Sort as many columns at `start` in descending order, in registers, as `absorb` keeps."""
    return types.void(columns_GL, types.intp, merges), _in_registers(columns_GL, merges, sorting_network)


@in_llvm(_plain_sort_run)
def merge_run(_, columns_GL, start, merges):
    """`sort_run` for columns that first rise, then fall, or the other way round."""
    return types.void(columns_GL, types.intp, merges), _in_registers(columns_GL, merges, bitonic_merge)


def _run(columns_GL, start, merges):
    width, lanes = 2 ** len(merges), register_lanes(columns_GL.dtype)
    return columns_GL[start:][: width * lanes].reshape(width, lanes)


def _in_registers(columns_GL, merges, network):
    register, width = register_type(columns_GL.dtype), 2**merges.count
    element_bytes = columns_GL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        pointer = address(context, builder, columns_GL, args[0], args[1], register)
        value = [load_part(builder, pointer, i, element_bytes) for i in range(width)]
        for i, j in network(width):
            value[i], value[j] = larger_of(builder, value[i], value[j]), smaller_of(builder, value[i], value[j])
        store_parts(builder, value, pointer, element_bytes)
        return context.get_dummy_value()

    return codegen


def _plain_exchange(left_GL, i, right_GL, j):
    lanes = register_lanes(left_GL.dtype)
    left, right = left_GL[i:][:lanes].copy(), right_GL[j:][:lanes].copy()
    left_GL[i:][:lanes] = np.where(left > right, left, right)
    right_GL[j:][:lanes] = np.where(left < right, left, right)


@in_llvm(_plain_exchange)
def exchange(_, left_GL, i, right_GL, j):
    """Lane by lane, the larger of two columns to the left, the smaller to the right."""
    register, element_bytes = register_type(left_GL.dtype), left_GL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        left = address(context, builder, left_GL, args[0], args[1], register)
        right = address(context, builder, right_GL, args[2], args[3], register)
        one, other = load_part(builder, left, 0, element_bytes), load_part(builder, right, 0, element_bytes)
        store_parts(builder, [larger_of(builder, one, other)], left, element_bytes)
        store_parts(builder, [smaller_of(builder, one, other)], right, element_bytes)
        return context.get_dummy_value()

    return types.void(left_GL, types.intp, right_GL, types.intp), codegen


@jit_borrowing
def keep_best(columns_GL, best_KL, lanes, merges, run):
    """Write the best values of all columns to `best_KL`, lane by lane, descending.

    Parameters
    ----------
    columns_GL : float array, flat
        The lanes of column 0, of column 1, ...; in any order afterwards.
    best_KL : float array of the same dtype, flat
        A power of two of values per lane; the columns are a multiple of it.
    lanes : int
    merges : tuple
        See `absorb`.
    run : int, optional
        Numbers in 2 ** len(merges) columns, if more columns are kept; none if so many are.
    """
    best_KL[:] = -np.inf
    if run is None:
        for start in range(0, columns_GL.size, best_KL.size):
            absorb(columns_GL, start, best_KL, merges)
    else:
        for start in range(0, columns_GL.size, best_KL.size):
            _sort_columns(columns_GL, start, best_KL.size, lanes, merges, run)
            for column in range(0, best_KL.size, lanes):
                exchange(best_KL, column, columns_GL, start + best_KL.size - lanes - column)
            _halve(best_KL, 0, best_KL.size, lanes, merges, run)


@jit_borrowing
def _sort_columns(columns_GL, start, size, lanes, merges, run):
    """Sort the columns in a part of an array in descending order: runs first, then runs merged into longer ones."""
    end = start + size
    for first in range(start, end, run):
        sort_run(columns_GL, first, merges)
    length = run
    while length < size:
        for first in range(start, end, 2 * length):
            last = first + 2 * length - lanes
            for column in range(0, length, lanes):
                exchange(columns_GL, first + column, columns_GL, last - column)
            _halve(columns_GL, first, length, lanes, merges, run)
            _halve(columns_GL, first + length, length, lanes, merges, run)
        length *= 2


@jit_borrowing
def _halve(columns_GL, start, size, lanes, merges, run):
    """Sort columns that first rise, then fall, or the other way round, in descending order."""
    step = size // 2
    while step >= run:
        for first in range(start, start + size, 2 * step):
            for column in range(first, first + step, lanes):
                exchange(columns_GL, column, columns_GL, column + step)
        step //= 2
    for first in range(start, start + size, run):
        merge_run(columns_GL, first, merges)
