"""The exact optimum of the assignment problem, by interchangeable solvers, always re-certified."""

from __future__ import annotations

from alflb.exact._facade import method_names, solve_exact
from alflb.exact._solution import AssignmentSolution, Residuals, SolverError, certify

__all__ = ["AssignmentSolution", "Residuals", "SolverError", "certify", "method_names", "solve_exact"]
