"""The regret of a run: what its biases cost, batch by batch, against one bias fixed for the whole run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.duality import dual_value
from alflb.exact import BatchedProblem, solve_exact, solve_streaming
from alflb.population import Population
from alflb.problem import AssignmentProblem
from alflb.streams import Stream, as_stream
from alflb.trajectory import Trajectory, check_trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AGREEMENT = 1e-9
"""Relative difference between LP* and the comparator's own losses, from which on the comparator is refused."""


@dataclass(frozen=True, eq=False)
class Regret:
    """What a run lost against a fixed bias, after 1, 2, ..., N steps."""

    regret_N: NDArray[np.float64]
    """Cumulative regret, score units per token; of hindsight regret only the last entry cannot be negative."""
    comparator_E: NDArray[np.float64]
    """The bias compared with, centered, score units."""
    kind: str
    """"hindsight" or "pseudo"."""
    uncertainty: float
    """How far the last entry may be off because the comparator is only known between bounds; 0 if it is exact."""

    @property
    def final(self) -> float:
        """Regret after all steps, score units per token."""
        return float(self.regret_N[-1])

    @property
    def exponent(self) -> float:
        """Slope of log regret against log step over the second half of the run: 1 linear, 1/2 sqrt, near 0 log."""
        late = np.arange(len(self.regret_N) // 2, len(self.regret_N))
        late = late[self.regret_N[late] > 0]
        if late.size < 2:
            return float("nan")
        return float(np.polyfit(np.log(late + 1.0), np.log(self.regret_N[late]), 1)[0])


def regret(run: Trajectory, against: Stream | str | ArrayLike | Population, *, streaming: bool = False) -> Regret:
    r"""The regret of a run in hindsight, or against the optimum of a known population.

    .. math:: R_n = \frac1T \sum_{m \le n} \big( D_m(p_m) - D_m(p^*) \big), \qquad
              p^* \in \arg\min_p \sum_{m \le N} D_m(p)
              \quad\text{(hindsight)}, \qquad
              R_n = \sum_{m \le n} \big( f(p_m) - \min f \big) \quad\text{(pseudo)}.

    Parameters
    ----------
    run : Trajectory
        A run of `alflb.simulate` with at least two steps.
    against : Stream, str, array_like or Population
        The stream of the run, its name, or the scores of its one batch: batches are read again, and the comparator is
        the optimum of the one assignment problem over all tokens that the run saw, whatever their number and order. Or
        the population that the batches are drawn from, with its dual f per token.
    streaming : bool
        Find the comparator in memory that does not grow with the run (`alflb.solve_streaming`), between two bounds;
        for hindsight only.

    Returns
    -------
    Regret
        In score units per token.

    Raises
    ------
    ValueError
        If the stream is not the one of the run, the comparator's losses do not add up to the pooled optimum, or a
        population has another number of experts.

    Notes
    -----
    The comparator of hindsight is optimal for the whole run, so regret may be negative before the end. It is checked:
    by duality its losses must add up to the value of the pooled optimum.

    References
    ----------
    Theory page on regret; claim C9 for the logarithmic growth.

    Examples
    --------
    >>> from alflb import make_rule, make_stream, simulate
    >>> stream = make_stream("gumbel", num_tokens=64, num_experts=4)
    >>> run = simulate(stream, make_rule("sign", 0.01), top_k=1, num_steps=50)
    >>> found = regret(run, stream)
    >>> found.kind, found.final > 0
    ('hindsight', True)
    """
    check_trajectory(run)
    if isinstance(against, Population):
        if streaming:
            raise ValueError("streaming is for hindsight; against a population there is nothing to stream")
        return _pseudo(run, against)
    return _hindsight(run, as_stream(against), streaming)


def _pseudo(run: Trajectory, population: Population) -> Regret:
    if population.num_experts != run.load_NE.shape[1]:
        raise ValueError(
            f"the population has {population.num_experts} experts, the run {run.load_NE.shape[1]}; pass the population "
            "that the run's batches are drawn from"
        )
    optimum_E = population.optimum()
    least = population.value(optimum_E)
    loss_N = np.array([population.value(bias_E) for bias_E in run.bias_NE[:-1]])
    return Regret(np.cumsum(loss_N - least), optimum_E, "pseudo", 0.0)


def _hindsight(run: Trajectory, stream: Stream, streaming: bool) -> Regret:
    if repr(stream) != run.meta.get("stream"):
        made_on, other = (" ".join(str(one).split())[:80] for one in (run.meta.get("stream"), repr(stream)))
        raise ValueError(f"the run was made on {made_on}, not on {other}; pass its own stream")
    seed, top_k, num_tokens = run.meta["seed"], run.meta["top_k"], run.meta["num_tokens"]
    pooled = BatchedProblem(lambda: itertools.islice(stream.batches(seed), run.num_steps), top_k)
    solution = solve_streaming(pooled) if streaming else solve_exact(pooled)
    loss_N, best_N = np.empty(run.num_steps), np.empty(run.num_steps)
    for n, scores_TE in enumerate(pooled.checked_batches()):
        batch = AssignmentProblem(scores_TE, top_k)
        loss_N[n], best_N[n] = dual_value(batch, run.bias_NE[n]), dual_value(batch, solution.bias_E)
    excess = abs(best_N.sum() - solution.upper_bound)
    if excess > _AGREEMENT * max(abs(solution.upper_bound), abs(best_N).sum()):
        raise ValueError(
            f"the comparator loses {best_N.sum():.9g} on the batches of the run, the pooled optimum is "
            f"{solution.upper_bound:.9g}; the stream must give the same batches each time it is read"
        )
    return Regret(np.cumsum(loss_N - best_N) / num_tokens, solution.bias_E, "hindsight", solution.gap / num_tokens)


def plot_regret(regrets: Mapping[str, Regret]) -> Figure:
    """Regret against the number of steps, one curve per label, on logarithmic axes.

    Parameters
    ----------
    regrets : mapping of label to Regret
        What `regret` returned; all of one kind.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw, hindsight and pseudo-regret are mixed, or values are not what `regret` returned.

    Examples
    --------
    >>> curve = Regret(np.arange(1.0, 11.0), np.zeros(2), "pseudo", 0.0)
    >>> plot_regret({"sign, u = 1e-3": curve}).axes[0].get_xlabel()
    'step n'
    """
    from alflb.plotting import CATEGORIES, draw_in_style, new_figure

    if not isinstance(regrets, Mapping) or not all(isinstance(one, Regret) for one in regrets.values()):
        raise ValueError(
            f"regrets is of type {type(regrets).__name__}; pass what alflb.regret returned by label, {{'sign': found}}"
        )
    kinds = {one.kind for one in regrets.values()}
    if len(kinds) != 1:
        raise ValueError(f"regrets are of {len(kinds)} kinds; pass at least one, and all of one kind")
    with draw_in_style():
        figure, (axis,) = new_figure(1, 1, height=3.2, width=5.2)
        for position, (label, one) in enumerate(regrets.items()):
            steps = np.arange(1, len(one.regret_N) + 1)
            shown = one.regret_N > 0
            color = CATEGORIES[position % len(CATEGORIES)]
            axis.loglog(steps[shown], one.regret_N[shown], color=color, label=label)
        axis.set(xlabel="step n", ylabel="regret (score units per token)", title=f"{kinds.pop().capitalize()} regret")
        axis.legend()
    return figure
