"""C13, the sign rule on random batches of T independent tokens (equal targets L = K T / E).

*Rest point*: at p*, where every expert is picked with probability K / E, the mean step is the same for all experts:
pure gauge. Any K, any law of the scores.

*Logarithmic regret on Gumbel scores*, K = 1, L whole, projection onto {mean 0, |p| <= R} which contains p*: with steps
u_n = 1 / (m n), m = `alflb.bounds.sign_pull`, E|p_n - p*|^2 <= max(E / m^2, 8 R^2) / n, and regret is of order ln N.

Our own claims, with proofs in docs/theory/noise.md. Both are false where tokens of a batch depend on each other: the
sign rule then balances the *median* batch, its mean load stays off the target however small the step, and regret is
linear (`mean_share`). Real text is of that kind.

BROKEN lets all tokens of a batch share one of two kinds, with p* still the bias of equal mean loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alflb import bounds
from alflb.kernels import get_kernels
from alflb.population import GumbelTopOne
from alflb.rules import Projected, make_rule
from alflb.schedules import Inverse
from alflb.simulation import simulate
from alflb.streams import Stream, make_stream
from proofs_check._random import FALSE_ALARM, first_failure_or_worst, populations, sampled_batches
from proofs_check._verdict import Verdict

CLAIM = "C13"
TITLE = "sign rule under noise"
NUM_BATCHES = 1200
NUM_TOKENS = 24
NUM_STEPS = 200
RADIUS = 0.5

MEAN_BALANCE = -1.0 / 30.0
"""p_2 - p_1 of equal mean loads for the dependent batches: 0.6 (0.8 - w) = 1/2."""


class DependentBatches:
    """E = 2: with probability 0.6 all tokens of a batch have crossing values in (-0.2, 0.8), else in (-1.4, -0.4)."""

    num_experts = 2

    def __init__(self, num_tokens: int = NUM_TOKENS) -> None:
        self.num_tokens = num_tokens

    def batches(self, seed: int) -> Iterator[NDArray[np.float64]]:
        """Batches of shape (T, 2) without end."""
        rng = np.random.default_rng(seed)
        while True:
            lowest = -0.2 if rng.random() < 0.6 else -1.4
            yield np.column_stack([lowest + rng.random(self.num_tokens), np.zeros(self.num_tokens)])


def check(seed: int = 0, instances: int = 12) -> Verdict:
    """The rest point on `instances` populations, then distances from p* on Gumbel scores."""
    rest = [
        _rest_point(sampled_batches(words, NUM_TOKENS, seed), words["top_k"], population.optimum(), words, instances)
        for words, population, _ in populations(seed, instances)
    ]
    return first_failure_or_worst([*rest, _distance((0.2, -0.2), seed), _distance((0.2, 0.1, -0.1, -0.2), seed)])


def BROKEN(seed: int = 0, instances: int = 12) -> Verdict:
    """The control: tokens of a batch depend on each other."""
    best_E = np.array([0.0, MEAN_BALANCE])
    return _rest_point(DependentBatches().batches(seed), 1, best_E, {"dependent": True, "seed": seed}, instances)


def mean_share(step_size: float, *, num_tokens: int = 200, num_steps: int = 20000, seed: int = 0) -> float:
    """Mean share of expert 1 under the sign rule on dependent batches; balance would be 0.5.

    About 0.6 x 0.5 + 0.4 x 0 = 0.3 and a little more, whatever the step: the median batch is balanced, not the mean.
    """
    run = simulate(
        DependentBatches(num_tokens),
        make_rule("sign", step_size),
        top_k=1,
        num_steps=num_steps,
        seed=seed,
        bias_init=[0.0, 0.3],
    )
    return float(run.load_NE[:, 0].mean() / num_tokens)


def _rest_point(
    batches: Iterator[NDArray[np.float64]],
    top_k: int,
    bias_E: NDArray[np.float64],
    words: dict[str, Any],
    instances: int,
) -> Verdict:
    """Largest difference of an expert's mean step from the mean over experts, and what chance allows."""
    allocate = get_kernels("reference").allocate
    steps = []
    for scores_TE, _ in zip(batches, range(NUM_BATCHES)):
        load_E = allocate(scores_TE, bias_E, top_k).load_E
        step_E = np.sign(top_k * len(scores_TE) - len(bias_E) * load_E)
        steps.append(step_E - step_E.mean())
    contrast_NE = np.array(steps)
    off_E = np.abs(contrast_NE.mean(axis=0))
    error_E = contrast_NE.std(axis=0, ddof=1) / np.sqrt(NUM_BATCHES)
    quantile = stats.norm.isf(FALSE_ALARM / (2 * len(bias_E) * (instances + 2)))
    worst = int(np.argmax(off_E - quantile * error_E))
    measured, allowed = float(off_E[worst]), float(quantile * error_E[worst])
    return Verdict(CLAIM, "statistical", 1, measured, allowed, measured <= allowed, words)


def _distance(offsets: tuple[float, ...], seed: int, runs: int = 16) -> Verdict:
    """Distances on Gumbel scores with these offsets."""
    num_experts = len(offsets)
    pull = bounds.sign_pull(NUM_TOKENS, num_experts, RADIUS)
    stream = make_stream("gumbel", num_tokens=NUM_TOKENS, num_experts=num_experts, offsets=offsets)
    path = SignPath(stream, GumbelTopOne(offsets).optimum(), 1, RADIUS, pull)
    return distance_from_optimum(CLAIM, path, {"offsets": list(offsets)}, seed=seed, runs=runs)


class SignPath(NamedTuple):
    """The projected sign rule with steps 1 / (m n) on a stream with a known optimum."""

    stream: Stream
    optimum_E: NDArray[np.float64]
    top_k: int
    radius: float
    pull: float
    """m, per score unit."""

    def squared_distances(self, seed: int) -> NDArray[np.float64]:
        """|p_n - p*|^2 at n = 1, 2, ..., from a start on the other side of the ball."""
        run = simulate(
            self.stream,
            Projected(make_rule("sign", Inverse(1.0 / self.pull)), radius=self.radius),
            top_k=self.top_k,
            num_steps=NUM_STEPS,
            seed=seed,
            bias_init=-self.radius * self.optimum_E / np.linalg.norm(self.optimum_E),
            backend="reference",
        )
        return np.asarray(np.sum((run.bias_NE[:-1] - self.optimum_E) ** 2, axis=1))


def distance_from_optimum(claim: str, path: SignPath, words: dict[str, Any], *, seed: int, runs: int) -> Verdict:
    """The largest n E|p_n - p*|^2 of all steps n, over `runs` runs, against max(E / m^2, 8 R^2)."""
    squared_RN = np.array([path.squared_distances(1000 * seed + repetition) for repetition in range(runs)])
    scaled_RN = squared_RN * np.arange(1, NUM_STEPS + 1)
    worst = int(np.argmax(scaled_RN.mean(axis=0)))
    mean, error = float(scaled_RN[:, worst].mean()), float(stats.sem(scaled_RN[:, worst]))
    bound = max(len(path.optimum_E) / path.pull**2, 8 * path.radius**2)
    low = mean - stats.t.isf(FALSE_ALARM / 2, runs - 1) * error
    found = {**words, "seed": seed, "runs": runs, "m": path.pull}
    return Verdict(claim, "statistical", runs, mean, bound, bool(low <= bound), found)
