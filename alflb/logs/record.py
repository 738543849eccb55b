"""The record of one layer: what every reader of logs returns, and what diagnosis and advice take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count


@dataclass(frozen=True, eq=False)
class Record:
    """Loads, and if they were logged biases, of one layer over N steps.

    Parameters
    ----------
    load_NE : integer array, shape (N, E)
        Tokens per expert at each step, over all ranks and micro-batches.
    step_N : integer array, shape (N,)
        Number of each step, increasing.
    bias_NE : array, shape (N + 1, E), optional
        The bias in force at each step, and after the last one: ``load_NE[n]`` moved ``bias_NE[n]`` to
        ``bias_NE[n + 1]``. None where biases were not logged, or steps are missing in between.
    top_k : int, optional
        Experts per token; None where the log does not say.
    notes : tuple of str
        What a reader had to decide, for the user to know.

    Raises
    ------
    ValueError
        If the arrays do not fit together.

    Examples
    --------
    >>> record = Record(np.array([[3, 1], [2, 2]]), step_N=np.array([10, 11]), top_k=1)
    >>> record.num_experts
    2
    """

    load_NE: NDArray[np.int64]
    step_N: NDArray[np.int64]
    bias_NE: NDArray[np.float64] | None = None
    top_k: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.load_NE.ndim != 2 or self.load_NE.size == 0 or self.load_NE.dtype.kind != "i":
            raise ValueError(
                f"loads are {self.load_NE.dtype} of shape {self.load_NE.shape}; pass integers (steps, experts)"
            )
        if self.step_N.shape != (len(self.load_NE),) or np.any(np.diff(self.step_N) <= 0):
            raise ValueError(f"steps are not {len(self.load_NE)} increasing numbers, one per row of the loads")
        shape = (len(self.load_NE) + 1, self.load_NE.shape[1])
        if self.bias_NE is not None and self.bias_NE.shape != shape:
            raise ValueError(f"biases have shape {self.bias_NE.shape}; these loads need {shape}")

    @property
    def num_experts(self) -> int:
        """E."""
        return self.load_NE.shape[1]

    def checked(self, top_k: int | None, num_experts: int | None) -> Record:
        """The same with K where the log does not say it; ValueError if it says something else."""
        if num_experts is not None and check_count(num_experts, "num_experts") != self.num_experts:
            raise ValueError(f"num_experts is {num_experts}, but the log has {self.num_experts} experts")
        if top_k is None:
            return self
        check_count(top_k, "top_k")
        if self.top_k is not None and self.top_k != top_k:
            raise ValueError(f"top_k is {top_k}, but the log says {self.top_k}")
        if top_k > self.num_experts:
            raise ValueError(f"top_k is {top_k}, but the log has {self.num_experts} experts")
        return replace(self, top_k=top_k)
