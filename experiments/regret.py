"""How regret grows with the number of steps, for every kind of step size, and where logarithmic growth begins.

Pseudo-regret charges f(p_n) - f(p*) with f exact (`experiments._oracle`), hindsight regret charges D on the drawn
batches against the optimum of the one pooled assignment problem. Step sizes are given by their strength s = eta mu, the
share of the slowest mode that a step takes away near p*; for the sign rule, of its effective gain u sqrt(2/pi)/sigma
(docs/theory/noise.md), so that the same strength means the same speed near the optimum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from alflb import bounds, make_rule, make_stream, metrics, simulate
from alflb.exact import BatchedProblem, solve_exact
from alflb.io import Row
from alflb.observers import make_observers
from alflb.plotting import BLUE, GRAY, GREEN, RED, new_figure, ramp, styled
from alflb.population import GumbelTopOne, IndependentScores, Population, gumbel_pick_range
from alflb.rules import Projected, Rule
from alflb.schedules import Constant, Inverse, InverseSqrt, Schedule
from alflb.streams import DrawnStream
from alflb.verdict import Finding
from experiments._oracle import gumbel_values, logistic_values
from experiments._statistics import mean_interval

CLAIM = "Regret is logarithmic for eta = c/n, c > 1/(2 mu), N^(1 - 2 mu c) below; c/sqrt(n) gives sqrt(N), constant N."
VERDICT = (
    "Supported: the exponents are as predicted, for the sign rule as well; the bound of C9 is 33 times the "
    "measured regret."
)

NUM_TOKENS = 64
START = 0.4
"""Distance of the first bias from p*, score units: far enough to matter, near enough for one curvature."""


def _cells(population: str, num_steps: int, arms: dict[tuple[str, str], tuple[float, ...]]) -> list[Row]:
    return [
        {"population": population, "rule": rule, "schedule": schedule, "strength": strength, "num_steps": num_steps}
        for (rule, schedule), strengths in arms.items()
        for strength in strengths
    ]


GRID = [
    *_cells(
        "gumbel",
        100_000,
        {
            ("proportional", "inverse"): (0.2, 0.5, 1.0),
            ("proportional", "inverse_sqrt"): (0.3,),
            ("proportional", "constant"): (0.03,),
            ("sign", "inverse"): (1.0,),
        },
    ),
    *_cells(
        "gumbel",
        20_000,
        {
            ("proportional", "inverse"): (0.1, 0.3, 0.4, 0.7, 2.0, 4.0),
            ("sign", "inverse"): (0.2,),
            ("sign", "inverse_sqrt"): (0.3,),
            ("sign", "constant"): (0.03,),
        },
    ),
    *_cells(
        "logistic",
        10_000,
        {
            ("proportional", "inverse"): (0.2, 0.5, 1.0, 2.0),
            ("proportional", "inverse_sqrt"): (0.3,),
            ("proportional", "constant"): (0.03,),
            ("sign", "inverse"): (0.2, 1.0),
            ("sign", "inverse_sqrt"): (0.3,),
            ("sign", "constant"): (0.03,),
        },
    ),
]
SEEDS = 20
SMOKE = _cells(
    "gumbel",
    1000,
    {
        ("proportional", "inverse"): (0.2, 1.0, 4.0),
        ("proportional", "inverse_sqrt"): (0.3,),
        ("proportional", "constant"): (0.03,),
        ("sign", "inverse"): (1.0,),
        ("sign", "inverse_sqrt"): (0.3,),
        ("sign", "constant"): (0.03,),
    },
) + _cells("logistic", 500, {("proportional", "inverse"): (0.2, 1.0), ("sign", "inverse"): (1.0,)})


def cost(cell: Row) -> float:
    """Steps, a third more for those that are run twice and pooled."""
    return 1.3 * cell["num_steps"]


class Setting(NamedTuple):
    """A population and the stream that draws from it."""

    population: Population
    stream: DrawnStream
    top_k: int
    optimum_E: NDArray[np.float64]
    curvature: float
    """mu at p*, the smallest eigenvalue of the Hessian on mean-zero directions."""
    noise: float
    """sigma, standard deviation of one expert's load fraction at p*."""
    radius: float
    """Radius of the ball that biases are projected onto."""


@cache
def setting(name: str) -> Setting:
    """Eight experts, top-1, where all is known in closed form; or six, top-2, by quadrature."""
    gumbel = name == "gumbel"
    num_experts, top_k = (8, 1) if gumbel else (6, 2)
    width = 0.2 if gumbel else 0.5  # a small ball has a certified curvature of the size of the one at p*
    offsets = tuple(np.linspace(-width, width, num_experts).tolist())
    population = GumbelTopOne(offsets) if gumbel else IndependentScores(stats.logistic(), top_k, offsets=offsets)
    stream = make_stream(name, num_tokens=NUM_TOKENS, num_experts=num_experts, offsets=offsets)
    assert isinstance(stream, DrawnStream)
    optimum_E = population.optimum()
    share = top_k / num_experts
    return Setting(
        population,
        stream,
        top_k,
        optimum_E,
        float(population.curvatures(optimum_E)[0]),
        math.sqrt(share * (1 - share) / NUM_TOKENS),
        float(np.linalg.norm(optimum_E)) + START,
    )


def start(population: str) -> NDArray[np.float64]:
    """The first bias, `START` from p*."""
    optimum_E = setting(population).optimum_E
    direction_E = np.where(np.arange(optimum_E.size) % 2, 1.0, -1.0) / math.sqrt(optimum_E.size)
    return np.asarray(optimum_E + START * direction_E)


def run(cell: Row, seed: int) -> list[Row]:
    """One run: pseudo-regret at log-spaced steps, and hindsight regret after a tenth of them."""
    here = setting(cell["population"])
    start_E = start(cell["population"])
    rule = projected_rule(cell, here)
    path = simulate(here.stream, rule, top_k=here.top_k, num_steps=cell["num_steps"], seed=seed, bias_init=start_E)
    excess_N = population_values(cell["population"], path.bias_NE[:-1]) - here.population.value(here.optimum_E)
    steps_C = checkpoints(cell["num_steps"])
    early = cell["num_steps"] // 10
    return [
        {
            "step_C": steps_C.tolist(),
            "regret_C": np.cumsum(excess_N)[steps_C - 1].tolist(),
            "max_vio_last_tenth": float(metrics.max_vio(path)[-early:].mean()),
            "curvature": here.curvature,
            "early_step": early,
            "pseudo_regret_early": float(excess_N[:early].sum()),
            **_hindsight(rule, here, start_E, early, seed),
            **_bound(cell, here),
        }
    ]


def checkpoints(num_steps: int) -> NDArray[np.int64]:
    """1, ..., N: ten to a decade, without repeats."""
    return np.unique(np.round(np.geomspace(1, num_steps, round(10 * math.log10(num_steps)) + 1)).astype(np.int64))


def projected_rule(cell: Row, here: Setting) -> Projected:
    """The rule of a cell (`rule`, `schedule`, `strength`), its biases kept within the radius of the setting."""
    gain = cell["strength"] / here.curvature  # eta at n = 1
    if cell["rule"] == "sign":
        step_size = gain * here.noise / math.sqrt(2 / math.pi)
    else:  # eta = u E / K
        step_size = gain * here.top_k / here.stream.num_experts
    kinds: dict[str, type[Constant] | type[Inverse] | type[InverseSqrt]] = {
        "constant": Constant,
        "inverse": Inverse,
        "inverse_sqrt": InverseSqrt,
    }
    schedule: Schedule = kinds[cell["schedule"]](step_size)
    return Projected(make_rule(cell["rule"], schedule), radius=here.radius)


def population_values(population: str, bias_NE: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exact value of the dual, f, at each bias."""
    here = setting(population)
    offset_E = here.stream.offset_E()
    if population == "gumbel":
        return gumbel_values(bias_NE, offset_E)
    return logistic_values(bias_NE, offset_E, here.top_k)


def _hindsight(rule: Rule, here: Setting, start_E: NDArray[np.float64], num_steps: int, seed: int) -> Row:
    """Per token: sum of D on the batches that were drawn, against the pooled LP of all their tokens."""
    seen = simulate(
        here.stream,
        rule,
        top_k=here.top_k,
        num_steps=num_steps,
        seed=seed,
        bias_init=start_E,
        observers=make_observers("dual_value"),
    )
    pooled = BatchedProblem(lambda: itertools.islice(here.stream.batches(seed), num_steps), here.top_k)
    optimum = solve_exact(pooled)
    return {"hindsight_regret_early": (float(seen.series["dual_value"].sum()) - optimum.value) / NUM_TOKENS}


def _bound(cell: Row, here: Setting) -> Row:
    """Claim C9 for eta_n = c/n with c >= 1/mu on the ball: it is 1/(mu' n) with mu' = 1/c <= mu."""
    if cell["population"] != "gumbel" or cell["schedule"] != "inverse" or cell["rule"] != "proportional":
        return {"bound_C": None}
    least, most = gumbel_pick_range(here.stream.offset_E(), here.radius)
    slack = here.curvature / cell["strength"]  # mu' = 1/c
    if slack > least:
        return {"bound_C": None}
    moment = bounds.gradient_second_moment_bound(most, here.stream.num_experts, here.top_k, NUM_TOKENS)
    steps_C = checkpoints(cell["num_steps"]).tolist()
    return {"bound_C": [bounds.logarithmic_regret(n, slack, moment) for n in steps_C]}


def findings(rows: list[Row]) -> list[Finding]:
    """Exponents and best-fitting growth of every arm, the C9 bound, and hindsight against pseudo-regret."""
    arms = _arms(rows)
    found = [
        _transition_finding(key, chosen) for key, chosen in arms.items() if key[1:3] == ("proportional", "inverse")
    ]
    found += [_growth_finding(key, chosen) for key, chosen in arms.items() if key[1:3] != ("proportional", "inverse")]
    found += [_bound_finding(key, chosen) for key, chosen in arms.items() if chosen[0]["bound_C"] is not None]
    found += [
        _hindsight_finding(key, chosen) for key, chosen in arms.items() if key[1:] == ("proportional", "inverse", 1.0)
    ]
    return found + [_best_finding(arms, population) for population in sorted({key[0] for key in arms})]


Arm = tuple[str, str, str, float]
"""Population, rule, schedule, strength."""


def _arms(rows: list[Row]) -> dict[Arm, list[Row]]:
    arms: dict[Arm, list[Row]] = {}
    for row in rows:
        arms.setdefault((row["population"], row["rule"], row["schedule"], row["strength"]), []).append(row)
    return arms


def _transition_finding(arm: Arm, rows: list[Row]) -> Finding:
    population, _, _, strength = arm
    theory, model = max(0.0, 1 - 2 * strength), _model_exponent(arm, rows[0]["num_steps"])
    low, middle, high = _exponent_interval(rows)
    return Finding(
        f"{population}, eta = c/n, c mu = {strength:g}: exponent a of N^a over the last two decades",
        f"{theory:.2g} in the limit; {model:.2f} for a quadratic at this N",
        f"{middle:.3f} [{low:.3f}, {high:.3f}]; fits best: {_best_growth(rows)}",
        low - 0.05 <= model <= high + 0.05,
    )


def _growth_finding(arm: Arm, rows: list[Row]) -> Finding:
    population, rule, schedule, strength = arm
    slow = max(0.0, 1 - 2 * strength)
    expected = {"inverse": slow, "inverse_sqrt": 0.5, "constant": 1.0}[schedule]
    low, middle, high = _exponent_interval(rows)
    return Finding(
        f"{population}, {rule}, {_SCHEDULE_WORDS[schedule]}, strength {strength:g}: exponent a of N^a",
        f"{expected:.2g}",
        f"{middle:.3f} [{low:.3f}, {high:.3f}]; fits best: {_best_growth(rows)}",
        low - 0.1 <= expected <= high + 0.1,
    )


def _bound_finding(arm: Arm, rows: list[Row]) -> Finding:
    regret_SC = np.array([row["regret_C"] for row in rows])
    ratio = mean_interval(regret_SC[:, -1] / rows[0]["bound_C"][-1])
    worst = float((regret_SC.mean(axis=0) / np.array(rows[0]["bound_C"])).max())
    return Finding(
        f"{arm[0]}, eta = c/n, c mu = {arm[3]:g}: regret over C9's bound",
        "at most 1",
        f"{ratio} at the end, at most {worst:.3g} on the way",
        worst <= 1.0,
    )


def _hindsight_finding(arm: Arm, rows: list[Row]) -> Finding:
    """The pooled optimum adapts to the sample, which is worth tr(H^+ Cov) / 2 = E sigma^2 / (2 h)."""
    here = setting(arm[0])
    head_start = here.stream.num_experts * here.noise**2 / (2 * here.curvature)
    gap = mean_interval(row["hindsight_regret_early"] - row["pseudo_regret_early"] for row in rows)
    return Finding(
        f"{arm[0]}, c mu = 1: hindsight minus pseudo-regret after {rows[0]['early_step']} steps",
        f"E sigma^2 / (2 h) = {head_start:.3g}",
        str(gap),
        bool(gap.low <= head_start <= gap.high) if gap.num_seeds > 1 else None,
    )


def _best_finding(arms: dict[Arm, list[Row]], population: str) -> Finding:
    """Over the steps that all arms have run."""
    chosen = {arm: rows for arm, rows in arms.items() if arm[0] == population}
    common = min(rows[0]["num_steps"] for rows in chosen.values())
    finals = {arm: mean_interval(_regret_at(row, common) for row in rows) for arm, rows in chosen.items()}
    best = min(finals, key=lambda arm: finals[arm].mean)
    words = f"{best[1]}, {_SCHEDULE_WORDS[best[2]]}, strength {best[3]:g}: {finals[best]}"
    return Finding(f"{population}: the arm with the least regret after {common:,} steps", "-", words, None)


def _regret_at(row: Row, num_steps: int) -> float:
    """Regret at the last checkpoint up to then."""
    return float(row["regret_C"][int(np.searchsorted(row["step_C"], num_steps, side="right")) - 1])


_SCHEDULE_WORDS = {"inverse": "c/n", "inverse_sqrt": "c/sqrt(n)", "constant": "constant"}


class _Bins(NamedTuple):
    """Mean excess f(p_n) - f(p*) in each bin of the last two decades."""

    step_B: NDArray[np.float64]
    excess_SB: NDArray[np.float64]
    """One row for each seed."""


def _bins(steps: list[int], regret_SC: NDArray[np.float64]) -> _Bins:
    step_C = np.array(steps, dtype=np.float64)
    late = step_C[:-1] >= step_C[-1] / 100
    excess_SB = np.diff(regret_SC, axis=1) / np.diff(step_C)
    return _Bins(np.sqrt(step_C[:-1] * step_C[1:])[late], excess_SB[:, late])


def _row_bins(rows: list[Row]) -> _Bins:
    return _bins(rows[0]["step_C"], np.array([row["regret_C"] for row in rows]))


def _slope(bins: _Bins, weight_RS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponent of the regret: 1 + slope of log excess against log n, for each row of weights over seeds."""
    x_B = np.log(bins.step_B) - np.log(bins.step_B).mean()
    y_RB = np.log(weight_RS @ bins.excess_SB)
    slope: NDArray[np.float64] = 1.0 + (y_RB @ x_B) / (x_B @ x_B)
    return slope


def _exponent_interval(rows: list[Row]) -> tuple[float, float, float]:
    """Low, middle and high of the regret's exponent: of the mean over seeds, bootstrapped over seeds."""
    bins = _row_bins(rows)
    count = len(bins.excess_SB)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=2000) / count
    middle = float(_slope(bins, np.full((1, count), 1 / count))[0])
    low, high = np.quantile(_slope(bins, draws), (0.025, 0.975))
    return float(low), middle, float(high)


def _best_growth(rows: list[Row]) -> str:
    """Of log N, sqrt N, N and N^a, the one with the least AIC on the mean excess and its error over seeds."""
    bins = _row_bins(rows)
    if len(bins.excess_SB) < 3:
        return "(too few seeds)"
    mean_B = bins.excess_SB.mean(axis=0)
    error_B = stats.sem(bins.excess_SB, axis=0) / mean_B
    y_B, x_B, weight_B = np.log(mean_B), np.log(bins.step_B), 1 / error_B**2
    free_slope, _ = np.polyfit(x_B, y_B, 1, w=1 / error_B)
    criterion = {}
    models = {"log N": (-1.0, 1), "sqrt N": (-0.5, 1), "N": (0.0, 1), f"N^{1 + free_slope:.2f}": (free_slope, 2)}
    for name, (slope, parameters) in models.items():
        residual_B = y_B - slope * x_B
        residual_B -= np.average(residual_B, weights=weight_B)
        criterion[name] = float(weight_B @ residual_B**2) + 2 * parameters
    ranked = sorted(criterion, key=lambda name: criterion[name])
    return f"{ranked[0]} (AIC {criterion[ranked[1]] - criterion[ranked[0]]:.1f} below {ranked[1]})"


def _model_exponent(arm: Arm, num_steps: int) -> float:
    """The same exponent for E|x|^2 of a quadratic: e_(n+1) = (1 - s/n)^2 e_n + (s/n)^2 noise / mu^2, no projection."""
    here = setting(arm[0])
    step_N = np.arange(1, num_steps + 1)
    keep_N = (1 - arm[3] / step_N) ** 2
    kick_N = (arm[3] / step_N) ** 2 * here.stream.num_experts * here.noise**2 / here.curvature**2
    excess, excess_N = START**2, np.empty(num_steps)
    for n in range(num_steps):
        excess_N[n] = excess
        excess = keep_N[n] * excess + kick_N[n]
    step_C = checkpoints(num_steps)
    bins = _bins(step_C.tolist(), np.cumsum(excess_N)[None, step_C - 1])
    return float(_slope(bins, np.ones((1, 1)))[0])


SHOWN_STRENGTHS = (0.1, 0.2, 0.5, 1.0, 4.0)
"""Curves of eta = c/n that can be told apart; the exponents of all strengths stand beside them."""

_SCHEDULE_COLORS = {"inverse": BLUE, "inverse_sqrt": GREEN, "constant": RED}


@styled
def figure(rows: list[Row]) -> Figure:
    """Regret of each schedule with its band over seeds, and the exponent through the transition."""
    drawing, (top_left, top_right, low_left, low_right) = new_figure(2, 2, height=6.4)
    arms = _arms(rows)
    inverse = {arm: arms[arm] for arm in sorted(arms) if arm[:3] == ("gumbel", "proportional", "inverse")}
    shown = {arm: chosen for arm, chosen in inverse.items() if arm[3] in SHOWN_STRENGTHS}
    colors = dict(zip(shown, ramp(len(shown))))
    _draw_regret(top_left, shown, "Gumbel, K = 1: eta = c/n", lambda arm: (colors[arm], "-", f"c mu = {arm[3]:g}"))
    for chosen in inverse.values():
        if chosen[0]["bound_C"] is not None:
            top_left.plot(chosen[0]["step_C"], chosen[0]["bound_C"], color="black", linestyle=":", label="C9 bound")
    top_left.legend(fontsize=7)
    _draw_transition(top_right, inverse)
    for axis, population, title in (
        (low_left, "gumbel", "Gumbel: schedules"),
        (low_right, "logistic", "Logistic, E = 6, K = 2: schedules"),
    ):
        compared = {arm: chosen for arm, chosen in arms.items() if arm[0] == population and _is_compared(arm)}
        _draw_regret(axis, compared, title, _schedule_look)
        axis.legend(fontsize=7)
    return drawing


def _is_compared(arm: Arm) -> bool:
    """One strength per schedule."""
    return arm[2] != "inverse" or arm[3] == 1.0


def _schedule_look(arm: Arm) -> tuple[str, str, str]:
    """The color says the schedule, the line the rule."""
    style = "--" if arm[1] == "sign" else "-"
    return _SCHEDULE_COLORS[arm[2]], style, f"{arm[1]}, {_SCHEDULE_WORDS[arm[2]]}"


def _draw_regret(
    axis: Axes, arms: dict[Arm, list[Row]], title: str, look: Callable[[Arm], tuple[Any, str, str]]
) -> None:
    for arm, chosen in arms.items():
        color, style, label = look(arm)
        step_C = chosen[0]["step_C"]
        regret_SC = np.array([row["regret_C"] for row in chosen])
        mean_C, half_C = regret_SC.mean(axis=0), _half_interval(regret_SC)
        axis.loglog(step_C, mean_C, color=color, linestyle=style, label=label)
        axis.fill_between(
            step_C, np.maximum(mean_C - half_C, 1e-9), mean_C + half_C, color=color, alpha=0.2, linewidth=0
        )
    axis.set_ylim(bottom=0.5 * min(np.mean([row["regret_C"][0] for row in chosen]) for chosen in arms.values()))
    axis.set(xlabel="step N", ylabel="pseudo-regret R$_N$ (score units per token)", title=title)


def _half_interval(values_SC: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(values_SC)
    if count == 1:
        return np.zeros(values_SC.shape[1])
    half: NDArray[np.float64] = stats.t.ppf(0.975, count - 1) * stats.sem(values_SC, axis=0)
    return half


def _draw_transition(axis: Axes, arms: dict[Arm, list[Row]]) -> None:
    strengths = [arm[3] for arm in arms]
    intervals = np.array([_exponent_interval(chosen) for chosen in arms.values()])
    errors = np.abs(intervals[:, [0, 2]] - intervals[:, [1]]).T
    fine = np.geomspace(min(strengths), max(strengths), 200)
    axis.plot(fine, np.maximum(0, 1 - 2 * fine), color="black", linewidth=0.9, label="theory, N to infinity")
    arm = next(iter(arms))
    horizon = max(row["num_steps"] for chosen in arms.values() for row in chosen)
    coarse = np.geomspace(min(strengths), max(strengths), 25)
    model = [_model_exponent((*arm[:3], float(s)), horizon) for s in coarse]
    axis.plot(coarse, model, color=GRAY, linestyle="--", linewidth=0.9, label=f"quadratic, N = {horizon:,}")
    axis.errorbar(strengths, intervals[:, 1], yerr=errors, fmt="o", color=BLUE, capsize=2, label="measured, 95%")
    axis.axvline(0.5, color=RED, linewidth=0.8, linestyle=":", label="c mu = 1/2")
    axis.set_xscale("log")
    axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 4], ["0.1", "0.2", "0.5", "1", "2", "4"])
    axis.minorticks_off()
    axis.set(xlabel="c mu", ylabel="exponent a of R$_N$ ~ N$^a$", title="Where logarithmic regret begins")
    axis.legend(fontsize=7)
