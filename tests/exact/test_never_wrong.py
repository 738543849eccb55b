"""An optimum is one of the scores as given: whatever masks, sizes and ties, by whichever solver, or it is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
from _exactly import exact_optimum, hard_problems, is_feasible, plan_value
from hypothesis import given, settings
from typer.testing import CliRunner

from alflb import duality
from alflb.cli.app import app
from alflb.exact import BatchedProblem, SolverError, recertify, solve_exact, solve_streaming
from alflb.exact import units as units_module
from alflb.exact.units import NeededScores
from alflb.problem import AssignmentProblem

EPS = Fraction(2) ** -52
OUTSIDE = ["highs", "cvxpy", "mincostflow"]


def rounding(problem, plan):
    """What a compensated sum in float64, of scores as small as float64 has, may be off."""
    used = np.abs(problem.scores_TE[plan.toarray() > 0])
    return 2 * EPS * sum((Fraction(float(score)) for score in used), Fraction(0)) + len(used) * Fraction(2) ** -1074


def largest(problem):
    """The largest finite score in size."""
    return float(np.abs(problem.scores_TE[problem.scores_TE > -np.inf]).max())


def refuses(problem, words):
    """Whether the solver gives up with these words; other errors pass through."""
    try:
        solve_exact(problem)
    except SolverError as error:
        return words in str(error)
    return False


@settings(max_examples=400)
@given(hard_problems())
def test_our_solver_finds_the_very_optimum_or_says_that_float64_cannot_hold_it(problem):
    expected = exact_optimum(problem)
    if expected is None:
        with pytest.raises(SolverError, match="no balanced assignment exists"):
            solve_exact(problem)
        return
    if largest(problem) > 1e300 and refuses(problem, "too large for float64"):
        return
    solution = solve_exact(problem)
    assert is_feasible(problem, solution.plan)
    assert plan_value(problem, solution.plan) == expected
    assert solution.gap == 0.0
    assert abs(Fraction(solution.value) - expected) <= rounding(problem, solution.plan)
    batched = solve_exact(
        BatchedProblem(
            lambda: np.split(problem.scores_TE, [1]) if problem.num_tokens > 1 else [problem.scores_TE],
            problem.top_k,
            problem.target_E,
        )
    )
    assert abs(Fraction(batched.value) - expected) <= rounding(problem, solution.plan)


@settings(max_examples=150)
@given(hard_problems())
def test_what_outside_solvers_and_recertify_let_pass_is_the_optimum(problem):
    """To within what the certificate says: 1e-12 of 16 usual scores for every pick."""
    expected = exact_optimum(problem)
    for method in OUTSIDE:
        try:
            solution = solve_exact(problem, method=method)
            solution = recertify(problem, solution)
        except SolverError:
            continue
        assert is_feasible(problem, solution.plan), method
        value = plan_value(problem, solution.plan)
        assert value <= expected, method
        used = np.abs(problem.scores_TE[solution.plan.toarray() > 0].astype(float))
        usual = (
            min([size for size in used if size > 0], default=0.0)
            + np.abs(problem.scores_TE.max(axis=1)).astype(float).max()
        )
        assert float(expected - value) <= 1e-10 * used.size * usual, method
        assert Fraction(solution.upper_bound) >= expected - rounding(problem, solution.plan), method


@settings(max_examples=60)
@given(hard_problems())
def test_streaming_bounds_hold_the_optimum_between_them(problem):
    expected = exact_optimum(problem)
    batches = BatchedProblem(lambda: [problem.scores_TE], problem.top_k, problem.target_E)
    if largest(problem) > NeededScores.of(problem.scores_TE, problem.top_k).limit:
        with pytest.raises(ValueError, match="use -inf to forbid a pair"):
            solve_streaming(batches)
        return
    if largest(problem) > 1e30:
        return
    solution = solve_streaming(batches, max_passes=4, must_converge=False)
    if expected is None:
        assert solution.lower_bound == -np.inf
        assert not solution.converged
    else:
        assert solution.lower_bound <= expected <= solution.upper_bound


MASKED = np.random.default_rng(0).random((64, 8)).astype(np.float32)


@pytest.mark.parametrize("method", ["screen", *OUTSIDE])
@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e15, -1e16, -3e38, float(np.finfo(np.float32).min)])
def test_a_mask_of_any_size_is_a_forbidden_pair(mask, method):
    rng = np.random.default_rng(0)
    rng.random((64, 8))
    is_masked = rng.random((64, 8)) < 0.3
    problem = AssignmentProblem(np.where(is_masked, np.float32(mask), MASKED), 2)
    solution = solve_exact(problem, method=method)
    assert solution.value == pytest.approx(99.003388, abs=1e-6)
    assert recertify(problem, solution).gap < 1e-12
    assert (mask < recertify(problem, solution).forbidden_below) == (mask < -1e5)  # and is said to be one
    assert solve_exact(AssignmentProblem(MASKED, 2), method=method).forbidden_below == -np.inf


@pytest.mark.parametrize("huge", [-3e38, -1.7e308])
def test_three_tokens_by_hand(huge):
    scores = [[0.9, huge, 0.1], [0.8, 0.2, huge], [0.7, 0.6, 0.5]]
    assert solve_exact(AssignmentProblem(scores, 1)).value == 0.9 + 0.2 + 0.5


def test_a_mask_that_has_to_be_used_costs_no_digit_of_the_others():
    """Expert 1 needs two of three tokens, and two are masked; which one of them pays is worth 0.3."""
    for mask in (-1e9, -1e16, -3e38):
        problem = AssignmentProblem(np.array([[0.5, mask], [0.2, mask], [0.9, 0.1]], np.float32), 1, [1.0, 2.0])
        assert solve_exact(problem).plan.toarray()[:, 0].tolist() == [1, 0, 0]


def test_scores_that_vanish_beside_a_mask_still_count():
    """1e-41 over a quantum of 1e284 is 0 in float64."""
    scores = [[-1e300, 8e-41, 4e-41, 1e-41], [-1e30, 7e-41, 3e-41, 6e-41]]
    problem = AssignmentProblem(scores, 3)
    assert plan_value(problem, solve_exact(problem).plan) == exact_optimum(problem)


@pytest.mark.parametrize("c", [1e-30, 1e-35, 1e-38, 1e-40, 1e-44])
def test_tiny_float32_scores_are_not_called_infeasible(c):
    problem = AssignmentProblem(np.array([[c, 2 * c], [c, 3 * c]], np.float32), 1)
    solution = solve_exact(problem)
    assert solution.plan.toarray().argmax(axis=1).tolist() == [0, 1]
    assert recertify(problem, solution).gap == 0.0


@pytest.mark.parametrize("c", [1e-300, 1e-308, 1e-315, 1e-323])
def test_tiny_float64_scores_are_solved_and_recertified(c):
    problem = AssignmentProblem([[c, 0.0], [c, c / 2]], 1)
    solution = recertify(problem, solve_exact(problem))
    assert solution.value == c + c / 2


def test_a_case_that_once_ran_for_ever():
    scores = np.array([[1e-40, 2e-40, 0], [1e-40, 3e-40, 0]], np.float32)
    problem = AssignmentProblem(scores, 1, [0.7, 0.9, 0.4])
    expected = solve_exact(AssignmentProblem(scores.astype(np.float64) * 1e40, 1, [0.7, 0.9, 0.4]), method="highs")
    assert solve_exact(problem).value == pytest.approx(1e-40 * expected.value, rel=1e-4)


def test_an_optimum_beyond_float64_is_refused():
    for method in ("screen", *OUTSIDE):
        with pytest.raises(SolverError, match="use -inf to forbid a pair"):
            solve_exact(AssignmentProblem(np.full((4, 2), 1.7e308), 1), method=method)


def test_scores_left_out_at_first_come_back_when_they_pay(monkeypatch):
    """With hardly any distance asked of them, the proof must tell when they matter."""
    monkeypatch.setattr(units_module, "_APART", 1.0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        scores = np.where(rng.random((6, 3)) < 0.4, -1.5 * rng.random((6, 3)) - 1.0, rng.random((6, 3)))
        problem = AssignmentProblem(scores, 1)
        assert plan_value(problem, solve_exact(problem).plan) == exact_optimum(problem)


@pytest.mark.parametrize("seed", range(4))
def test_dual_value_of_the_bias_does_not_fall_below_the_optimum(seed):
    """The value is summed with compensation, so D(p*) may undercut it by the rounding of D alone."""
    scores = np.random.default_rng(seed).random((4096, 16))
    solution = solve_exact(AssignmentProblem(scores, 4))
    picked = [Fraction(float(score)) for score in np.take_along_axis(scores, solution.experts_TK, axis=1).ravel()]
    assert abs(Fraction(solution.value) - sum(picked)) <= EPS * sum(picked)
    assert recertify(AssignmentProblem(scores, 4), solution).upper_bound >= solution.value
    assert duality.dual_value(AssignmentProblem(scores, 4), solution.bias_E) >= solution.value * (1 - 1e-14)


def test_the_command_line_certifies_what_is_proved_and_nothing_else(tmp_path):
    scores = np.where(np.random.default_rng(1).random((64, 8)) < 0.3, np.float32(-1e9), MASKED)
    np.savez(tmp_path / "masked.npz", scores=scores)
    for method in ("auto", "highs"):
        done = CliRunner().invoke(
            app, ["solve", str(tmp_path / "masked.npz"), "--top-k", "2", "--method", method, "--json"]
        )
        assert done.exit_code == 0
        expected = solve_exact(AssignmentProblem(np.where(scores < -1, -np.inf, scores).astype(np.float32), 2)).value
        assert json.loads(done.stdout)["value"] == pytest.approx(expected, rel=1e-12)
    np.savez(tmp_path / "beyond.npz", scores=np.full((4, 2), 1.7e308))
    done = CliRunner().invoke(app, ["solve", str(tmp_path / "beyond.npz"), "--top-k", "1"])
    assert done.exit_code == 1
    assert "Certified" not in done.output
