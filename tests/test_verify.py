"""The guarantees for one instance: they hold on honest runs, say when they are vacuous, and notice planted faults."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alflb
from alflb import bounds
from alflb.trajectory import Trajectory
from alflb.verify import verify_balance


def problem(seed=0, num_tokens=256, num_experts=4, top_k=1, dtype=np.float64):
    scores_TE = np.random.default_rng(seed).random((num_tokens, num_experts)).astype(dtype)
    return alflb.AssignmentProblem(scores_TE, top_k)


def by_claim(verdicts):
    return {verdict.claim: verdict for verdict in verdicts}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_experts=st.integers(2, 6),
    step_size=st.sampled_from([1e-4, 1e-3, 1e-2, 0.3]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_every_bound_holds_on_an_honest_run(seed, num_experts, step_size, dtype):
    one = problem(seed, num_tokens=60, num_experts=num_experts, dtype=dtype)
    verdicts = verify_balance(one, step_size=step_size, num_steps=80)
    assert [verdict for verdict in verdicts if not verdict.holds] == []


def test_a_bound_that_says_nothing_is_marked():
    found = by_claim(verify_balance(problem(), step_size=0.3, num_steps=20))
    assert "wider than L" in found["C4"].vacuous
    found = by_claim(verify_balance(problem(), step_size=1e-4, num_steps=20))
    assert "longer than the run" in found["C5"].vacuous
    two = problem(num_tokens=2000, num_experts=2)
    found = by_claim(verify_balance(two, step_size=1e-4, num_steps=6000, num_points=4))
    assert not found["C4"].vacuous
    assert not found["C5"].vacuous


def test_another_rule_has_no_band():
    one = problem()
    stream = alflb.Static(one.scores_TE)
    for rule in (alflb.make_rule("proportional", 0.01), alflb.make_rule("sign", lambda t: 0.01 / t)):
        run = alflb.simulate(stream, rule, top_k=1, num_steps=30)
        assert sorted(by_claim(verify_balance(one, run))) == ["C1", "C2", "C6"]


def test_a_run_on_another_batch_is_refused():
    run = alflb.simulate(alflb.Static(problem(1).scores_TE), alflb.make_rule("sign"), top_k=1, num_steps=30)
    with pytest.raises(ValueError, match="are not those of this batch"):
        verify_balance(problem(2), run)
    with pytest.raises(ValueError, match="4 experts, the problem 5"):
        verify_balance(problem(num_experts=5), run)


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan")])
def test_bad_step_sizes_are_refused(step_size):
    with pytest.raises(ValueError, match="step_size is"):
        verify_balance(problem(), step_size=step_size)


@pytest.mark.parametrize(
    ("name", "mutant", "claim"),
    [
        ("sharp_band", lambda most, num_experts: 0.01, "C5"),
        ("gap_bound", lambda violation, spread, score_range: 0.0, "C6"),
    ],
)
def test_a_bound_that_is_too_small_fails(monkeypatch, name, mutant, claim):
    monkeypatch.setattr(bounds, name, mutant)
    assert not by_claim(verify_balance(problem(), step_size=0.01, num_steps=200))[claim].holds


def test_loads_that_leave_the_band_fail():
    """A recorded run whose loads were tampered with, late and at steps where C1, C2 and C6 are not computed."""
    one = problem(num_tokens=2000)
    run = alflb.simulate(alflb.Static(one.scores_TE), alflb.make_rule("sign", 1e-4), top_k=1, num_steps=3000)
    load_NE = run.load_NE.copy()
    load_NE[2500] = [2000, 0, 0, 0]
    bias_NE = np.concatenate([run.bias_NE[:1], 1e-4 * np.cumsum(np.sign(run.target_E - load_NE), axis=0)])
    bias_NE[:2501] = run.bias_NE[:2501]
    tampered = Trajectory(bias_NE, load_NE, run.target_E, {}, run.meta)
    assert not by_claim(verify_balance(one, tampered, num_points=5))["C4"].holds


def test_unequal_targets_have_a_band_of_their_own():
    """One token, targets 2/3 and 1/3: loads are off by 2/3, more than the band of equal targets allows."""
    wanted = alflb.AssignmentProblem([[0.0, 0.0]], 1, [2 / 3, 1 / 3])
    bias_NE = np.array([[0.0, 0.0], [-1.0, 1.0], [0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])
    run = Trajectory(bias_NE, np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), wanted.target_E)
    found = by_claim(verify_balance(wanted, run))
    assert all(verdict.holds for verdict in found.values())
    assert found["C4"].measured == pytest.approx(2 / 3)
    assert found["C4"].bound == 1.0
