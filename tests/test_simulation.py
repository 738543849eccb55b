"""The loop: by hand, on both backends, against a naive rewrite, and under bad input."""

import numpy as np
import pytest

from alflb import duality
from alflb.exact import solve_exact
from alflb.observers import make_observers, observer_names
from alflb.problem import AssignmentProblem
from alflb.rules import Observation, Rule, Sight, make_rule
from alflb.simulation import simulate
from alflb.streams import Static, make_stream
from alflb.traces import load_router_trace
from alflb.trajectory import Trajectory

SCORES = np.array([[0.75, 0.25], [0.75, 0.5], [0.5, 0.0], [1.0, 0.0]])


def naive_run(batches, rule, top_k, bias):
    """ALF-LB in six lines, with nothing of the library but the rule."""
    biases, loads, state = [bias], [], rule.init(len(bias))
    for t, scores in enumerate(batches, 1):
        picks = np.argsort(-(scores + bias), axis=1, kind="stable")[:, :top_k]
        loads.append(np.bincount(picks.ravel(), minlength=len(bias)))
        target = np.full(len(bias), top_k * len(scores) / len(bias))
        bias, state = rule.step(bias, Observation(t, target, load_E=loads[-1]), state)
        biases.append(bias)
    return np.array(biases), np.array(loads)


def test_three_steps_by_hand():
    """Everyone prefers expert 0 by 0.5, 0.25, 0.5, 1; the sign rule closes a gap of 2u = 0.25 a step."""
    run = simulate(Static(SCORES), make_rule("sign", 0.125), top_k=1, num_steps=4)
    # step 1: all on 0; bias gap 0.25 ties token 1 (stays on 0, lowest index); gap 0.5 ties tokens 0 and 2, moves 1;
    # gap 0.75 moves 0 and 2 as well
    assert run.load_NE.tolist() == [[4, 0], [4, 0], [3, 1], [1, 3]]
    expected = [[0, 0], [-0.125, 0.125], [-0.25, 0.25], [-0.375, 0.375], [-0.25, 0.25]]
    assert run.bias_NE.tolist() == expected
    assert run.target_E.tolist() == [2.0, 2.0]


def test_bias_n_is_the_one_that_produced_load_n():
    run = simulate(Static(SCORES), make_rule("sign", 0.125), top_k=1, num_steps=4)
    problem = AssignmentProblem(SCORES, 1)
    for bias, load in zip(run.bias_NE, run.load_NE):
        assert duality.allocate(problem, bias).load_E.tolist() == load.tolist()


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("rule_name", ["sign", "recentred_sign", "proportional"])
@pytest.mark.parametrize("stream_name", ["uniform", "gumbel", "linear_router", "drift"])
def test_equals_a_naive_rewrite(stream_name, rule_name, backend):
    stream = make_stream(stream_name, num_tokens=60, num_experts=7)
    rule = make_rule(rule_name, 0.03)
    run = simulate(stream, rule, top_k=3, num_steps=12, seed=5, backend=backend)
    batches = [batch for batch, _ in zip(stream.batches(5), range(12))]
    biases, loads = naive_run(batches, rule, 3, np.zeros(7))
    np.testing.assert_array_equal(run.load_NE, loads)
    np.testing.assert_array_equal(run.bias_NE, biases)


def test_rerun_is_bit_identical_and_seeds_differ():
    def run(seed):
        return simulate(
            make_stream("logistic", num_tokens=100, num_experts=8),
            make_rule("proportional", 0.1),
            top_k=2,
            num_steps=20,
            seed=seed,
            observers=make_observers(),
        )

    first, again, other = run(0), run(0), run(1)
    assert first.bias_NE.tobytes() == again.bias_NE.tobytes()
    assert {name: values.tobytes() for name, values in first.series.items()} == {
        name: values.tobytes() for name, values in again.series.items()
    }
    assert first.bias_NE.tobytes() != other.bias_NE.tobytes()


def test_rules_see_the_same_tokens():
    stream = make_stream("uniform", num_tokens=50, num_experts=4)
    loads = [simulate(stream, make_rule(name, 0.0), top_k=1, num_steps=5).load_NE for name in ("sign", "proportional")]
    np.testing.assert_array_equal(*loads)


@pytest.mark.parametrize("observers", [(), ("affinity",)])
def test_the_exact_rule_balances_every_batch_at_the_value_of_its_optimum(observers):
    stream = make_stream("logistic", num_tokens=256, num_experts=8)
    run = simulate(
        stream, make_rule("exact"), top_k=2, num_steps=4, observers=make_observers(*observers) if observers else ()
    )
    assert np.abs(run.load_NE - run.target_E).max() <= 7  # at most E - 1 tokens tie at the boundary
    for n, scores in zip(range(4), stream.batches(0)):
        problem = AssignmentProblem(scores, 2)
        value = solve_exact(problem).value
        assert duality.dual_value(problem, run.bias_NE[n]) == pytest.approx(value, rel=1e-9)
        if observers:
            assert run.series["affinity"][n] == pytest.approx(value, rel=0.01)


def test_recentring_changes_the_gauge_and_nothing_else():
    stream = make_stream("logistic", num_tokens=200, num_experts=8)
    plain, recentred = (
        simulate(stream, make_rule(name, 2.0**-5), top_k=2, num_steps=60) for name in ("sign", "recentred_sign")
    )
    np.testing.assert_array_equal(plain.load_NE, recentred.load_NE)
    np.testing.assert_allclose(duality.center(plain.bias_NE), recentred.bias_NE, atol=1e-12)
    assert np.abs(plain.bias_NE.mean(axis=1)).max() > 1e-3


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("static", [True, False])
def test_observers_agree_with_the_numpy_certificates(backend, static):
    stream = make_stream("linear_router", num_tokens=80, num_experts=6)  # float64 scores
    if static:
        stream = Static(next(stream.batches(0)))
    run = simulate(
        stream, make_rule("sign", 0.1), top_k=2, num_steps=8, seed=2, backend=backend, observers=make_observers()
    )
    assert sorted(run.series) == observer_names()
    for n, scores in zip(range(8), stream.batches(2)):
        problem = AssignmentProblem(scores, 2)
        step = duality.step_certificate(problem, run.bias_NE[n], run.bias_NE[n + 1])
        experts = duality.allocate(problem, run.bias_NE[n]).experts_TK
        assert run.series["dual_value"][n] == pytest.approx(step.dual_before, rel=1e-12)
        assert run.series["affinity"][n] == pytest.approx(duality.affinity(problem, experts), rel=1e-12)
        assert run.series["switched_tokens"][n] == step.switched_tokens
        assert run.series["benefit"][n] == pytest.approx(step.benefit, abs=1e-9)
        assert run.series["monotonicity_slack"][n] == pytest.approx(-step.change, abs=1e-9)


def test_starting_bias_is_used_and_not_changed():
    bias = np.array([0.0, 2.0])
    run = simulate(Static(SCORES), make_rule("sign", 0.5), top_k=1, num_steps=1, bias_init=bias)
    assert run.load_NE.tolist() == [[0, 4]]
    assert bias.tolist() == [0.0, 2.0]


def test_save_and_load_give_the_same_run(tmp_path):
    run = simulate(Static(SCORES), make_rule("sign", 0.5), top_k=1, num_steps=3, observers=make_observers("affinity"))
    run.save(tmp_path / "run.npz")
    loaded = Trajectory.load(tmp_path / "run.npz")
    for name in ("bias_NE", "load_NE", "target_E"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(run, name))
    np.testing.assert_array_equal(loaded.series["affinity"], run.series["affinity"])
    assert loaded.meta == run.meta


def test_loading_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", bias=np.zeros(2))
    with pytest.raises(ValueError, match="not a saved trajectory: it lacks load, meta, target"):
        Trajectory.load(tmp_path / "other.npz")


class ListStream:
    """A user's own stream: given batches."""

    def __init__(self, batches, num_tokens=2, num_experts=2):
        self.given, self.num_tokens, self.num_experts = batches, num_tokens, num_experts

    def batches(self, seed):
        return iter(self.given)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([np.eye(2)], "ended after 1 batches"),
        ([np.eye(2), np.eye(3)], r"batch 2 of .* has shape \(3, 3\)"),
        ([np.eye(2), np.full((2, 2), np.nan)], "scores of batch 2 holds nan"),
        ([np.eye(2, dtype=int)] * 2, "scores of batch 1 has dtype int64"),
    ],
)
def test_bad_streams_are_refused(batches, words):
    with pytest.raises(ValueError, match=words):
        simulate(ListStream(batches), make_rule("sign", 0.1), top_k=1, num_steps=2)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"top_k": 3}, "top_k is 3 but there are 2 experts"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"bias_init": [0.0]}, "bias_init has shape"),
        ({"backend": "tensorflow"}, "unknown backend"),
    ],
)
def test_bad_arguments_are_refused_by_name(parameters, words):
    with pytest.raises(ValueError, match=words):
        simulate(Static(SCORES), make_rule("sign", 0.1), **{"top_k": 1, "num_steps": 2, **parameters})


def test_names_and_scores_stand_for_rules_and_streams():
    named = simulate("gumbel", "sign", top_k=2, num_steps=2)
    made = simulate(make_stream("gumbel"), make_rule("sign"), top_k=2, num_steps=2)
    np.testing.assert_array_equal(named.bias_NE, made.bias_NE)
    given = simulate(SCORES.tolist(), "sign", top_k=1, num_steps=2)
    np.testing.assert_array_equal(given.load_NE, simulate(Static(SCORES), "sign", top_k=1, num_steps=2).load_NE)
    assert given.meta["static"]


@pytest.mark.parametrize(
    ("stream", "rule", "words"),
    [
        (3, "sign", "stream is 3; pass a stream, a name"),
        (load_router_trace(), "sign", "stream is RouterTrace.*TraceReplay"),
        ("gumble", "sign", "unknown stream 'gumble': did you mean 'gumbel'"),
        (np.zeros((3, 8)), "sign", r"scores have shape \(3, 8\), more experts than tokens; .*pass scores\.T"),
        (np.zeros(3), "sign", "scores has shape"),
        ("gumbel", "sine", "unknown rule 'sine'"),
        ("gumbel", 1e-3, "rule is 0.001; pass a name"),
        ("gumbel", type(make_rule("sign")), "rule is <class .*; pass a name"),
    ],
)
def test_what_is_no_stream_or_rule_is_one_clear_line(stream, rule, words):
    with pytest.raises(ValueError, match=words):
        simulate(stream, rule, top_k=1, num_steps=1)


class Recorder(Rule):
    """Writes down what it is shown."""

    def __init__(self):
        self.seen = []

    def step(self, bias_E, seen, state):
        self.seen.append((seen.t, seen.load_E.copy(), bias_E.copy()))
        return bias_E + seen.t, state


class EarlyRecorder(Rule):
    """Writes down which step it is shown, before the batch is routed."""

    sees = Sight.SCORES_BEFORE_ROUTING

    def __init__(self):
        self.seen = []

    def step(self, bias_E, seen, state):
        self.seen.append((seen.t, seen.scores_TE, seen.top_k))
        return bias_E + seen.t, state


def test_a_rule_that_sees_scores_first_counts_the_same_steps_and_sets_the_bias_of_its_batch():
    rule = EarlyRecorder()
    run = simulate(Static(SCORES), rule, top_k=1, num_steps=3)
    assert [t for t, *_ in rule.seen] == [1, 2, 3]
    assert all(scores_TE is rule.seen[0][1] and top_k == 1 for _, scores_TE, top_k in rule.seen)
    np.testing.assert_array_equal(run.bias_NE[:, 0], [1.0, 3.0, 6.0, 6.0])


def test_rule_and_observers_count_steps_from_one_and_see_the_same_step():
    """The t of the rule, of an observer and of on_step; the bias before the step and after it."""
    rule, counted, observed = Recorder(), [], []

    class Watch:
        name = "watch"

        def __call__(self, step):
            observed.append((step.t, step.bias_E.copy(), step.next_bias_E.copy(), step.allocation.load_E))
            return float(step.t)

    run = simulate(Static(SCORES), rule, top_k=1, num_steps=3, observers=[Watch()], on_step=counted.append)
    assert [t for t, *_ in rule.seen] == [t for t, *_ in observed] == counted == [1, 2, 3]
    assert run.series["watch"].tolist() == [1.0, 2.0, 3.0]
    for n in range(3):
        _, load_E, bias_E = rule.seen[n]
        _, before_E, after_E, allocated_E = observed[n]
        np.testing.assert_array_equal(load_E, run.load_NE[n])
        np.testing.assert_array_equal(allocated_E, run.load_NE[n])
        np.testing.assert_array_equal(bias_E, run.bias_NE[n])
        np.testing.assert_array_equal(before_E, run.bias_NE[n])
        np.testing.assert_array_equal(after_E, run.bias_NE[n] + n + 1)
