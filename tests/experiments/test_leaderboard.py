"""The leaderboard's own parts: baselines, tuning, ranks and the duel, on cases small enough to see through."""

import numpy as np
import pytest

from alflb import make_rule, metrics, rule_names, simulate, solve_exact, stream_names
from alflb.problem import AssignmentProblem
from alflb.rules import RULES, STEP_SIZES
from experiments import leaderboard as board

CELL = {"stream": "logistic", "num_tokens": 64, "num_experts": 8, "top_k": 2, "num_steps": 16}


def test_every_stream_and_every_rule_is_on_the_board():
    assert set(stream_names()) < {cell["stream"] for cell in board.GRID}
    rows = board.run(CELL, 0)
    assert [row["rule"] for row in rows] == [*rule_names(), *board.BASELINES]


def test_gates_lie_between_zero_and_one_on_every_stream():
    for cell in board.GRID:
        small = cell | {"num_tokens": 64, "num_experts": 8, "num_steps": 2}
        batches, top_k = board.record(small, 3)
        for batch in batches:
            assert 0 <= batch.min() < batch.max() <= 1, cell["stream"]
        assert 1 <= top_k < batches[0].shape[1]


def test_text_begins_at_another_place_for_another_seed():
    cell = CELL | {"stream": "trace", "num_steps": 1}
    (first,), (again,), (other,) = (board.record(cell, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_tuned_rules_get_the_same_number_of_candidates_on_a_grid_that_increases():
    counts = set()
    for name in rule_names():
        tuned = RULES.get(name).tuned
        if tuned is not None:
            assert list(tuned.values) == sorted(set(tuned.values))
            assert isinstance(make_rule(name, **{tuned.name: tuned.values[0]}), RULES.get(name))
            counts.add(len(tuned.values))
    assert counts == {7}


def test_the_tuned_value_is_the_best_of_the_grid_on_the_tuning_seed():
    batches, top_k = board.record(CELL, board.TUNING_SEED)
    setting = board._tune("sign", batches, top_k)
    scores = []
    for value in STEP_SIZES:
        run = simulate(board.Recorded(batches), make_rule("sign", value), top_k=top_k, num_steps=16)
        scores.append(metrics.max_vio(run)[8:].mean())
    assert setting.value == STEP_SIZES[int(np.argmin(scores))]
    assert setting.tuning_max_vio == min(scores)


def test_a_row_is_what_a_run_of_the_rule_says():
    batches, top_k = board.record(CELL, 0)
    row = next(row for row in board.run(CELL, 0) if row["rule"] == "exact")
    run = simulate(board.Recorded(batches), make_rule("exact"), top_k=top_k, num_steps=16)
    assert row["max_vio"] == metrics.max_vio(run)[8:].mean()
    assert row["max_vio_worst"] == metrics.max_vio(run)[8:].max()
    judged = np.linspace(8, 15, board.LP_BATCHES).astype(int)
    optimum = sum(solve_exact(AssignmentProblem(batches[n], top_k)).value for n in judged)
    assert board._Judge.of(batches, top_k).optimum == pytest.approx(optimum)
    assert row["gap"] == pytest.approx(0.0, abs=1e-9)


def test_gaps_are_not_negative_and_multiplicative_has_none():
    for row in board.run(CELL, 1):
        if row["rule"] in (*board.BASELINES, "multiplicative"):
            assert row["gap"] is None
        else:
            assert row["gap"] >= -1e-9


def test_the_multiplicative_rule_is_judged_by_the_scores_not_their_logarithms():
    rows = {row["rule"]: row for row in board.run(CELL, 0)}
    assert rows["multiplicative"]["affinity"] == pytest.approx(rows["sign"]["affinity"], rel=0.1)


SCORES = np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.7, 0.2, 0.1], [0.8, 0.6, 0.3, 0.5], [0.7, 0.1, 0.6, 0.2]])


def test_capacity_drop_by_hand():
    # K = 2: picks 01, 01, 01, 02; target 2, capacity floor(1.25 x 2) = 2: expert 0 drops tokens 2, 3, expert 1 token 2
    served = board._capacity_drop(SCORES, 2)
    assert served.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_expert_choice_by_hand():
    # two tokens each: experts 0 and 1 take tokens 0 and 1, expert 2 takes 2 and 3, expert 3 takes 2 and, of 0 and 3,
    # which tie, the one that was made better
    served = board._expert_choice(SCORES - np.array([0.0, 0.0, 0.0, 1e-9]) * np.arange(4)[:, None], 2)
    assert served.astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]


def test_settling_is_the_end_of_the_first_ten_steps_with_a_low_mean():
    max_vio = np.array([1.0] * 5 + [0.0] * 15)
    assert board._first_settled(max_vio, 0.05) == 15
    assert board._first_settled(max_vio, 0.5) == 10
    assert board._first_settled(max_vio + 1, 0.5) is None


def rows_of(values):
    """Rows from {(rule, stream, seed): MaxVio}; the tuning MaxVio is that of seed 0."""
    return [
        {
            "rule": rule,
            "stream": stream,
            "seed": seed,
            "sees": "loads",
            "tuned": "schedule",
            "max_vio": value,
            "tuning_max_vio": values[rule, stream, 0],
        }
        for (rule, stream, seed), value in values.items()
    ]


def test_ranks_share_ties_and_leave_baselines_out():
    rows = rows_of(
        {(r, s, 0): v for s in "ab" for r, v in (("x", 1.0), ("y", 1.0), ("z", 3.0), ("expert_choice", 0.0))}
    )
    rows = [row | {"max_vio": 0.5} if (row["rule"], row["stream"]) == ("z", "b") else row for row in rows]
    assert board._mean_ranks(rows) == {"x": [(1.5 + 2.5) / 2], "y": [2.0], "z": [(3 + 1) / 2]}


@pytest.mark.parametrize(("rival", "holds"), [(0.5, False), (1.0, True), (2.0, True)])
def test_the_sign_rule_loses_a_duel_only_outside_the_interval(rival, holds):
    values = {("sign", "a", seed): 1.0 + 0.01 * seed for seed in range(4)}
    values |= {("other", "a", seed): rival for seed in range(4)}
    values |= {("third", "a", seed): 5.0 for seed in range(4)}
    values |= {("recentred_sign", "a", seed): 0.1 for seed in range(4)}  # routes as sign does: no rival
    if rival == 1.0:
        values |= {("other", "a", seed): 1.0 + 0.01 * (3 - seed) for seed in range(4)}
    finding = board._duel(rows_of(values), "a")
    assert "`other`" in finding.statement
    assert finding.holds is holds
