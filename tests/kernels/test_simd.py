"""The vector layer: LLVM code and its plain twins agree bit for bit."""

import inspect
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from alflb.kernels import _simd, _splitmix
from alflb.kernels._simd import (
    WIDTH,
    add,
    add_bits,
    at_least,
    bits_to_float,
    count_bits,
    exceeds,
    finite_size,
    float_to_bits,
    larger,
    least_element,
    load,
    lowest_bit,
    margins,
    multiply,
    no_ranks,
    off_grid,
    rank_against,
    reaches,
    smaller_if,
    splat,
    store,
)
from alflb.kernels._splitmix import hash_words, splitmix

pytestmark = pytest.mark.jit
TWINS = {
    name.removeprefix("_plain_"): twin
    for module in (_simd, _splitmix)
    for name, twin in vars(module).items()
    if name.startswith("_plain_")
}


def with_twins(function):
    """The same function, not compiled, with twins in place of vector operations."""
    return types.FunctionType(function.__code__, {**function.__globals__, **TWINS})


def compare_and_choose(array, other, bound, out):
    """What works on integers and floats alike."""
    left, right = load(array, 1), load(other, 0)
    store(out, 0, add(left, right))
    store(out, WIDTH, larger(left, splat(bound)))
    rank = rank_against(rank_against(no_ranks(), left, bound), left, right_of(other))
    store(out, 2 * WIDTH, smaller_if(left, right, rank, 1))
    out[3 * WIDTH] = least_element(left)
    return at_least(left, bound), reaches(left, right), exceeds(left, right)


def right_of(other):
    return other[WIDTH - 1]


def measure(array, per_unit, own_per_unit, out):
    """What works on floats only."""
    vector = load(array, 0)
    store(out, 0, finite_size(vector))
    store(out, WIDTH, multiply(vector, splat(array[0])))
    store(out, 2 * WIDTH, margins(vector, array[1], array[2]))
    return off_grid(vector, per_unit), off_grid(vector, own_per_unit)


def look_at_bits(bits, x, counts):
    add_bits(counts, 1, bits)
    return count_bits(bits), lowest_bit(bits), float_to_bits(x), bits_to_float(float_to_bits(x))


def hash_all(seed, first, words):
    hash_words(seed, first, words)
    return splitmix(seed, first)


right_of = njit(right_of)
COMPILED = {f: njit(f) for f in (compare_and_choose, measure, look_at_bits, hash_all)}


def numbers(dtype):
    if dtype == np.int64:
        return st.integers(-3, 3)
    special = [0.0, -0.0, 1.0, -np.inf, 2.5, 2.0**-140, float(np.finfo(dtype).max), -1.5]
    return st.one_of(st.sampled_from(special), st.floats(-4, 4, width=32))


def arrays(dtype, size):
    return st.lists(numbers(dtype), min_size=size, max_size=size).map(lambda values: np.array(values, dtype))


def assert_agree(function, arguments):
    """Same result and same writes, bit for bit, from the compiled function and from its twins."""
    outcomes = []
    for run in (COMPILED[function], with_twins(function)):
        own = [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
        with np.errstate(all="ignore"):
            result = run(*own)
        outcomes.append((np.asarray(result).tolist(), [np.asarray(argument).tobytes() for argument in own]))
    assert outcomes[0] == outcomes[1]


def test_every_twin_is_compared_here_or_by_the_tests_of_the_kernels():
    source = inspect.getsource(inspect.getmodule(assert_agree))
    by_kernels = {"read_only", "transpose_biased", "sum_best", "mark_hits"}
    assert {name for name in TWINS if f"{name}(" not in source} == by_kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@given(data=st.data())
def test_comparing_and_choosing(dtype, data):
    array, other = data.draw(arrays(dtype, WIDTH + 1)), data.draw(arrays(dtype, WIDTH))
    bound = dtype(data.draw(numbers(dtype)))
    assert_agree(compare_and_choose, [array, other, bound, np.zeros(3 * WIDTH + 1, dtype)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_sizes_and_grids(dtype, data):
    array = data.draw(arrays(dtype, WIDTH))
    array[np.abs(array) > 4] = -np.inf  # on the grid numbers fit into int64
    exponent = data.draw(st.integers(-2, 40))
    per_unit = 2.0**exponent
    assert_agree(measure, [array, per_unit, dtype(per_unit), np.zeros(3 * WIDTH, dtype)])


@given(st.integers(1, 2**64 - 1), st.floats(width=32, allow_nan=False))
def test_bits(bits, x):
    assert_agree(look_at_bits, [np.uint64(bits), np.float32(x), np.arange(WIDTH + 1, dtype=np.int32)])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_splitmix(seed, first):
    assert_agree(hash_all, [np.uint64(seed), np.uint64(first), np.zeros(24, np.uint64)])


def test_splitmix_is_the_published_generator():
    """The first outputs of Vigna's splitmix64.c from state 1234567; output n adds the increment n times first."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = np.zeros(8, np.uint64)
    COMPILED[hash_all](np.uint64(1234567), np.uint64(1), words)
    assert words[:4].tolist() == published
