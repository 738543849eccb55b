"""What a log of biases and loads says about the balancing of a run: curvature, noise, motion, and the step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from alflb import metrics

Vector = NDArray[np.float64]

FEWEST_STEPS = 30
NEWTON_STEPS = 30
DIFFERENCE = 1e-3
"""Step of the numerical derivatives, in logarithms of the parameters."""
LEAST_WALK = 1e-6
"""Smallest variance of a step of p* that is distinguished from 0, as a share of the variance of a sighting of p*."""
EVIDENCE = 6.0
"""Log likelihood ratio that answers of the loads to the bias need: a chance of 5e-4."""
LAGGING = 4.0
"""Standard errors beyond which the mean shortfall of an expert is not chance."""
_QUANTILE = float(stats.norm.ppf(0.975))
_DAMPING = (1e-3, 1.0, 30.0, 1e3)


class Interval(NamedTuple):
    """An estimate and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, eq=False)
class LogAdvice:
    """What `advise_from_log` found; of two kinds of 95% intervals, one robust to experts that differ, the wider."""

    curvature: Interval
    """Relative change of an expert's load per score unit of its bias."""
    overdispersion: Interval
    """Variance of a load at a fixed bias over L, that of independent tokens with many experts (1 - K/E with few)."""
    walk: Interval
    """Standard deviation of a step of the optimal bias p*, score units."""
    gain: float
    """Share of a shortfall that the run's steps removed on average, in the linear model."""
    best_gain: Interval
    """The same for the best linear correction, a Kalman gain."""
    max_vio: float
    """Mean MaxVio of the second half of the log."""
    max_vio_possible: float
    """The same had the gain been best, if MaxVio scales with the root mean square of the shortfalls."""
    lagging: tuple[int, ...]
    """Experts whose mean shortfall in the second half is not chance."""

    @property
    def step_factor(self) -> Interval:
        """Factor for the step size of a rule whose steps grow with the shortfall: best gain over gain."""
        return Interval(*(value / self.gain for value in self.best_gain))

    @property
    def sign_step_factor(self) -> Interval:
        """The same for the sign rule, whose gain is its step size over the size of the shortfalls."""
        return Interval(*(value * self.max_vio_possible / self.max_vio for value in self.step_factor))


def advise_from_log(bias: ArrayLike, load: ArrayLike, *, target: ArrayLike | None = None) -> LogAdvice:
    r"""Was the step size right? From biases and loads alone, no scores needed.

    Every expert's load is taken to answer its bias linearly around an optimum that walks at random,

    .. math:: 1 - A_k / L_k = \kappa (p^*_k - p_k) + v, \qquad \mathrm{Var}(v) = \varphi / L_k,

    with one curvature kappa, one overdispersion phi and one variance of the walk for all experts. They maximize the
    likelihood that a Kalman filter gives to the shortfalls, given the biases; the biases may come from any rule that
    looks at earlier loads only.

    Parameters
    ----------
    bias : array_like, shape (N, E) or (N + 1, E)
        The bias that routed each batch, score units; a last one that routed nothing yet is left out.
    load : array_like, shape (N, E)
        Tokens per expert.
    target : array_like, shape (E,), optional
        Target loads, tokens; equal ones by default.

    Returns
    -------
    LogAdvice

    Raises
    ------
    ValueError
        For fewer than 30 steps, arrays that do not fit, numbers that are not finite, biases that do not move, or loads
        that say nothing about the curvature.

    References
    ----------
    Mehra, IEEE Transactions on Automatic Control 15 (1970).

    Examples
    --------
    >>> import alflb
    >>> stream = alflb.make_stream("logistic", num_tokens=1024, num_experts=8)
    >>> run = alflb.simulate(stream, alflb.make_rule("sign", 0.2), top_k=2, num_steps=200)
    >>> advice = advise_from_log(run.bias_NE, run.load_NE)
    >>> advice.sign_step_factor.high < 1  # the step was too large
    True
    """
    bias_NE, load_NE, target_E = _checked(bias, load, target)
    shortfall_NE = 1.0 - load_NE / target_E
    model = _Model(bias_NE, shortfall_NE, target_E.mean() / target_E)
    logs = model.estimate()
    curvature, noise, _ = np.exp(logs)
    spread = model.half_widths(logs, np.eye(3))
    if model.evidence_of_answers(logs) < EVIDENCE or not spread[0] <= np.log(4.0):
        raise ValueError(
            "the log does not tell the curvature: loads do not answer the bias beyond chance; log more steps, or a "
            "phase in which biases move further"
        )
    walks = model.walks(logs, spread[2])
    ratio_spread = np.exp(model.half_widths(logs, np.array([[2.0, -1.0, 1.0]]))[0])
    ratio, low, high = (curvature**2 * walk / noise for walk in walks)
    best = Interval(*map(_kalman_gain, (ratio, min(low, ratio / ratio_spread), max(high, ratio * ratio_spread))))
    half = len(load_NE) // 2
    least = noise / (1.0 - best.value) / float(np.mean(shortfall_NE[half:] ** 2))
    max_vio = float(np.mean(metrics.max_vio(load_NE[half:], target_E)))
    moves_NE = np.diff(bias_NE, axis=0)[half:]
    moves_NE = moves_NE - moves_NE.mean(axis=1, keepdims=True)
    shortfalls_NE = shortfall_NE[half:-1]
    return LogAdvice(
        curvature=_interval(curvature, spread[0]),
        overdispersion=_interval(noise * float(target_E.mean()), spread[1]),
        walk=Interval(*(float(np.sqrt(walk)) for walk in walks)),
        gain=float(curvature * np.sum(moves_NE * shortfalls_NE) / np.sum(shortfalls_NE**2)),
        best_gain=best,
        max_vio=max_vio,
        max_vio_possible=min(1.0, float(np.sqrt(least))) * max_vio,
        lagging=_lagging(shortfall_NE[half:]),
    )


class _Model:
    """Log likelihood of the shortfalls, given the biases, at many parameters at once.

    Parameters are the logarithms of curvature, of noise (variance of a relative shortfall of the mean target) and of
    the variance of a step of p*, as rows of an array of shape (B, 3).
    """

    def __init__(self, bias_NE: Vector, shortfall_NE: Vector, noise_E: Vector) -> None:
        self._bias_NE, self._shortfall_NE, self._noise_E = bias_NE, shortfall_NE, noise_E

    def log_likelihood_BE(self, logs_BP: Vector) -> Vector:
        """Per parameter and expert; the first shortfall only says where p* starts."""
        curvature_B, noise_B, walk_B = np.exp(logs_BP).T[:, :, None]
        bias_NE, shortfall_NE = self._bias_NE, self._shortfall_NE
        noise_BE = noise_B * self._noise_E
        optimum_BE = bias_NE[0] + shortfall_NE[0] / curvature_B
        variance_BE = noise_BE / curvature_B**2 + walk_B
        total_BE = np.zeros_like(noise_BE)
        for bias_E, shortfall_E in zip(bias_NE[1:], shortfall_NE[1:]):
            error_BE = shortfall_E - curvature_B * (optimum_BE - bias_E)
            spread_BE = curvature_B**2 * variance_BE + noise_BE
            total_BE -= 0.5 * (np.log(spread_BE) + error_BE**2 / spread_BE)
            optimum_BE = optimum_BE + curvature_B * variance_BE / spread_BE * error_BE
            variance_BE = variance_BE * noise_BE / spread_BE + walk_B
        return total_BE

    def estimate(self) -> Vector:
        """Maximum likelihood, by Newton's method from the best point of a grid."""
        noise = 0.5 * float(np.mean(np.diff(self._shortfall_NE, axis=0) ** 2))
        unit = float(np.std(self._shortfall_NE)) / float(np.std(self._bias_NE - self._bias_NE.mean(axis=0)))
        grid = [
            (unit * 10.0**k, noise, noise / unit**2 * 10.0**q) for k in np.arange(-2, 2.5, 0.5) for q in (-6, -3, 0)
        ]
        logs_BP = np.log(np.array(grid))
        logs = logs_BP[np.argmax(self.log_likelihood_BE(logs_BP).sum(axis=1))]
        for _ in range(NEWTON_STEPS):
            slope, bend = self._derivatives(logs)
            tries = np.array(
                [logs - np.clip(np.linalg.solve(bend - damping * np.eye(3), slope), -1.0, 1.0) for damping in _DAMPING]
            )
            values = self.log_likelihood_BE(np.vstack([logs, tries])).sum(axis=1)
            best = int(np.argmax(values))
            if best == 0 or values[best] - values[0] < 1e-3:
                break
            logs = tries[best - 1]
        return np.asarray(logs)

    def half_widths(self, logs: Vector, direction_DP: Vector) -> Vector:
        """Half widths of 95% intervals of linear functions of the logarithms.

        The larger of two variances is taken: that of the likelihood, and the robust one with experts as clusters. With
        few experts the robust one alone is too small as often as not; both go with Student's t of E - 1.
        """
        points = logs + DIFFERENCE * np.vstack([np.eye(3), -np.eye(3)])
        values_BE = self.log_likelihood_BE(points)
        scores_PE = (values_BE[:3] - values_BE[3:]) / (2 * DIFFERENCE)
        experts = scores_PE.shape[1]
        _, bend = self._derivatives(logs)
        plain = -np.linalg.inv(bend - 1e-9 * np.abs(np.trace(bend)) * np.eye(3))
        robust = plain @ (scores_PE @ scores_PE.T) @ plain
        variances = [np.einsum("dp,pq,dq->d", direction_DP, matrix, direction_DP) for matrix in (plain, robust)]
        quantile = stats.t.ppf(0.975, experts - 1)
        return np.asarray(quantile * np.sqrt(np.maximum(*variances) * experts / (experts - 1)))

    def evidence_of_answers(self, logs: Vector) -> float:
        """Log likelihood ratio against loads that move as they do, but not with the bias."""
        unmoved = logs + np.log(1e-4) * np.array([1.0, 0.0, -2.0])
        moving, still = self.log_likelihood_BE(np.array([logs, unmoved])).sum(axis=1)
        return float(moving - still)

    def walks(self, logs: Vector, spread: float) -> tuple[float, float, float]:
        """Variance of a step of p*, with the wider of two intervals; 0 where it cannot be distinguished from 0.

        `spread` is the half width of the interval of its logarithm by the curvature of the likelihood; the other
        interval is that of the likelihood ratio.
        """
        smallest = np.log(LEAST_WALK) + logs[1] - 2.0 * logs[0]
        coarse, fine = np.linspace(smallest, smallest + 20.0, 60), np.geomspace(1e-3, 3.0, 40)
        walk_B = np.sort(np.concatenate([coarse, logs[2] + fine, logs[2:], logs[2] - fine]))
        walk_B = walk_B[walk_B >= smallest]
        value_B = self.log_likelihood_BE(np.column_stack([np.tile(logs[:2], (len(walk_B), 1)), walk_B])).sum(axis=1)
        inside = np.flatnonzero(value_B >= value_B.max() - 0.5 * _QUANTILE**2)
        low, high = np.exp(walk_B[inside[[0, -1]]])
        value = float(np.exp(logs[2])) if logs[2] > smallest else 0.0
        low = 0.0 if inside[0] == 0 or value == 0.0 else min(float(low), value * np.exp(-spread))
        return value, low, max(float(high), value * np.exp(min(spread, 10.0)))

    def _derivatives(self, logs: Vector) -> tuple[Vector, Vector]:
        """Gradient and Hessian of the log likelihood, by central differences."""
        axes = DIFFERENCE * np.eye(3)
        pairs = [(one, other) for one in range(3) for other in range(one, 3)]
        points = [logs, *(logs + sign * axes[one] for one in range(3) for sign in (1, -1))]
        points += [
            logs + one * (axes[i] + one * other * axes[j]) for i, j in pairs for one in (1, -1) for other in (1, -1)
        ]
        value_B = self.log_likelihood_BE(np.array(points)).sum(axis=1)
        slope = (value_B[1:7:2] - value_B[2:7:2]) / (2 * DIFFERENCE)
        bend = np.zeros((3, 3))
        for place, (i, j) in enumerate(pairs):
            plus, cross, minus, back = value_B[7 + 4 * place : 11 + 4 * place]
            bend[i, j] = bend[j, i] = (plus - cross - minus + back) / (4 * DIFFERENCE**2)
        return slope, bend


def _kalman_gain(ratio: float) -> float:
    """The share of a surplus that the best step removes; `ratio` is h^2 (variance of a step of p*) / noise."""
    variance = 0.5 * (ratio + np.sqrt(ratio**2 + 4.0 * ratio))
    return float(variance / (1.0 + variance))


def _interval(value: float, log_spread: float) -> Interval:
    return Interval(float(value), float(value * np.exp(-log_spread)), float(value * np.exp(log_spread)))


def _lagging(shortfall_NE: Vector) -> tuple[int, ...]:
    """Experts whose mean is `LAGGING` standard errors from 0, by the means of ten blocks."""
    means_BE = np.stack([block.mean(axis=0) for block in np.array_split(shortfall_NE, 10)])
    error_E = means_BE.std(axis=0, ddof=1) / np.sqrt(len(means_BE))
    return tuple(np.flatnonzero(np.abs(means_BE.mean(axis=0)) > LAGGING * error_E).tolist())


def _checked(bias: ArrayLike, load: ArrayLike, target: ArrayLike | None) -> tuple[Vector, Vector, Vector]:
    """The arrays of the log, biases centered, or ValueError."""
    bias_NE, load_NE = np.asarray(bias, dtype=np.float64), np.asarray(load, dtype=np.float64)
    if load_NE.ndim != 2 or len(load_NE) < FEWEST_STEPS or load_NE.shape[1] < 2:
        raise ValueError(f"load has shape {load_NE.shape}; pass at least {FEWEST_STEPS} steps of two or more experts")
    steps, experts = load_NE.shape
    if bias_NE.shape not in ((steps, experts), (steps + 1, experts)):
        raise ValueError(f"bias has shape {bias_NE.shape}; pass the biases that routed the {steps} loads")
    bias_NE = bias_NE[:steps]
    equal_E = np.full(experts, load_NE.sum(axis=1).mean() / experts)
    target_E = equal_E if target is None else np.asarray(target, dtype=np.float64)
    if target_E.shape != (experts,) or not (target_E > 0).all():
        raise ValueError(f"target is {target!r}; pass {experts} positive numbers of tokens")
    if not (np.isfinite(bias_NE).all() and np.isfinite(load_NE).all() and np.isfinite(target_E).all()):
        raise ValueError("bias, load or target holds numbers that are not finite; drop those steps")
    centered_NE: Vector = bias_NE - bias_NE.mean(axis=1, keepdims=True)
    if not np.ptp(centered_NE, axis=0).any():
        raise ValueError("bias does not move in this log (u = 0?), so loads cannot answer it; log a run that balances")
    return centered_NE, load_NE, target_E
