"""How balanced a recorded run was: MinVio, AvgVio and MaxVio of experts, or of the ranks that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from alflb import metrics
from alflb.logs.record import Record

PERCENTILES = (50, 75, 90, 95)
"""Of the layers' MaxVio."""


class LayerBalance(NamedTuple):
    """How balanced one layer was: means over its steps; "global" numbers are of the loads summed over them."""

    num_steps: int
    min_vio: float
    avg_vio: float
    max_vio: float
    max_vio_global: float
    dead_experts_global: int
    """Experts (or ranks) without a token in the whole log."""


def balance_of(record: Record, num_ranks: int | None = None) -> LayerBalance:
    """The balance of a layer's experts, or of the ranks of expert parallelism that hold them.

    Parameters
    ----------
    record : Record
    num_ranks : int, optional
        Number of ranks R: each holds E / R consecutive experts, and its load is the sum of theirs.

    Returns
    -------
    LayerBalance

    Raises
    ------
    ValueError
        If the experts cannot be divided among the ranks.

    Examples
    --------
    >>> record = Record(np.array([[4, 2, 1, 1], [0, 4, 2, 2]]), step_N=np.array([1, 2]))
    >>> balance_of(record).max_vio, balance_of(record, num_ranks=2).max_vio
    (1.0, 0.25)
    """
    load_NE = record.load_NE if num_ranks is None else metrics.rank_loads(record.load_NE, num_ranks)
    return LayerBalance(
        len(load_NE),
        float(metrics.min_vio(load_NE).mean()),
        float(metrics.avg_vio(load_NE).mean()),
        float(metrics.max_vio(load_NE).mean()),
        metrics.max_vio_global(load_NE),
        int(np.count_nonzero(load_NE.sum(axis=0) == 0)),
    )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """The median and the 75th, 90th and 95th percentile of a number per layer, by name.

    Examples
    --------
    >>> percentiles([0.1, 0.2, 0.3])["p50"]
    0.2
    """
    found = np.percentile(list(values), PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found)}
