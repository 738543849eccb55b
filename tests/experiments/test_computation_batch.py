"""Loads added up over computation batches: exact sums, and the identities the page states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alflb
from experiments import computation_batch


def test_pieces_are_added_up_and_an_incomplete_group_is_left_out():
    load_QE = np.array([[4, 0], [0, 4], [3, 1], [3, 1], [4, 0]])
    assert computation_batch.pooled_max_vio(load_QE, 1) == pytest.approx((1 + 1 + 0.5 + 0.5 + 1) / 5)
    assert computation_batch.pooled_max_vio(load_QE, 2) == pytest.approx((0 + 0.5) / 2)
    assert computation_batch.pooled_max_vio(load_QE, 4) == pytest.approx(0.25)


def test_pieces_of_a_batch_are_routed_alike_and_counted_apart():
    scores_TE = np.random.default_rng(0).random((40, 64))
    count_PT = np.random.default_rng(1).multinomial(100, np.full(40, 1 / 40), size=3)
    bias_E = np.linspace(0.0, 0.3, 64)
    load_PE = computation_batch.Batch(scores_TE, count_PT).loads(bias_E)
    for piece, count_T in enumerate(count_PT):
        repeated_TE = np.repeat(scores_TE, count_T, axis=0)
        expected_E = alflb.route(repeated_TE, bias_E, computation_batch.TOP_K).load_E
        assert np.array_equal(load_PE[piece], expected_E)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    num_experts=st.integers(2, 8),
    step_size=st.floats(1e-3, 1.0),
    num_steps=st.integers(1, 20),
)
def test_loads_of_the_proportional_rule_telescope(seed, num_experts, step_size, num_steps):
    """MaxVio of all batches together is what the bias moved, over n u."""
    stream = alflb.make_stream("gumbel", num_tokens=16, num_experts=num_experts)
    rule = alflb.make_rule("proportional", step_size)
    run = alflb.simulate(stream, rule, top_k=1, num_steps=num_steps, seed=seed)
    moved_E = run.bias_NE[0] - run.bias_NE[-1]
    assert alflb.max_vio_global(run) == pytest.approx(moved_E.max() / (num_steps * step_size), abs=1e-9)


def test_signs_alone_telescope_so_the_sign_rule_leaves_three_quarters_of_the_noise():
    stream = alflb.make_stream("logistic", num_tokens=512, num_experts=16, offsets=0.0)
    run = alflb.simulate(stream, alflb.make_rule("sign", 0.02), top_k=2, num_steps=4000)
    load_NE = run.load_NE[400:]
    pooled_GE = load_NE[: len(load_NE) // 100 * 100].reshape(-1, 100, 16).sum(axis=1)
    independent_sd = np.sqrt(100 * 512 * (2 / 16) * (14 / 16))
    assert pooled_GE.std(axis=0).mean() / independent_sd == pytest.approx(np.sqrt(np.pi / 2 - 1), rel=0.12)
