"""Routing by thresholds: one quantile per expert is the optimum without the constraint on tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from alflb import make_stream, thresholds


@st.composite
def batches(draw):
    """Distinct scores, and whole targets below T."""
    tokens, experts = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores_TE = rng.permutation(tokens * experts).reshape(tokens, experts) / 64.0
    return scores_TE, rng.integers(0, tokens, experts).astype(float)


@given(batch=batches())
def test_one_step_balances_the_batch_it_was_made_from(batch):
    scores_TE, target_E = batch
    threshold_E = thresholds.next_threshold(scores_TE, np.zeros(len(target_E)), target_E, decay=0.0)
    np.testing.assert_array_equal(thresholds.choose(scores_TE, threshold_E).sum(axis=0), target_E)


@given(batch=batches(), seed=st.integers(0, 1000))
def test_its_value_is_the_optimum_and_every_threshold_bounds_it(batch, seed):
    scores_TE, target_E = batch
    tokens, experts = scores_TE.shape
    threshold_E = thresholds.next_threshold(scores_TE, np.zeros(experts), target_E, decay=0.0)
    value = scores_TE[thresholds.choose(scores_TE, threshold_E)].sum()
    assert value == thresholds.dual_value(scores_TE, threshold_E, target_E)
    solved = linprog(-scores_TE.ravel(), A_eq=np.tile(np.eye(experts), tokens), b_eq=target_E, bounds=(0, 1))
    assert -solved.fun == pytest.approx(value, abs=1e-9)
    other_E = np.random.default_rng(seed).normal(size=experts)
    assert thresholds.dual_value(scores_TE, other_E, target_E) >= value


def test_by_hand():
    scores_TE = np.array([[4.0, 1.0], [3.0, 2.0], [1.0, 4.0], [2.0, 3.0]])
    # the third largest of (4, 3, 2, 1) is 2, the second 3
    first_E = thresholds.next_threshold(scores_TE, [0.0, 0.0], [2.0, 1.0], decay=0.5)
    assert first_E.tolist() == [1.0, 1.5]
    assert thresholds.next_threshold(scores_TE, first_E, [2.0, 1.0], decay=0.5).tolist() == [1.5, 2.25]
    assert thresholds.choose(scores_TE, first_E).sum(axis=1).tolist() == [1, 2, 1, 2]


def test_forbidden_pairs_and_fractional_targets():
    scores_TE = np.array([[0.5, -np.inf], [0.25, -np.inf], [0.125, 1.0]])
    assert thresholds.next_threshold(scores_TE, [0.0, 0.75], [1.5, 2.0], decay=0.0).tolist() == [0.25, 0.75]


def test_in_a_stream_tokens_use_top_k_experts_on_average():
    stream = make_stream("logistic", num_tokens=4096, num_experts=16)
    target_E, threshold_E, loads = np.full(16, 1024.0), np.zeros(16), []
    for _, scores_TE in zip(range(60), stream.batches(0)):
        loads.append(thresholds.choose(scores_TE, threshold_E).sum(axis=0))
        threshold_E = thresholds.next_threshold(scores_TE, threshold_E, target_E)
    settled_NE = np.array(loads[30:])
    assert settled_NE.sum(axis=1).mean() / 4096 == pytest.approx(4.0, rel=0.02)
    assert abs(settled_NE.mean(axis=0) / 1024 - 1).max() < 0.03


def test_the_first_threshold_lets_k_of_e_normal_logits_through():
    logits = 0.3 * np.random.default_rng(0).standard_normal(100_000)
    assert (logits > thresholds.initial_logit(3, 24, 0.3)).mean() == pytest.approx(1 / 8, abs=0.005)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: thresholds.initial_logit(9, 8, 1.0), "top_k is 9"),
        (lambda: thresholds.initial_logit(2, 8, 0.0), "logit_std is 0.0"),
        (lambda: thresholds.choose([[0.5, 0.5]], [0.0]), "threshold_E has shape"),
        (lambda: thresholds.next_threshold([[0.5, 0.5]], [0.0, 0.0], [1.0]), "target_E has shape"),
        (lambda: thresholds.next_threshold([[0.5]], [0.0], [1.0], decay=1.0), "decay is 1.0"),
    ],
)
def test_bad_values_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
