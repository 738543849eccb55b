"""Fixed batches that several experiments share."""

from __future__ import annotations

import numpy as np

from alflb import load_router_trace, make_stream
from alflb.problem import AssignmentProblem

STATIC_SOURCES = ("trace", "linear_router", "uniform", "logistic", "gumbel")
"""Names `static_problem` knows."""


def static_problem(source: str, num_tokens: int, num_experts: int, top_k: int, seed: int) -> AssignmentProblem:
    """One batch: `num_tokens` random tokens of the shipped trace (64 experts, top-6), or the first of a stream."""
    if source == "trace":
        trace = load_router_trace()
        chosen = np.random.default_rng(seed).choice(len(trace.scores_TE), num_tokens, replace=False)
        return AssignmentProblem(trace.scores_TE[np.sort(chosen)].astype(np.float64), trace.top_k)
    stream = make_stream(source, num_tokens=num_tokens, num_experts=num_experts)
    return AssignmentProblem(next(stream.batches(seed)).astype(np.float64), top_k)
