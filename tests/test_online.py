"""Regret: the definition in full, both comparators, and what is refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import alflb
from alflb import online
from alflb.online import Regret


def run_on(stream, num_steps=12, top_k=2, **more):
    return alflb.simulate(stream, alflb.make_rule("sign", 0.01), top_k=top_k, num_steps=num_steps, **more)


@pytest.mark.parametrize("order", ["text", "batches", "shuffled"])
def test_hindsight_is_the_definition_in_any_order_and_number_of_batches(order):
    """On part of a pass and on more than one, the comparator is the optimum of the tokens that were seen."""
    trace = alflb.RouterTrace(np.random.default_rng(3).random((100, 5)), 2)
    for num_steps in (3, 7):
        stream = alflb.make_stream("trace", trace=trace, num_tokens=25, order=order)
        run = run_on(stream, num_steps, seed=5)
        batches = list(itertools.islice(stream.batches(5), num_steps))
        pooled = alflb.solve_exact(alflb.AssignmentProblem(np.concatenate(batches), 2))
        lost = [alflb.dual_value(alflb.AssignmentProblem(b, 2), p) for b, p in zip(batches, run.bias_NE)]
        found = alflb.regret(run, stream)
        assert found.final == pytest.approx((sum(lost) - pooled.value) / 25)
        assert found.final > 0
        assert len(found.regret_N) == num_steps


def test_streaming_agrees_to_within_its_uncertainty():
    stream = alflb.make_stream("gumbel", num_tokens=64, num_experts=4)
    run = run_on(stream, top_k=1)
    exact, streamed = alflb.regret(run, stream), alflb.regret(run, stream, streaming=True)
    assert exact.uncertainty == 0
    assert abs(streamed.final - exact.final) <= streamed.uncertainty + 1e-9


def test_pseudo_regret_against_a_population():
    offsets = (0.1, 0.0, -0.1)
    stream = alflb.make_stream("gumbel", num_tokens=32, num_experts=3, offsets=offsets)
    run = run_on(stream, top_k=1)
    population = alflb.GumbelTopOne(offsets)
    found = alflb.regret(run, population)
    least = population.value(population.optimum())
    assert found.final == pytest.approx(sum(population.value(p) - least for p in run.bias_NE[:-1]))
    assert np.all(np.diff(found.regret_N) >= 0)
    assert found.kind == "pseudo"


def test_another_stream_population_or_mode_is_refused():
    stream = alflb.make_stream("gumbel", num_tokens=32, num_experts=3)
    run = run_on(stream, top_k=1)
    with pytest.raises(ValueError, match="pass its own stream"):
        alflb.regret(run, alflb.make_stream("gumbel", num_tokens=32, num_experts=3, population_seed=1))
    with pytest.raises(ValueError, match="2 experts, the run 3"):
        alflb.regret(run, alflb.GumbelTopOne((0.0, 0.1)))
    with pytest.raises(ValueError, match="nothing to stream"):
        alflb.regret(run, alflb.GumbelTopOne((0.0, 0.1, 0.2)), streaming=True)


def test_a_comparator_that_is_not_the_optimum_is_refused(monkeypatch):
    """Its losses must add up to the pooled optimum, so a stream that changes between readings is noticed too."""
    stream = alflb.make_stream("gumbel", num_tokens=32, num_experts=3)
    run = run_on(stream, 5, top_k=1)
    honest = online.solve_exact
    shifted = np.array([0.1, 0.0, -0.1])
    monkeypatch.setattr(
        online,
        "solve_exact",
        lambda problem: (found := honest(problem)) and replace(found, bias_E=found.bias_E + shifted),
    )
    with pytest.raises(ValueError, match="same batches"):
        alflb.regret(run, stream)


def test_growth_and_figure():
    linear = Regret(np.arange(1.0, 101.0), np.zeros(2), "hindsight", 0.0)
    log = Regret(np.log(np.arange(2.0, 102.0)), np.zeros(2), "hindsight", 0.0)
    assert linear.exponent == pytest.approx(1.0)
    assert log.exponent < 0.3
    figure = alflb.plot_regret({"linear": linear, "log": log})
    assert [line.get_label() for line in figure.axes[0].lines] == ["linear", "log"]
    pseudo = Regret(linear.regret_N, np.zeros(2), "pseudo", 0.0)
    for mixed in ({}, {"a": linear, "b": pseudo}):
        with pytest.raises(ValueError, match="all of one kind"):
            alflb.plot_regret(mixed)
