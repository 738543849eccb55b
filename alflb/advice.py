"""Which step size should I use? The law of the sign rule, read off a sample of one's own router scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from alflb import bounds
from alflb.duality import center
from alflb.exact import recertify, solve_exact
from alflb.population import SampledScores
from alflb.problem import AssignmentProblem, check_count, check_number

ARRIVAL_SHARE = 0.05
"""A run that needs more of its steps than this to arrive should begin with a larger one."""

LARGEST_PULL = 2.2
"""Pull u sqrt(2/pi) h_max / sigma up to which the law holds within 5% (docs/experiments/steady_state.md)."""


@dataclass(frozen=True, eq=False)
class Advice:
    """What the sign rule does at the recommended step size, on scores like these and batches of this size."""

    step_size: float
    """The largest u whose steady MaxVio exceeds the sampling floor by at most the excess asked for, score units."""
    max_vio: float
    """Mean MaxVio of a batch in the steady state at that u."""
    max_vio_floor: float
    """The same under the best fixed bias: sampling noise, which no step size removes."""
    arrival_steps: int
    """Steps from bias 0 to the farthest expert's optimal bias at that u."""
    first_step_size: float | None
    """What to begin with where arrival would take too long; None where it does not, or no length was given."""
    first_steps: int | None
    """How many steps to take at `first_step_size`."""
    optimal_bias_E: NDArray[np.float64]
    """p* of the sample, centered: a bias to start from, which saves the arrival."""
    curvatures: NDArray[np.float64]
    """Modes h of the Hessian at p*, ascending, 1 / score units."""

    @property
    def bias_distance(self) -> float:
        """Distance of the farthest bias from 0: max |p*|, score units."""
        return float(np.abs(self.optimal_bias_E).max())


def advise(
    scores: ArrayLike, top_k: int, *, batch_tokens: int, num_steps: int | None = None, excess: float = 0.05
) -> Advice:
    r"""A step size for the sign rule, from a sample of router scores.

    Under sampling noise the steady state of the sign rule is known from u, T, E, K and the curvatures of the dual at
    p*: `alflb.bounds.sign_rule_law`, corrected for the skewness of a load (docs/experiments/steady_state.md). MaxVio
    grows with u from the floor that sampling leaves under any bias, and arrival takes max |p*| / u steps. So the best u
    is the largest one that costs little above the floor.

    Parameters
    ----------
    scores : array_like, shape (tokens, E)
        A representative sample, some ten thousand tokens or more; finite.
    top_k : int
        K < E.
    batch_tokens : int
        T, the tokens whose loads one bias update sees (all ranks and accumulation steps together).
    num_steps : int, optional
        Length of the run, for a first phase with larger steps where arrival would take more than 5% of it.
    excess : float
        Accepted rise of MaxVio over the sampling floor, as a share of it.

    Returns
    -------
    Advice

    Raises
    ------
    ValueError
        For bad scores, K = E, or numbers that are not positive.

    Notes
    -----
    It holds for scores whose law does not move. Where p* moves - text in its order, a router that learns fast -
    a larger step is better: `alflb.bounds.best_tracking_step`, docs/experiments/tracking.md.

    Examples
    --------
    >>> import alflb
    >>> trace = alflb.load_router_trace()
    >>> advice = advise(trace.scores_TE, trace.top_k, batch_tokens=2048)
    >>> 1e-4 < advice.step_size < 1e-2, advice.max_vio <= 1.0501 * advice.max_vio_floor
    (True, True)
    """
    check_number(excess, "excess", positive=True)
    check_count(batch_tokens, "batch_tokens")
    population = SampledScores(scores, top_k)
    problem = AssignmentProblem(population.scores_TE, population.top_k)
    optimum_E = np.asarray(center(recertify(problem, solve_exact(problem)).bias_E), dtype=np.float64)
    curvatures: NDArray[np.float64] = np.asarray(population.curvatures(optimum_E), dtype=np.float64)
    if curvatures[0] <= 1e-9 * curvatures[-1]:
        raise ValueError("scores: some experts never compete at the top-K boundary in this sample; pass more tokens")

    def steady_max_vio(step_size: float) -> float:
        law = bounds.sign_rule_law(step_size, batch_tokens, population.top_k, curvatures)
        return law.max_vio * bounds.skewness_factor(batch_tokens, population.top_k, population.num_experts)

    floor = steady_max_vio(0.0)
    step_size = min(
        _largest_step(steady_max_vio, (1 + excess) * floor), _law_limit(population, batch_tokens, curvatures)
    )
    distance = float(np.abs(optimum_E).max())
    arrival = math.ceil(distance / step_size)
    first_size, first_steps = _first_phase(distance, arrival, num_steps)
    return Advice(step_size, steady_max_vio(step_size), floor, arrival, first_size, first_steps, optimum_E, curvatures)


def _largest_step(max_vio: Callable[[float], float], most: float) -> float:
    """The u at which MaxVio, which grows with u, is `most`."""
    high = 1e-6
    while max_vio(high) < most:
        high *= 2
    return float(scipy.optimize.brentq(lambda u: max_vio(u) - most, 0.0, high, rtol=1e-6))


def _law_limit(population: SampledScores, batch_tokens: int, curvatures: NDArray[np.float64]) -> float:
    share = population.top_k / population.num_experts
    sigma = math.sqrt(share * (1 - share) / batch_tokens)
    return LARGEST_PULL * sigma / (math.sqrt(2 / math.pi) * float(curvatures[-1]))


def _first_phase(distance: float, arrival: int, num_steps: int | None) -> tuple[float | None, int | None]:
    """A larger step that arrives within the share of the run that may be spent on it."""
    if num_steps is None or arrival <= ARRIVAL_SHARE * check_count(num_steps, "num_steps"):
        return None, None
    steps = max(1, math.floor(ARRIVAL_SHARE * num_steps))
    return distance / steps, steps
