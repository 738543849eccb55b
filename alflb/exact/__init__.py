"""The exact optimum of the assignment problem, by interchangeable solvers, always re-certified."""

from __future__ import annotations

from alflb.exact._facade import method_names, solve_exact
from alflb.exact.batched import BatchedProblem
from alflb.exact.results import AssignmentSolution, Quantisation, Residuals, SolverError, certify, recertify
from alflb.exact.streaming.pooled import StreamingSolution, solve_streaming

__all__ = [
    "AssignmentSolution",
    "BatchedProblem",
    "Quantisation",
    "Residuals",
    "SolverError",
    "StreamingSolution",
    "certify",
    "method_names",
    "recertify",
    "solve_exact",
    "solve_streaming",
]
