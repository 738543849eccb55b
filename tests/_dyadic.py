"""Instances whose sums are exact in floating point."""

import numpy as np
from hypothesis import strategies as st

from alflb.problem import AssignmentProblem


@st.composite
def dyadic_problems(draw, max_tokens=9, max_experts=6, integral=False):
    """Small problems with scores k/8: full of ties, and every sum is exact in float64."""
    num_experts = draw(st.integers(1, max_experts))
    top_k = draw(st.integers(1, num_experts))
    if integral:
        period = num_experts // np.gcd(num_experts, top_k)
        num_tokens = int(period) * draw(st.integers(1, max(1, max_tokens // int(period))))
    else:
        num_tokens = draw(st.integers(1, max_tokens))
    levels = draw(st.integers(1, 16))
    seed = draw(st.integers(0, 2**32 - 1))
    scores = np.random.default_rng(seed).integers(-levels, levels + 1, (num_tokens, num_experts)) / 8.0
    return AssignmentProblem(scores, top_k)


def dyadic_bias(num_experts, seed, levels=16):
    """A bias k/8, exact in float64."""
    return np.random.default_rng(seed).integers(-levels, levels + 1, num_experts) / 8.0
