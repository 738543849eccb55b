"""Moving quantiles along a sequence: by hand, against all past tokens weighed one by one, and what they balance.

``python -m tests.streams.test_sequence_quantiles`` prints the table of docs/rules.md.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb import duality, make_rule, make_stream, simulate
from alflb.problem import AssignmentProblem
from alflb.streams import Static
from alflb.streams.sequence_quantiles import SequenceQuantiles

TOP_K, SEQUENCE = 4, 256
TEXT = make_stream("documents", num_tokens=8 * SEQUENCE, num_experts=32)


def lowered(scores_TE, top_k, sequence_tokens, **constants):
    return next(SequenceQuantiles(Static(scores_TE), top_k, sequence_tokens, **constants).batches(0))


def test_by_hand():
    # four bins, level 1/2. Expert 0: bins 0, 3, 3, weights 1, then 1/2 and 1, then 1/4 and 3/2: quantiles 0, 3, 3.
    # Expert 1: bins 2, 1, 2, weights 1, then 1 in bin 1 and 1/2 in bin 2, then 1/2 and 5/4: quantiles 2, 1, 2.
    scores_TE = np.array([[0.125, 0.625], [0.875, 0.375], [0.875, 0.625]])
    done_TE = lowered(np.vstack([scores_TE, scores_TE]), 1, 3, strength=1.0, decay=0.5, bins=4)
    assert done_TE.tolist() == [[0.0, 0.0]] * 6  # the second sequence starts anew
    half_TE = lowered(scores_TE[::-1].copy(), 1, 3, strength=0.5, decay=0.5, bins=4)
    # backward: expert 0 bins 3, 3, 0: after the last, 3/4 in bin 3 and 1 in bin 0
    assert half_TE[:, 0].tolist() == [0.875 - 0.4375, 0.875 - 0.4375, 0.125 - 0.0625]


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 12),
    experts=st.integers(1, 5),
    bins=st.sampled_from([1, 2, 7, 100]),
    decay=st.sampled_from([0.0, 0.5, 0.9]),
    data=st.data(),
)
def test_the_quantile_is_that_of_all_past_tokens_by_age(seed, length, experts, bins, decay, data):
    top_k = data.draw(st.integers(1, experts))
    scores_TE = np.random.default_rng(seed).random((length, experts))
    beta_TE = (scores_TE - lowered(scores_TE, top_k, length, strength=1.0, decay=decay, bins=bins)) * bins - 0.5
    for i, k in itertools.product(range(length), range(experts)):
        weight = decay ** np.arange(i, -1, -1.0)
        bin_T = np.minimum(scores_TE[: i + 1, k] * bins, bins - 1).astype(int)
        below = np.array([weight[bin_T <= b].sum() for b in range(bins)])
        expected = np.argmax(below >= (1 - top_k / experts) * weight.sum() - 1e-12)
        got = round(beta_TE[i, k])
        tied = abs(below[min(got, expected)] - (1 - top_k / experts) * weight.sum()) < 1e-9
        assert got == expected or tied


def test_later_tokens_change_nothing_before_them():
    scores_TE = np.random.default_rng(0).random((64, 8)).astype(np.float32)
    changed_TE = scores_TE.copy()
    changed_TE[40:] = 0.5
    before, after = lowered(scores_TE, 2, 64), lowered(changed_TE, 2, 64)
    assert before.dtype == np.float32
    np.testing.assert_array_equal(before[:40], after[:40])
    assert (before[40:] != after[40:]).any()


def test_strength_0_changes_nothing():
    scores_TE = np.random.default_rng(0).random((16, 4))
    np.testing.assert_array_equal(lowered(scores_TE, 2, 4, strength=0.0), scores_TE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sequence_tokens": 3}, "sequence_tokens is 3, but batches have 4 tokens"),
        ({"top_k": 3}, "top_k is 3"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"bins": 0}, "bins is 0"),
        ({"strength": -1.0}, "strength is -1.0"),
    ],
)
def test_bad_values_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        SequenceQuantiles(Static(np.full((4, 2), 0.5)), **{"top_k": 1, "sequence_tokens": 2, **arguments})


def test_scores_that_are_no_gates_are_refused():
    with pytest.raises(ValueError, match=r"scores leave \[0, 1\]"):
        lowered(np.full((4, 2), 1.5), 1, 2)


def measure(strength, steps=20):
    """MaxVio per sequence, MaxVio per batch, and affinity per token of the scores before they were lowered."""
    stream = SequenceQuantiles(TEXT, TOP_K, SEQUENCE, strength=strength)
    run = simulate(stream, make_rule("damped_qb"), top_k=TOP_K, num_steps=steps)
    rows = []
    for bias_E, raw_TE, lowered_TE in zip(run.bias_NE, TEXT.batches(0), stream.batches(0)):
        picks_TK = duality.allocate(AssignmentProblem(lowered_TE, TOP_K), bias_E).experts_TK.astype(int)
        vios = [_max_vio(part) for part in np.split(picks_TK, len(picks_TK) // SEQUENCE)]
        rows.append([np.mean(vios), _max_vio(picks_TK), np.take_along_axis(raw_TE, picks_TK, 1).sum() / len(raw_TE)])
    return np.mean(rows[steps // 2 :], axis=0)


def _max_vio(picks_TK):
    load_E = np.bincount(picks_TK.ravel(), minlength=TEXT.num_experts)
    return load_E.max() / load_E.mean() - 1


def test_each_sequence_is_balanced_at_a_price():
    none, some, full = (measure(strength) for strength in (0.0, 0.3, 1.0))
    assert some[0] < 0.9 * none[0]
    assert full[0] < 0.3 * none[0]
    assert 0.99 * none[2] < some[2] < none[2]
    assert full[2] < 0.95 * none[2]


if __name__ == "__main__":
    for strength in (0.0, 0.1, 0.3, 0.6, 1.0):
        sequence, batch, affinity = measure(strength)
        print(f"| {strength} | {sequence:.2f} | {batch:.2f} | {affinity:.3f} |")  # noqa: T201
