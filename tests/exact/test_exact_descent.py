"""D minimised from loads alone: against the exact solver, on every backend, and what its bounds are worth."""

import itertools

import numpy as np
import pytest
from _extras import require

from alflb import AssignmentProblem, make_stream, solve_exact
from alflb.exact.descent import minimise_dual

STREAMS = ["logistic", "normal", "linear_router"]


@pytest.fixture(params=["numba", "torch"])
def backend(request):
    if request.param == "torch":
        require("torch")
    return request.param


@pytest.mark.parametrize("name", STREAMS)
def test_reaches_the_optimum_and_bounds_it(name, backend):
    scores_TE = next(make_stream(name, num_tokens=6000, num_experts=12).batches(0))
    optimum = solve_exact(AssignmentProblem(scores_TE, 3)).value
    found = minimise_dual([scores_TE], 3, backend=backend)
    slack = 1e-12 * optimum
    assert found.lower_bound - slack <= optimum <= found.value + slack
    assert found.value - optimum < 1e-6 * optimum
    assert np.abs(found.load_E - 1500).sum() < 40
    assert found.gap_bound < 2e-2 * optimum
    assert abs(found.bias_E.sum()) < 1e-9
    assert found.evaluations < 200


def test_draws_are_routed_unseen_and_give_what_their_arrays_give(backend):
    draws = list(itertools.islice(make_stream("gumbel", num_tokens=3000, num_experts=10).draws(0), 3))
    unseen, seen = (
        minimise_dual(draws, 2, backend=backend),
        minimise_dual([d.scores() for d in draws], 2, backend=backend),
    )
    assert unseen.bias_E.tobytes() == seen.bias_E.tobytes()
    assert (unseen.value, unseen.lower_bound, unseen.evaluations) == (seen.value, seen.lower_bound, seen.evaluations)
    pooled = AssignmentProblem(np.concatenate([draw.scores() for draw in draws]), 2)
    assert unseen.value == pytest.approx(solve_exact(pooled).value, rel=1e-6)


def test_exact_balance_is_proved_optimal():
    found = minimise_dual([np.eye(4)], 1, backend="numba")
    assert found.value == found.lower_bound == 4.0


def test_a_tight_budget_still_gives_valid_bounds():
    scores_TE = next(make_stream("logistic", num_tokens=2000, num_experts=8).batches(0))
    found = minimise_dual([scores_TE], 2, backend="numba", max_evaluations=3)
    assert found.lower_bound < solve_exact(AssignmentProblem(scores_TE, 2)).value < found.value


@pytest.mark.parametrize(
    ("batches", "top_k", "words"),
    [
        ([], 1, "batches is empty"),
        ([np.eye(3), np.eye(4)], 1, "number of experts"),
        ([np.eye(3)], 4, "top_k is 4"),
        ([np.full((2, 2), np.nan)], 1, "holds nan"),
    ],
)
def test_bad_input_is_refused(batches, top_k, words):
    with pytest.raises(ValueError, match=words):
        minimise_dual(batches, top_k, backend="numba")
