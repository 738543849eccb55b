"""What the traces of training batches say: how the bias follows the prices of the LP, and what it costs to lag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alflb import bounds, duality, metrics
from alflb.bounds import TargetMotion, sign_tracking_cost
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem
from alflb.traces import RouterTrace, read_trace

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BatchTraces:
    """Training batches of one router at regular steps, each with the bias that was in force."""

    steps_N: NDArray[np.int64]
    bias_NE: Array
    scores_NTE: NDArray[np.float32]
    top_k: int

    @property
    def spacing(self) -> int:
        """Steps between two batches."""
        return int(self.steps_N[1] - self.steps_N[0])

    def since(self, step: int) -> BatchTraces:
        """The batches from a step on."""
        kept = self.steps_N >= step
        return BatchTraces(self.steps_N[kept], self.bias_NE[kept], self.scores_NTE[kept], self.top_k)


def batch_layers(folder: Path) -> list[int]:
    """Layers of which ``train_moe --trace-every`` left traces in a folder."""
    return sorted({layer for layer, _ in _trace_files(folder)})


def read_batches(folder: Path, layer: int) -> BatchTraces:
    """The traces of one layer that ``train_moe --trace-every`` left in a folder.

    Raises
    ------
    ValueError
        If there are fewer than two, or they are not evenly spaced.
    """
    files = {step: path for (of, step), path in _trace_files(folder).items() if of == layer}
    steps_N = np.array(sorted(files))
    if len(steps_N) < 2 or len(set(np.diff(steps_N))) > 1:
        raise ValueError(f"{folder} has traces of layer {layer} at steps {steps_N.tolist()}; it takes two or more, "
                         "evenly spaced: train with --trace-every")  # fmt: skip
    traces = [trace for step in steps_N if isinstance(trace := read_trace(files[step]), RouterTrace)]
    bias_NE = np.array([trace.bias_E for trace in traces])
    return BatchTraces(steps_N, bias_NE, np.stack([trace.scores_TE for trace in traces]), traces[0].top_k)


def _trace_files(folder: Path) -> dict[tuple[int, int], Path]:
    """Paths by layer and step."""
    named = {path: re.fullmatch(r"layer(\d+)_step(\d+)\.npz", path.name) for path in folder.iterdir()}
    return {(int(match[1]), int(match[2])): path for path, match in named.items() if match}


def prices(scores_NTE: NDArray[np.float32], top_k: int) -> Array:
    """The optimal bias of each batch, centered, shape (N, E)."""
    return np.array([duality.center(solve_exact(AssignmentProblem(part_TE, top_k)).bias_E) for part_TE in scores_NTE])


def pooled(scores_NTE: NDArray[np.float32], num_batches: int) -> NDArray[np.float32]:
    """Consecutive batches put together, `num_batches` at a time; a rest is left out.

    Examples
    --------
    >>> pooled(np.zeros((7, 3, 2), dtype=np.float32), 2).shape
    (3, 6, 2)
    """
    count = len(scores_NTE) // num_batches
    return scores_NTE[: count * num_batches].reshape(count, -1, scores_NTE.shape[2])


def mean_correlation(one_NE: Array, other_NE: Array) -> float:
    """Mean over pairs of biases of their correlation over experts.

    Examples
    --------
    >>> mean_correlation(np.array([[0.0, 1.0, 2.0]]), np.array([[1.0, 3.0, 5.0]]))
    1.0
    """
    one_NE = one_NE - one_NE.mean(axis=1, keepdims=True)
    other_NE = other_NE - other_NE.mean(axis=1, keepdims=True)
    norms_N = np.linalg.norm(one_NE, axis=1) * np.linalg.norm(other_NE, axis=1)
    return float(np.mean((one_NE * other_NE).sum(axis=1) / norms_N))


def lag_curve(bias_NE: Array, price_NE: Array, lags: Sequence[int]) -> list[float]:
    """Mean correlation of the bias in force at one batch with the price of the batch `lag` batches later.

    All lags use the same biases: those that have a batch at every lag.

    Examples
    --------
    >>> walk_NE = np.random.default_rng(0).standard_normal((400, 8)).cumsum(axis=0)
    >>> bias_NE = np.roll(walk_NE, 3, axis=0)  # where the price was three batches before
    >>> lags = range(-6, 7)
    >>> list(lags)[int(np.argmax(lag_curve(bias_NE, walk_NE, lags)))]
    -3
    """
    first, end = max(0, -min(lags)), len(bias_NE) - max(0, max(lags))
    return [mean_correlation(bias_NE[first:end], price_NE[first + lag : end + lag]) for lag in lags]


def sign_lag(step_size: float, num_tokens: int, top_k: int, curvature_M: Array, overdispersion: float = 1.0) -> float:
    r"""Steps by which the sign rule lags behind a price that moves slowly, by the tracking law.

    A load surplus h x of noise s moves the bias by :math:`-u\sqrt{2/\pi}\,h x / s` on average, so errors decay within
    :math:`s\sqrt{\pi/2}\,/\,(u h)` steps, and a price in steady motion is followed at that distance. h is the mean
    curvature; s comes from `alflb.bounds.sign_tracking_cost`.

    Examples
    --------
    >>> round(sign_lag(1e-3, num_tokens=384, top_k=6, curvature_M=np.full(63, 0.2)))
    97
    """
    motion = TargetMotion(overdispersion=overdispersion)
    load_sd = sign_tracking_cost(step_size, motion, num_tokens, top_k, curvature_M).load_sd
    return float(load_sd * np.sqrt(np.pi / 2) / (step_size * curvature_M.mean()))


def reliability_of(reliability: float, num_batches: int) -> float:
    """Correlation of two prices of so many batches each, from that of two prices of one batch (Spearman and Brown).

    Examples
    --------
    >>> reliability_of(0.5, 3)
    0.75
    """
    return num_batches * reliability / (1 + (num_batches - 1) * reliability)


def overdispersion(load_NE: NDArray[np.int64], num_tokens: int, top_k: int) -> float:
    """Mean over experts of the variance of their load, over that of independent tokens with the same mean.

    The variance is half the mean square of successive differences, which a slow change of the mean leaves alone.

    Examples
    --------
    >>> load_NE = np.random.default_rng(0).binomial(100, 0.25, size=(20_000, 4))
    >>> round(overdispersion(load_NE, 100, 1), 1)
    1.0
    """
    mean_E = load_NE.mean(axis=0)
    expected_E = mean_E * (1 - mean_E / num_tokens)
    live_E = expected_E > 0
    return float(np.mean(0.5 * np.mean(np.diff(load_NE, axis=0) ** 2, axis=0)[live_E] / expected_E[live_E]))


def batch_loads(traces: BatchTraces) -> NDArray[np.int64]:
    """Tokens per expert in each batch, with the bias that was in force, shape (N, E)."""
    pairs = zip(traces.scores_NTE, traces.bias_NE, strict=True)
    loads = [duality.allocate(AssignmentProblem(part, traces.top_k), bias_E).load_E for part, bias_E in pairs]
    return np.array(loads)


def regret_per_token(traces: BatchTraces, num_batches: int = 1) -> Array:
    """(D(bias) - D(optimum)) / T of every batch, against the optimum of the `num_batches` batches around it.

    With one batch the optimum fits the noise of that batch. With several the noise is less, and so is the regret of a
    bias that stands at the optimum of their common distribution.

    Examples
    --------
    >>> scores_NTE = np.random.default_rng(0).random((4, 32, 8), dtype=np.float32)
    >>> best_NE = prices(scores_NTE, 2)
    >>> traces = BatchTraces(np.arange(4), best_NE, scores_NTE, 2)
    >>> bool(np.abs(regret_per_token(traces)).max() < 1e-7), bool(regret_per_token(traces, 4).min() > 0)
    (True, True)
    """
    regret = []
    for number, part_TE in enumerate(pooled(traces.scores_NTE, num_batches)):
        problem = AssignmentProblem(np.ascontiguousarray(part_TE), traces.top_k)
        best = solve_exact(problem).value
        for bias_E in traces.bias_NE[number * num_batches :][:num_batches]:
            regret.append((duality.dual_value(problem, bias_E) - best) / problem.num_tokens)
    return np.array(regret)


def batch_max_vio(traces: BatchTraces) -> Array:
    """MaxVio of every batch."""
    return metrics.max_vio(batch_loads(traces))


def batch_floor(traces: BatchTraces) -> float:
    """MaxVio that sampling alone leaves in these batches, tokens independent."""
    _, num_tokens, num_experts = traces.scores_NTE.shape
    return bounds.sampling_max_vio(num_tokens, traces.top_k, num_experts)
