"""The proof of most rows in floats: never another answer than in integers, however close the scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb.exact.screening.row_kernels import (
    FORBIDDEN,
    Found,
    ListedRows,
    Prices,
    certify_rows,
    float_guard,
    make_proof,
)
from alflb.exact.units import Grid

NOTHING_LISTED = ListedRows(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))


def certify(scores_TE, prices, guard=None):
    """All that the pass says and writes, with the guard it chooses or another one."""
    num_tokens, num_experts = scores_TE.shape
    finite = np.abs(scores_TE[np.isfinite(scores_TE)])
    proof = make_proof(scores_TE.dtype, float(finite.max(initial=0)), prices)
    found = Found(
        load_E=np.zeros(num_experts, np.int64),
        experts_TK=np.zeros((num_tokens, prices.top_k), np.int32),
        split_S3=np.empty((0, 3), np.int64),
        num_splits=np.zeros(1, np.int64),
        sums=np.zeros(2),
        is_lossless=np.ones(1, np.bool_),
    )
    is_complete = certify_rows(
        scores_TE, 0, proof if guard is None else proof._replace(guard=guard), NOTHING_LISTED, found
    )
    return is_complete, found, proof.guard


def assert_as_in_integers(scores_TE, prices):
    is_complete, found, guard = certify(scores_TE, prices)
    expected_complete, expected, _ = certify(scores_TE, prices, guard=math.inf)
    assert is_complete == expected_complete
    if is_complete:
        for one, other in zip(found, expected):
            assert one.tobytes() == other.tobytes()
    return guard


def top_k_in_integers(scores_TE, prices):
    """Experts by exact integers in Python, ties to the lowest index."""
    rows = []
    for scores_E in scores_TE.tolist():
        value_E = [
            (round(score * prices.per_unit) if score > -math.inf else FORBIDDEN) + int(price)
            for score, price in zip(scores_E, prices.price_E)
        ]
        order = sorted(range(len(value_E)), key=lambda k: (-value_E[k], k))
        rows.append(sorted(order[: prices.top_k]))
    return rows


@st.composite
def close_scores(draw):
    """Scores and prices whose sums collide, or miss each other by a rounding or a quantum."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    num_experts = draw(st.sampled_from([2, 3, 16, 17, 40, 64]))
    top_k = draw(st.integers(1, num_experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 2.0 ** draw(st.integers(-50, 50))
    eps = float(np.finfo(dtype).eps)
    base_E = rng.integers(-8, 9, num_experts) / 8
    spread = draw(st.sampled_from([0.0, 1.0, 4.0, 64.0]))
    scores_TE = (1.0 + base_E + eps * rng.integers(-3, 4, (30, num_experts)) * spread) * scale
    if draw(st.booleans()):
        scores_TE[rng.random(scores_TE.shape) < 0.2] = -np.inf
        scores_TE[:, :top_k] = np.where(np.isfinite(scores_TE[:, :top_k]), scores_TE[:, :top_k], scale)
    scores_TE = scores_TE.astype(dtype)
    grid = Grid.finest(float(np.abs(scores_TE[np.isfinite(scores_TE)]).max()), num_experts)
    coarser = draw(st.sampled_from([0, 3, 24, 40]))
    per_unit = grid.per_unit / 2.0**coarser
    offset = draw(st.sampled_from([0, 0, 2**40]))
    price_E = np.rint(-base_E * scale * per_unit).astype(np.int64) + rng.integers(-2, 3, num_experts) + offset
    reach = draw(st.sampled_from([0, 0, 1, 100]))
    return scores_TE, Prices(per_unit, price_E, reach, top_k, 1)


@given(close_scores())
def test_floats_say_what_integers_say(instance):
    scores_TE, prices = instance
    assert_as_in_integers(scores_TE, prices)
    if prices.reach == 0:
        assert certify(scores_TE, prices)[1].experts_TK.tolist() == top_k_in_integers(scores_TE, prices)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reach", [0, 7])
def test_the_bound_is_sound_and_not_idle(dtype, reach):
    """Two experts a step apart, step by step through the guard: floats decide only where integers agree, and often."""
    prices = Prices(2.0**30, np.array([2**33, 2**33 + 5]), reach, 1, 1)
    steps = np.arange(-4000, 4000)
    first = dtype(0.75)
    second_T = (0.75 + steps * float(np.finfo(dtype).eps) / 2).astype(dtype)
    scores_TE = np.column_stack([np.full_like(second_T, first), second_T])
    guard = float_guard(np.dtype(dtype), 1.0, prices, np.zeros(2))
    assert 0 < guard < 1e-5
    assert_as_in_integers(scores_TE, prices)


def test_a_guard_of_nothing_would_be_wrong():
    """The test above can fail: with float32 sums and no guard, rounding decides ties the wrong way."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(50):
        base_E = rng.integers(0, 9, 16) / 8
        scores_TE = (base_E + 2.0**-23 * rng.integers(-3, 4, (30, 16))).astype(np.float32)
        price_E = np.rint(-base_E * 2.0**40).astype(np.int64) + rng.integers(-99999, 99999, 16)
        prices = Prices(2.0**40, price_E, 0, 4, 1)
        by_floats, by_integers = (certify(scores_TE, prices, guard=guard)[1] for guard in (0.0, math.inf))
        wrong += by_floats.load_E.tolist() != by_integers.load_E.tolist()
        assert_as_in_integers(scores_TE, prices)
    assert wrong > 0


@pytest.mark.parametrize(
    ("dtype", "largest", "per_unit"),
    [(np.float32, 3e38, 1.0), (np.float32, 1.0, 2.0**-3), (np.float32, 1e-40, 2.0**140)],
)
def test_where_floats_cannot_tell_integers_decide(dtype, largest, per_unit):
    prices = Prices(per_unit, np.zeros(4, np.int64), 0, 1, 1)
    assert float_guard(np.dtype(dtype), largest, prices, np.zeros(4)) == math.inf
