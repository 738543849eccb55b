"""The certificates are shown wrong answers of every kind, and must refuse each."""

import dataclasses
import math
import re

import numpy as np
import pytest
from scipy.sparse import csr_array

from alflb.exact import SolverError, certify, recertify, solve_exact
from alflb.exact.certificate import proves_optimum
from alflb.exact.screening import refine as refine_module
from alflb.exact.screening import solver as solver_module
from alflb.exact.screening import sources
from alflb.exact.screening.proof import prove_assignment
from alflb.exact.screening.refine import refine
from alflb.exact.screening.settle import Settlement
from alflb.exact.screening.undecided import Undecided
from alflb.exact.units import Grid, target_units
from alflb.problem import AssignmentProblem

# Integer scores, K = 1. Prices (0, 1, 0) make token 1 indifferent between experts 0 and 1, and settle the others.
SCORES = np.array([[5.0, 1.0, 0.0], [3.0, 2.0, 0.0], [0.0, 4.0, 1.0], [1.0, 0.0, 6.0]])
PRICES = [0, 1, 0]
TARGET = [1, 2, 1]


def listed(tokens, entries):
    """Rows (token, experts) of scores as stage 4 hands them over."""
    return Undecided(
        np.array(tokens, np.int64),
        np.ones(len(tokens), np.int64),
        np.ones(len(tokens), np.int32),
        np.cumsum([0, *map(len, entries)]).astype(np.int64),
        np.array([k for experts in entries for k in experts], np.int32),
        np.array([SCORES[i, k] for i, experts in zip(tokens, entries) for k in experts]).astype(np.int64),
    )


def prove(
    prices=PRICES, target=TARGET, tokens=(1,), entries=((0, 1),), units=(0, 1), scores=SCORES, top_k=1, unit=1, **more
):
    """What the pass over all pairs says of prices and tie-breaks."""
    return prove_assignment(
        sources.ArraySource(AssignmentProblem(scores, top_k, np.array(target) / unit)),
        more.pop("grid", Grid(0)),
        top_k,
        unit,
        np.array(target, np.int64),
        np.array(prices, np.int64),
        listed(tokens, entries),
        np.array(units, np.int64),
        keep_experts=True,
        **more,
    )


def test_a_right_answer_is_proved():
    found = prove()
    assert found.experts_TK.ravel().tolist() == [0, 1, 1, 2]
    assert found.load_E.tolist() == TARGET
    assert (found.value, found.is_lossless) == (5 + 2 + 4 + 6, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": [2, 1, 1]},  # loads off by one either way
        {"target": [1, 1, 2]},
        {"units": (1, 0)},  # the tie broken to the wrong side
        {"units": (0, 0)},  # no pick for the token
        {"units": (1, 1)},  # two picks
        {"units": (2, -1), "target": [3, 0, 1]},  # picks that add up, of impossible sizes
        {"units": (-1, 2)},
        {"prices": [0, 0, 0]},  # token 1 no longer indifferent
        {"prices": [0, 5, 0]},  # token 0 gone as well
        {"prices": [9, 1, 0]},
        {"tokens": (0,), "entries": ((0, 1),)},  # not this token's tie
        {"entries": ((1, 2),)},  # not these experts'
        {"tokens": (), "entries": (), "units": ()},  # broken by index, to expert 0
    ],
)
def test_wrong_prices_loads_or_picks_are_refused(wrong):
    assert prove(**wrong) is None


def test_one_token_too_few_is_not_made_up_for_by_another():
    """Two tied tokens, one with no pick and one with two: the loads are right, the rows are not."""
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    tied = {"scores": scores, "prices": [0, 0, 0], "target": [1, 1, 0], "tokens": (0, 1), "entries": ((0, 1), (0, 1))}
    assert prove(units=(1, 0, 0, 1), **tied).experts_TK.ravel().tolist() == [0, 1]
    assert prove(units=(0, 0, 1, 1), **tied) is None
    assert prove(units=(1, 1, 0, 0), **tied) is None


@pytest.mark.parametrize(
    ("top_k", "target", "units"),
    [(1, [1, 1, 0], (1, 1, -1, 0, 0, 1)), (2, [2, 1, 1], (2, 0, 0, 0, 1, 1))],
)
def test_shares_of_impossible_size_are_not_made_up_for_by_another_token(top_k, target, units):
    """All sums are right; one share is below 0, or above 1."""
    tied = {"scores": np.ones((2, 3)), "prices": [0, 0, 0], "tokens": (0, 1), "entries": ((0, 1, 2), (0, 1, 2))}
    assert prove(top_k=top_k, target=target, units=units, **tied) is None


def test_split_picks_are_checked_like_whole_ones():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    tied = {"scores": scores, "prices": [0, 0, 0], "unit": 2, "tokens": (0, 1), "entries": ((0, 1), (0, 1))}
    found = prove(target=[3, 1, 2], units=(2, 0, 1, 1), **tied)
    assert found.split_S3.tolist() == [[1, 0, 1], [1, 1, 1]]
    assert prove(target=[3, 1, 2], units=(1, 0, 2, 1), **tied) is None
    assert prove(target=[4, 0, 2], units=(3, -1, 2, 0), **tied) is None


def test_split_picks_of_all_chunks_are_kept(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 1)
    scores = np.ones((2, 2))
    both = {"scores": scores, "prices": [0, 0], "unit": 2, "tokens": (0, 1), "entries": ((0, 1), (0, 1))}
    found = prove(target=[2, 2], units=(1, 1, 1, 1), **both)
    assert found.split_S3.tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]


def test_an_expert_one_quantum_worse_is_no_tie():
    """The boundary between decided and tied is where the K-th and the (K+1)-th best are equal, not one apart."""
    assert prove(prices=[0, 0, 0], target=[2, 1, 1], units=(0, 1)).experts_TK.ravel().tolist() == [0, 0, 1, 2]
    assert prove(prices=[0, 0, 0], target=[1, 2, 1], units=(0, 1)) is None


@pytest.mark.parametrize(
    ("scores", "top_k", "target", "units"),
    [
        ([2.0, 2.0, 1.0], 1, [0, 0, 1], (0, 0, 1)),  # the pick of a tie goes to an expert one quantum below it
        ([3.0, 2.0, 2.0], 2, [0, 1, 1], (0, 1, 1)),  # both do, and the expert one quantum above goes without
    ],
)
def test_listed_units_decide_among_tied_experts_only(scores, top_k, target, units):
    one = {"scores": np.array([scores]), "top_k": top_k, "prices": [0, 0, 0], "tokens": (0,), "entries": ((0, 1, 2),)}
    assert prove(target=target, units=units, **one) is None


def test_digits_below_the_quantum_show_whichever_chunk_holds_them(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 2)
    for token in range(4):
        scores = SCORES.copy()
        scores[token, 2 if token < 3 else 0] -= 0.25
        assert not prove(scores=scores).is_lossless, token
    assert prove().is_lossless
    assert not prove(grid=Grid(1), prices=[0, 0, 0], target=[2, 1, 1], tokens=(), entries=(), units=()).is_lossless


def test_within_reach_only_listed_rows_are_believed():
    assert prove(prices=[0, 0, 0], units=(0, 1), reach=1).experts_TK.ravel().tolist() == [0, 1, 1, 2]
    assert prove(prices=[0, 0, 0], tokens=(0,), entries=((0, 1),), units=(1, 0), reach=1) is None
    assert prove(prices=[0, 0, 0], units=(1, 1), reach=1) is None


def refined(scores, price, *, target=(1, 1)):
    problem = AssignmentProblem(scores, 1, np.array(target, float))
    source = sources.ArraySource(problem)
    return refine(source, Grid(0), 1, 1, np.array(target, np.int64), np.array(price, np.int64))


HALVES = np.array([[1.25, 1.0], [1.5, 1.0]])
"""Equal on the grid of whole numbers, at prices 0; token 1 wants expert 0 more."""


def test_refinement_settles_digits_below_the_quantum():
    found = refined(HALVES, [0, 0])
    assert found.units_N.tolist() == [0, 1, 1, 0]
    assert 0.25 <= found.bias_E[1] - found.bias_E[0] <= 0.5


def spoiled(monkeypatch, change):
    """Let refinement's inner solver return something else."""
    honest = refine_module.settle

    def settle(rows, price_E, room_E, unit):
        return change(honest(rows, price_E, room_E, unit), rows)

    monkeypatch.setattr(refine_module, "settle", settle)


def all_rows(rows, units, price):
    return Settlement(np.array(price, np.int64), rows, np.array(units, np.int64), True)


@pytest.mark.parametrize(
    "change",
    [
        lambda found, rows: all_rows(rows, [1, 0, 0, 1], found.price_E),  # balanced, and worse
        lambda found, rows: all_rows(rows, [0, 1, 1, 0], found.price_E * 0),  # right, with prices that deny it
        lambda found, rows: all_rows(rows, [0, 1, 1, 0], [0, 2**62]),  # prices beyond what the listing allows for
        lambda found, rows: found._replace(is_balanced=False),
    ],
)
def test_refinement_refuses_what_does_not_prove_itself(monkeypatch, change):
    spoiled(monkeypatch, change)
    with pytest.raises(SolverError, match="no certified optimum"):
        refined(HALVES, [0, 0])


def test_refinement_refuses_prices_that_overturn_what_was_decided(monkeypatch):
    """Token 2 prefers expert 2 by 20 quanta and is not listed. Both other prices rise by more than it was left out for.

    Nothing in the rows listed speaks against such prices.
    """
    scores = np.column_stack([np.vstack([HALVES, [0.0, 0.0]]), [-99.0, -99.0, 20.0]])
    assert refined(scores, [0, 0, 0], target=(1, 1, 1)).units_N.tolist() == [0, 1, 1, 0]
    spoiled(monkeypatch, lambda found, rows: found._replace(price_E=np.add(found.price_E, [2**58, 2**58, 0])))
    with pytest.raises(SolverError, match="no certified optimum"):
        refined(scores, [0, 0, 0], target=(1, 1, 1))


DEEP = np.array([[0.125, 2.0**-100], [0.125, 0.0]])
"""On whole numbers all equal, on the next grid the tokens are still equal, and the one below gives expert 1 token 0."""


def test_refinement_goes_on_to_the_last_digit():
    assert refined(DEEP, [0, 0]).units_N.tolist() == [0, 1, 1, 0]
    assert refined(DEEP[::-1], [0, 0]).units_N.tolist() == [1, 0, 0, 1]


def test_refinement_keeps_room_for_the_levels_to_come(monkeypatch):
    """Prices may use up what a row was left out for on the last level, not before."""
    reaches = []
    honest = refine_module._refine_within
    monkeypatch.setattr(refine_module, "_refine_within", lambda *all_: reaches.append(all_[-1]) or honest(*all_))

    def far(found, rows):
        is_in_range = reaches[-1] < 2**20
        price_E = np.array([0, (reaches[-1] - 1) << 40 if is_in_range else 0])
        return found._replace(price_E=price_E, is_balanced=is_in_range)

    spoiled(monkeypatch, far)
    monkeypatch.setattr(refine_module, "_next_exponent", lambda level, exponent, num_experts: exponent - 40)
    with pytest.raises(SolverError, match="no certified optimum"):
        refined(DEEP, [0, 0])


def test_an_answer_without_a_proof_is_no_answer(monkeypatch):
    """Neither when the proof fails every time, nor when it fails for the digits below the quantum."""
    honest = solver_module.prove_assignment
    for fails_at in (0, 1):
        monkeypatch.setattr(
            solver_module,
            "prove_assignment",
            lambda *given, reach=0, keep_experts, fails_at=fails_at: (
                None if min(reach, 1) == fails_at else honest(*given, reach=reach, keep_experts=keep_experts)
            ),
        )
        with pytest.raises(SolverError, match="no certified optimum"):
            solve_exact(AssignmentProblem(np.random.default_rng(0).standard_normal((20, 4)), 1))


def test_a_value_or_a_bias_that_overflows_is_refused_though_the_other_is_finite():
    for scores in (np.full((4, 2), 1.7e308), np.tile([1.7e308, -1.7e308, -1.7e308], (3, 1))):
        with pytest.raises(SolverError, match="too large for float64"):
            solve_exact(AssignmentProblem(scores, 1))


# What `certify` measures, in floating point, on the problem itself.


@pytest.fixture
def solved():
    problem = AssignmentProblem(np.random.default_rng(0).random((16, 4)), 2)
    return problem, solve_exact(problem)


def test_the_verdict_on_a_gap():
    assert proves_optimum(0.0, 0.0)
    assert proves_optimum(0.5, 0.5)
    for gap, tolerance in ((0.5, 0.25), (-1e-300, 1.0), (math.nan, 1.0), (math.inf, math.inf), (0.0, math.nan)):
        assert not proves_optimum(gap, tolerance)


def spoil(plan, change):
    plan_TE = plan.toarray().astype(float)
    change(plan_TE)
    return csr_array(plan_TE)


def swap(plan_TE):
    """Two tokens exchange experts: all sums stay."""
    first, second = next(
        (i, j) for i in range(16) for j in range(16) if (plan_TE[i] * (1 - plan_TE[j])).any() and i != j
    )
    k = int(np.flatnonzero(plan_TE[first] > plan_TE[second])[0])
    j = int(np.flatnonzero(plan_TE[second] > plan_TE[first])[0])
    plan_TE[first, [k, j]], plan_TE[second, [k, j]] = [0, 1], [1, 0]


def move(plan_TE):
    """One token takes another expert: loads are off by one."""
    used, spare = plan_TE[0].argmax(), plan_TE[0].argmin()
    plan_TE[0, used], plan_TE[0, spare] = 0, 1


def drop(plan_TE):
    plan_TE[0, plan_TE[0].argmax()] = 0


def add(plan_TE):
    plan_TE[0, plan_TE[0].argmin()] = 1


def shift_between_tokens(plan_TE):
    """One token has a pick too many, another one too few; all loads are right."""
    k = int(np.flatnonzero((plan_TE == 0).any(axis=0) & (plan_TE == 1).any(axis=0))[0])
    plan_TE[np.flatnonzero(plan_TE[:, k] == 0)[0], k], plan_TE[np.flatnonzero(plan_TE[:, k] == 1)[0], k] = 1, 0


def double(plan_TE):
    """2 for 1 on one pair, 0 on another of the row."""
    used = np.flatnonzero(plan_TE[0])
    plan_TE[0, used[0]], plan_TE[0, used[1]] = 2, 0


def double_with_right_loads(plan_TE):
    """2 - 1 = 1 pick twice over: every sum is right, shares are outside [0, 1]."""
    used = np.flatnonzero(plan_TE[0])
    plan_TE[0, used] = [2, 0]
    other = next(i for i in range(1, 16) if plan_TE[i, used[0]] == 1 and plan_TE[i, used[1]] == 0)
    plan_TE[other, used] = [0, 1]


def not_a_number(plan_TE):
    plan_TE[0, 0] = np.nan


@pytest.mark.parametrize(
    "change", [swap, move, drop, add, shift_between_tokens, double, double_with_right_loads, not_a_number]
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_wrong_plans_are_refused(solved, change):
    problem, solution = solved
    with pytest.raises(SolverError, match="certified optimum"):
        certify(problem, spoil(solution.plan, change), solution.bias_E, method="test")


@pytest.mark.parametrize(
    ("plan", "top_k"),
    [
        ([[2, 0], [0, 2]], 2),  # shares outside [0, 1], sums right
        ([[1, 1], [0, 0]], 1),  # picks wrong, loads right
        ([[1, 0], [1, 0]], 1),  # loads wrong, picks right
    ],
)
def test_equal_scores_hide_no_infeasible_plan(plan, top_k):
    """No score is lost by any of these, so nothing but the sums and the sizes of shares can give them away."""
    problem = AssignmentProblem(np.ones((2, 2)), top_k)
    with pytest.raises(SolverError, match="infeasible"):
        certify(problem, csr_array(np.array(plan, float)), np.zeros(2), method="test")


@pytest.mark.parametrize("size", [1e-9, 0.5, 1e300, math.inf, math.nan])
def test_wrong_biases_are_refused(solved, size):
    problem, solution = solved
    bound = float(np.ptp(solution.bias_E))
    wrong_E = solution.bias_E + np.array([size, 0, 0, 0])
    if size == 1e-9:  # small enough to keep the optimum, not small enough to be right where a token is indifferent
        wrong_E = solution.bias_E + bound * np.array([1.0, -1.0, 0, 0])
    with pytest.raises(SolverError, match="certified optimum"):
        certify(problem, solution.plan, wrong_E, method="test")


def test_the_tolerance_is_what_it_is_said_to_be():
    """One token, indifferent at the right bias; a bias that is off by more than 1e-12 of the stake is refused."""
    problem = AssignmentProblem([[1.0, 0.0], [1.0, 0.5]], 1)
    plan = csr_array(np.array([[1.0, 0.0], [0.0, 1.0]]))
    for off, passes in ((0.0, True), (1e-13, True), (1e-11, False), (-1e-13, True), (-1e-11, False)):
        bias_E = np.array([0.0, 0.5 - off] if off > 0 else [0.0, 1.0 - off])
        if passes:
            assert certify(problem, plan, bias_E, method="test").gap == pytest.approx(abs(off), abs=3e-16)
        else:
            with pytest.raises(SolverError, match=r"D\(p\) - value"):
                certify(problem, plan, bias_E, method="test")


def test_a_gap_that_the_bounds_are_too_large_to_show_is_seen():
    problem = AssignmentProblem([[1e30, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 1)
    worse = csr_array(np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]))
    with pytest.raises(SolverError, match="certified optimum"):
        certify(problem, worse, np.zeros(3), method="test")


def test_a_loss_below_the_rounding_of_score_plus_bias_is_seen():
    """At biases of 1e17 both tokens' scores round alike; what rounding took away decides."""
    problem = AssignmentProblem([[1.0, 0.0, -1e18], [1.0, 0.5, -1e18], [0.0, 0.0, 5e17]], 1)
    bias_E = np.array([1e17, 1e17, -2e17])
    right, wrong = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]])
    for plan, loss in ((right, 0.5), (wrong, 1.0)):
        with pytest.raises(SolverError, match=re.escape(f"D(p) - value is {loss:.3e}")):
            certify(problem, csr_array(plan), bias_E, method="test")
    assert certify(problem, csr_array(right), np.array([-0.25, 0.25, 0.0]), method="test").gap == 0.0


def test_a_value_that_overflows_is_never_proved():
    plan = csr_array(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(SolverError, match="certified optimum"):
        certify(AssignmentProblem(np.full((4, 2), 1.7e308), 1), plan, np.zeros(2), method="test")


def test_a_forbidden_pair_is_never_proved():
    problem = AssignmentProblem([[1.0, -np.inf], [1.0, 0.0]], 1)
    with pytest.raises(SolverError, match="certified optimum"):
        certify(problem, csr_array(np.array([[0.0, 1.0], [1.0, 0.0]])), np.zeros(2), method="test")


def test_whole_targets_take_no_shares():
    problem = AssignmentProblem([[1.0, 1.0], [1.0, 1.0]], 1)
    halves = csr_array(np.full((2, 2), 0.5))
    with pytest.raises(SolverError, match="infeasible"):
        certify(problem, halves, np.zeros(2), method="test")


def test_shares_of_fractional_targets_are_counted_exactly():
    problem = AssignmentProblem(np.ones((4, 3)), 1)
    plan = csr_array(np.full((4, 3), 1 / 3))
    assert certify(problem, plan, np.zeros(3), method="test").load_E == pytest.approx(np.full(3, 4 / 3))
    off = plan.toarray()
    off[0] += [1e-3, -1e-3, 0.0]  # within rounding to whole units: the plan meant is the right one
    assert certify(problem, csr_array(off), np.zeros(3), method="test").residuals.load == 0.0
    off[0] += [1 / 3, -1 / 3, 0.0]
    with pytest.raises(SolverError, match="infeasible"):
        certify(problem, csr_array(off), np.zeros(3), method="test")


def test_targets_of_no_common_denominator_leave_their_residual_in_the_gap():
    target = np.array([math.pi / 2, 3 - math.pi / 2])
    problem = AssignmentProblem([[1.0, 0.0], [1.0, 0.25], [1.0, 0.5]], 1, target)
    solution = solve_exact(problem)
    assert recertify(problem, solution).gap < 1e-14
    for off, words in ((1e-3, "infeasible"), (1e-8, r"D\(p\) - value")):
        plan = solution.plan.toarray() + np.array([[0, 0], [off, -off], [0, 0]])
        with pytest.raises(SolverError, match=words):
            certify(problem, csr_array(plan), solution.bias_E, method="test")


def test_recertify_does_not_take_a_solution_at_its_word(solved):
    problem, solution = solved
    boasting = dataclasses.replace(solution, bias_E=np.arange(4.0), upper_bound=solution.lower_bound)
    with pytest.raises(SolverError, match="certified optimum"):
        recertify(problem, boasting)


def test_target_units_are_not_off():
    units_E, unit = target_units(np.array([1.5, 1.5]), 3, 1)
    assert (units_E.tolist(), unit) == ([3, 3], 2)


@pytest.mark.jit
def test_measuring_takes_little_more_memory_than_the_scores():
    import tracemalloc

    scores = np.random.default_rng(0).random((65536, 64), dtype=np.float32)
    problem = AssignmentProblem(scores, 2)
    solution = solve_exact(problem)
    tracemalloc.start()
    recertify(problem, solution)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * scores.nbytes
