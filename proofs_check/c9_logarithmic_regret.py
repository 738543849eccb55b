"""C9, logarithmic regret (fresh batch of T independent tokens each step, g_n = A_n/T - K/E).

f mu-strongly convex on {mean 0, |p| <= R}, which contains p*; E|g|^2 <= G^2 there; p_(n+1) = projection of p_n -
g_n/(mu n). Then E sum_n f(p_n) - f(p*) <= G^2/(2 mu) (1 + ln N). (Standard online convex optimization: Hazan, Agarwal
& Kale 2007; stated for ALF-LB by Han & Zhong, arXiv 2512.03915.) Bias p_n is charged at step n, where it produced the
load.

Checked on Gumbel scores, K = 1, where f, p*, a certified mu and a certified G^2 are in closed form; the mean over
repeated runs of the library's simulation is compared with the bound, and the claim fails only if the mean is above it
beyond a one-sided t-interval at the false-alarm rate. *Corrected here*: eta_n = c/n needs c > 1/(2 mu), not >=: at c
= 1/(2 mu) the regret of a quadratic is of order (ln N)^2 (`quadratic_regret`).

BROKEN divides the step size by 50: too small a c, hence a power of N.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from alflb import bounds
from alflb.population import GumbelTopOne, gumbel_pick_range
from alflb.rules import Projected, make_rule
from alflb.schedules import Inverse
from alflb.simulation import simulate
from alflb.streams import make_stream
from proofs_check._random import FALSE_ALARM
from proofs_check._verdict import Verdict

CLAIM = "C9"
TITLE = "logarithmic regret"
NUM_STEPS = 200
NUM_TOKENS = 16
RADIUS = 0.6


def check(seed: int = 0, instances: int = 24) -> Verdict:
    """Mean pseudo-regret over `instances` runs against the bound, for three populations; the worst is reported."""
    return _worst(seed, instances, slow_down=1.0)


def BROKEN(seed: int = 0, instances: int = 24) -> Verdict:
    """The control: steps fifty times too small."""
    return _worst(seed, instances, slow_down=50.0)


def quadratic_regret(strength: float, num_steps: int) -> float:
    """E sum_n x_n^2 for x_(n+1) = x_n - (c/n)(x_n + noise), c mu = `strength`, unit noise, x_1 = 1: exact recursion."""
    second, total = 1.0, 0.0
    for n in range(1, num_steps + 1):
        total += second
        second = (1 - strength / n) ** 2 * second + (strength / n) ** 2
    return total


def _worst(seed: int, runs: int, *, slow_down: float) -> Verdict:
    verdicts = [
        _regret(offsets, seed, runs, slow_down=slow_down)
        for offsets in ((0.2, -0.2), (0.3, 0.0, -0.3), (0.1, 0.2, -0.1, -0.2))
    ]
    return next((one for one in verdicts if not one.holds), max(verdicts, key=lambda one: one.ratio))


def _regret(offsets: tuple[float, ...], seed: int, runs: int, *, slow_down: float) -> Verdict:
    population, num_experts = GumbelTopOne(offsets), len(offsets)
    optimum_E = population.optimum()
    least, most = gumbel_pick_range(offsets, RADIUS)
    second_moment = bounds.gradient_second_moment_bound(most, num_experts, 1, NUM_TOKENS)
    start_E = -RADIUS * optimum_E / np.linalg.norm(optimum_E)  # on the far side of the ball
    # eta = u E / K, so eta_n = 1 / (mu n) is the schedule u_n = K / (E mu n).
    rule = Projected(make_rule("proportional", Inverse(1.0 / (slow_down * num_experts * least))), radius=RADIUS)
    stream = make_stream("gumbel", num_tokens=NUM_TOKENS, num_experts=num_experts, offsets=offsets)
    regret = []
    for repetition in range(runs):
        run = simulate(
            stream,
            rule,
            top_k=1,
            num_steps=NUM_STEPS,
            seed=1000 * seed + repetition,
            bias_init=start_E,
            backend="reference",
        )
        regret.append(sum(population.value(bias_E) - population.value(optimum_E) for bias_E in run.bias_NE[:-1]))
    bound = bounds.logarithmic_regret(NUM_STEPS, least, second_moment)
    mean, error = float(np.mean(regret)), float(stats.sem(regret))
    low = mean - stats.t.isf(FALSE_ALARM / 3, runs - 1) * error
    words = {"offsets": list(offsets), "seed": seed, "runs": runs, "mu": least, "G2": second_moment}
    return Verdict(CLAIM, "statistical", runs * 3, mean, bound, bool(low <= bound), words)
