"""`route`: group-limited top-K against plain loops, compiled against reference, and where it leaves the theory."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alflb
from alflb import AssignmentProblem, dual_value, route, solve_exact
from alflb.kernels import backend_names, get_kernels
from alflb.rules import Observation

SHAPES = [  # T, E, K, n_group, topk_group
    (1, 4, 1, 2, 1),
    (7, 4, 2, 2, 1),
    (65, 8, 6, 4, 3),
    (100, 12, 4, 3, 2),
    (300, 64, 6, 8, 3),
    (2049, 16, 4, 4, 2),
    (500, 33, 9, 3, 1),
    (200, 256, 8, 8, 4),
    (50, 160, 6, 80, 3),
]

BACKENDS = [name for name in backend_names() if name != "torch" or importlib.util.find_spec("torch")]


def random_batch(shape, seed, dtype, *, levels=None, forbidden=0.0):
    num_tokens, num_experts = shape[:2]
    rng = np.random.default_rng(seed)
    if levels is None:
        scores, bias = rng.standard_normal((num_tokens, num_experts)), rng.standard_normal(num_experts)
    else:
        scores = rng.integers(0, levels, (num_tokens, num_experts)) / 1024
        bias = rng.integers(-levels, levels, num_experts) / 1024
    scores[rng.random(scores.shape) < forbidden] = -np.inf
    return scores.astype(dtype), bias


def pick(values, count, allowed):
    """Indices of the `count` largest allowed values, the lowest index first among equals, by repeated scanning."""
    chosen = []
    while len(chosen) < count:
        candidates = [i for i in allowed if i not in chosen]
        chosen.append(max(candidates, key=lambda i: (values[i], -i)))
    return sorted(chosen)


def route_by_hand(biased_E, top_k, n_group, topk_group):
    size = len(biased_E) // n_group
    members = [range(group * size, (group + 1) * size) for group in range(n_group)]
    group_scores = [sum(sorted(biased_E[k] for k in group)[-2:]) for group in members]
    kept = pick(group_scores, topk_group, range(n_group))
    return pick(biased_E, top_k, [k for group in kept for k in members[group]])


def assert_same_allocation(shape, scores, bias):
    expected = get_kernels("reference").allocate_in_groups(scores, bias, *shape[2:])
    actual = get_kernels("numba").allocate_in_groups(scores, bias, *shape[2:])
    np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
    np.testing.assert_array_equal(actual.load_E, expected.load_E)
    assert actual.experts_TK.dtype == expected.experts_TK.dtype == np.int32
    assert actual.load_E.dtype == expected.load_E.dtype == np.int64
    return expected, actual


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_groups_and_experts_are_chosen_as_by_hand(backend, data):
    n_group, size = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    topk_group = data.draw(st.integers(1, n_group))
    top_k = data.draw(st.integers(1, topk_group * size))
    eighths = st.integers(-4, 4).map(lambda k: k / 8)  # many ties, and every sum exact
    row = st.lists(eighths, min_size=n_group * size, max_size=n_group * size)
    scores, bias = np.array(data.draw(st.lists(row, min_size=1, max_size=20))), np.array(data.draw(row))
    allocation = route(scores, bias, top_k, n_group=n_group, topk_group=topk_group, backend=backend)
    by_hand = [route_by_hand((row + bias).tolist(), top_k, n_group, topk_group) for row in scores]
    assert allocation.experts_TK.tolist() == by_hand
    np.testing.assert_array_equal(allocation.load_E, np.bincount(np.ravel(by_hand), minlength=n_group * size))
    assert allocation.dual_sum == sum((row + bias)[chosen].sum() for row, chosen in zip(scores, by_hand))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_on_random_scores(shape, dtype):
    expected, actual = assert_same_allocation(shape, *random_batch(shape, 1, dtype))
    assert actual.dual_sum == pytest.approx(expected.dual_sum, rel=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [1, 2, 8, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_exactly_on_planted_ties(shape, levels, dtype):
    expected, actual = assert_same_allocation(shape, *random_batch(shape, levels, dtype, levels=levels))
    assert actual.dual_sum == expected.dual_sum  # dyadic: every sum is exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("forbidden", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_with_forbidden_pairs(shape, forbidden, dtype):
    assert_same_allocation(shape, *random_batch(shape, 3, dtype, levels=16, forbidden=forbidden))


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_scores_are_added_in_the_dtype_of_the_scores(backend):
    scores = np.array([[1.0, 1.0, 1.0, 1.0 + 1e-9]])  # in float32 both groups score 2: a tie
    for dtype, chosen in ((np.float32, [0]), (np.float64, [3])):
        result = route(scores.astype(dtype), np.zeros(4), 1, n_group=2, topk_group=1, backend=backend)
        assert result.experts_TK.tolist() == [chosen]
    # 2^24 + 1 is no float32: the sum is rounded, though both addends and a float64 sum are exact.
    big = np.array([[2.0**24, 0.0, 2.0**24, 1.0]])
    for dtype, chosen in ((np.float32, [0]), (np.float64, [2])):
        result = route(big.astype(dtype), np.zeros(4), 1, n_group=2, topk_group=1, backend=backend)
        assert result.experts_TK.tolist() == [chosen]


@pytest.mark.parametrize("backend", BACKENDS)
def test_keeping_every_group_is_plain_top_k(backend):
    scores, bias = random_batch((100, 12), 4, np.float32, levels=8)
    plain = get_kernels("reference").allocate(scores, bias, 5)
    for n_group, topk_group in ((1, None), (1, 1), (4, None), (4, 4), (12, 12)):
        result = route(scores, bias, 5, n_group=n_group, topk_group=topk_group, backend=backend)
        np.testing.assert_array_equal(result.experts_TK, plain.experts_TK)
    in_groups = get_kernels(backend).allocate_in_groups(scores, bias, 5, 4, 4)
    np.testing.assert_array_equal(in_groups.experts_TK, plain.experts_TK)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_changed(backend):
    scores, bias = random_batch((50, 8), 5, np.float32)
    before = scores.copy(), bias.copy()
    route(scores, bias, 3, n_group=2, topk_group=1, backend=backend)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(bias, before[1])


def test_a_token_that_may_not_use_enough_experts_is_named():
    scores = np.array([[0.0, 1.0, 0.5, 0.5], [1.0, -np.inf, 0.5, -np.inf]])
    with pytest.raises(ValueError, match=r"scores leaves token 1 fewer than top_k = 2 experts"):
        route(scores, np.zeros(4), 2, n_group=2, topk_group=1)
    assert route(scores, np.zeros(4), 2).experts_TK.tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_group": 3}, r"n_group is 3 but there are 8 experts; choose a divisor of 8"),
        ({"n_group": 0}, r"n_group is 0; pass an integer >= 1"),
        ({"n_group": 2.0}, r"n_group is 2\.0; pass an integer"),
        ({"n_group": 4, "topk_group": 5}, r"topk_group is 5 but n_group is 4"),
        ({"n_group": 4, "topk_group": True}, r"topk_group is True; pass an integer"),
        ({"n_group": 4, "topk_group": 1}, r"1 groups of 2 experts do not hold top_k = 3.*choose topk_group >= 2"),
        ({"n_group": 8, "topk_group": 4}, r"n_group is 8, one expert in each group.*choose n_group <= 4"),
        ({"backend": "nubma"}, r"did you mean 'numba'"),
    ],
)
def test_impossible_groups_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        route(np.zeros((2, 8)), np.zeros(8), 3, **arguments)


@pytest.mark.parametrize(
    ("scores", "bias", "top_k", "message"),
    [
        (np.full((1, 4), np.nan), np.zeros(4), 1, "scores"),
        (np.zeros((1, 4), dtype=np.float16), np.zeros(4), 1, "scores has dtype float16"),
        (np.zeros((0, 4)), np.zeros(4), 1, "scores has shape"),
        (np.zeros((1, 4)), np.zeros(3), 1, "bias has shape"),
        (np.zeros((1, 4)), np.full(4, np.inf), 1, "bias holds NaN or inf"),
        (np.zeros((1, 4)), np.zeros(4), 5, "top_k is 5 but there are 4 experts"),
    ],
)
def test_bad_arrays_are_refused_by_name(scores, bias, top_k, message):
    with pytest.raises(ValueError, match=message):
        route(scores, bias, top_k)


# ------------------------------------------------------------------------------- why groups are outside the theory


def test_the_choice_is_not_the_best_within_any_group():
    """Two good experts open a group; with K = 4 the whole other group would have been worth more."""
    scores = np.array([[1.0, 1.0, 0.0, 0.0, 0.875, 0.875, 0.875, 0.875]])
    result = route(scores, np.zeros(8), 4, n_group=2, topk_group=1)
    assert result.experts_TK.tolist() == [[0, 1, 2, 3]]
    assert (result.dual_sum, scores[0, 4:].sum()) == (2.0, 3.5)


def test_with_groups_dual_sum_minus_target_bias_bounds_nothing():
    """Of the plain problem D(p) >= LP* for every p; the same expression of a group-limited choice falls below LP*."""
    scores = np.array([[1.0, 1.0, 0.0, 0.0, 0.875, 0.875, 0.875, 0.875]] * 2)
    problem = AssignmentProblem(scores, top_k=4)
    bias = np.zeros(8)
    optimum = solve_exact(problem).value
    limited = route(scores, bias, 4, n_group=2, topk_group=1).dual_sum - problem.target_E @ bias
    assert limited == 4.0 < optimum == 5.5 <= dual_value(problem, bias)


def test_with_groups_a_token_may_move_to_an_expert_whose_bias_fell():
    """The preference rule (C3: who picks up j for k has delta_j > delta_k) fails: j came with its group."""
    scores = np.array([[0.5, 0.5, 0.375, 0.5]])
    delta = np.array([0.0, 0.0, 0.25, -0.0625])
    before = route(scores, np.zeros(4), 2, n_group=2, topk_group=1).experts_TK
    after = route(scores, delta, 2, n_group=2, topk_group=1).experts_TK
    assert (before.tolist(), after.tolist()) == ([[0, 1]], [[2, 3]])  # from 0, whose bias stayed, to 3, whose fell
    plain = route(scores, delta, 2).experts_TK
    assert 3 not in plain  # without groups 3 is not picked up


@pytest.mark.jit
def test_the_sign_rule_still_balances_group_limited_loads():
    """No theorem here, a measurement: loads come near balance with 4 of 8 groups as they do without groups."""
    rng = np.random.default_rng(0)
    offset_E = rng.normal(0, 0.1, 64)
    rule = alflb.make_rule("sign", schedule=1e-3)
    target_E = np.full(64, 1024 * 6 / 64)
    for groups in ({}, {"n_group": 8, "topk_group": 4}):
        bias_E, state, violations = np.zeros(64), rule.init(64), []
        for step in range(1, 401):
            scores_TE = (rng.random((1024, 64)) + offset_E).astype(np.float32)
            load_E = route(scores_TE, bias_E, 6, **groups).load_E
            violations.append(alflb.max_vio(load_E))
            bias_E, state = rule.step(bias_E, Observation(step, target_E, load_E=load_E), state)
        assert violations[0] > 1.0
        assert np.mean(violations[-100:]) < 0.3
