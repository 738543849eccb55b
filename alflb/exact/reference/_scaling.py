"""Scores as LP solvers like them: every row shifted, the whole divided, so absolute tolerances mean something."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.exact.results import finite_range
from alflb.problem import AssignmentProblem


def normalised_scores(problem: AssignmentProblem) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
    """Return (gamma, allowed, scale): scores = row shift + scale * gamma with gamma in [-1, 0].

    A shift of a row changes the objective by a constant. Forbidden pairs (score -inf) get gamma 0 and
    allowed False.
    """
    scores_TE = problem.scores_TE.astype(np.float64)
    allowed_TE = np.isfinite(scores_TE)
    scale = finite_range(problem) or 1.0
    shifted_TE = scores_TE - scores_TE.max(axis=1, keepdims=True)
    return np.where(allowed_TE, shifted_TE, 0.0) / scale, allowed_TE, scale
