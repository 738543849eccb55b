"""Scores as LP solvers like them: every row shifted, the whole divided, so absolute tolerances mean something."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.problem import AssignmentProblem

SPAN = 1024.0
"""Size of the largest scaled score: the solvers' tolerances, 1e-9 at best, are that much finer than they say."""


def normalized_scores(problem: AssignmentProblem) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
    """Return (gamma, allowed, scale): scores = row shift + scale * gamma with gamma in [-SPAN, 0].

    A shift of a row changes the objective by a constant. Forbidden pairs (score -inf) get gamma 0 and
    allowed False.
    """
    scores_TE = problem.scores_TE.astype(np.float64)
    allowed_TE = np.isfinite(scores_TE)
    with np.errstate(over="ignore"):
        shifted_TE = np.where(allowed_TE, scores_TE - scores_TE.max(axis=1, keepdims=True), 0.0)
    scale = float(-shifted_TE.min()) / SPAN or 1.0
    return shifted_TE / scale, allowed_TE, scale
