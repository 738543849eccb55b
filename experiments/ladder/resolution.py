"""What a rung of the ladder can tell apart, computed before it is run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from alflb.bounds import sampling_max_vio
from alflb.io import Row
from experiments._moe_settings import Size


class Resolution(NamedTuple):
    """What chance alone leaves at one rung."""

    target_load: float
    """L, tokens per expert and batch."""
    batch_floor: float
    """Mean MaxVio of a training batch under the best fixed bias, tokens independent."""
    held_out_floor: float
    """The same for the loads summed over the held-out text."""
    travel: float
    """How far apart the sign rule with u = 0.001 can bring two biases, score units."""
    perplexity_width: float
    """Half the 95% interval of a paired difference of perplexities, relative; NaN for one seed."""


def resolution(size: Size, num_seeds: int, loss_sd: float) -> Resolution:
    """The resolution of a rung.

    Parameters
    ----------
    size : Size
    num_seeds : int
    loss_sd : float
        Standard deviation over seeds of the difference of two arms' validation losses, nats: see `paired_loss_sd`.

    Examples
    --------
    >>> from experiments._moe_settings import SIZES
    >>> rung = resolution(SIZES["5m"], num_seeds=3, loss_sd=0.01)
    >>> rung.target_load, round(rung.batch_floor, 2), round(rung.held_out_floor, 3), round(rung.perplexity_width, 3)
    (36.0, 0.42, 0.058, 0.025)
    """

    def floor(num_tokens: int) -> float:
        return sampling_max_vio(num_tokens, size.top_k, size.num_experts)

    width = math.nan
    if num_seeds > 1:
        width = float(stats.t.ppf(0.975, num_seeds - 1)) * loss_sd / math.sqrt(num_seeds)
    return Resolution(
        target_load=size.tokens_per_step * size.top_k / size.num_experts,
        batch_floor=floor(size.tokens_per_step),
        held_out_floor=floor(size.evaluation_tokens),
        travel=2 * 1e-3 * size.num_steps,
        perplexity_width=width,
    )


def paired_loss_sd(rows: Sequence[Row]) -> float:
    """Standard deviation over seeds of the loss difference of two arms, pooled over all pairs of arms.

    Raises
    ------
    ValueError
        If no two arms have two seeds in common.
    """
    losses: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == "run":
            losses.setdefault(row["arm"], {})[row["seed"]] = row["validation_loss"]
    variances = [_difference_variance(one, other) for one, other in itertools.combinations(losses.values(), 2)]
    known = [variance for variance in variances if variance is not None]
    if not known:
        raise ValueError("the rows have no two arms with two seeds in common; give the results of at least two seeds")
    return math.sqrt(float(np.mean(known)))


def _difference_variance(one: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return None
    return float(np.var([one[seed] - other[seed] for seed in seeds], ddof=1))
