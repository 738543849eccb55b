"""MaxVio against the size of the computation batch, as in figure 5 of Wang et al. (arXiv 2408.15664).

A computation batch is the set of tokens that the experts process at once: a part of a training batch, or, for loads
summed over a run or a validation set, many training batches. Every training batch is routed in equal pieces at the bias
in force, and the loads of n consecutive pieces are added up, exactly. *Moving*: the bias goes on being updated after
every batch. *Frozen*: the last bias routes fresh tokens, as in validation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csr_array

from alflb import bounds, load_router_trace, make_rule, make_stream, metrics, route, solve_exact
from alflb.io import Row
from alflb.plotting import BLUE, GRAY, GREEN, ORANGE, RED, legend_below, new_figure, plain_ticks, styled
from alflb.population import IndependentScores, Population, SampledScores
from alflb.problem import AssignmentProblem, FloatArray
from alflb.rules import Observation
from alflb.streams import SyntheticStream
from alflb.streams.base import seeded
from alflb.verdict import Finding
from experiments._statistics import Estimate, mean_interval
from experiments.tracking import COST_OF

CLAIM = (
    "With a loss-free bias the MaxVio of a computation batch falls with its size as far as sampling allows; without "
    "balancing it does not fall."
)
VERDICT = (
    "Supported for independent tokens while the bias moves; refuted for a frozen bias, whose last ripple sets a floor, "
    "and for real text in its order."
)

NUM_EXPERTS, TOP_K = 64, 6
PIECES = 8
"""Equal pieces of a training batch that are counted apart."""

WANG_TOKENS = 1152 * 2048
"""Tokens of a training batch of Wang et al.; they measured MaxVio_global on about 71 million, 30 such batches."""
WANG_PUBLISHED = {("sign", 1e-3): 0.044, ("proportional", 1e-3): 0.036}
"""Their MaxVio_global, table 3, by rule and step size; the unit of load of the second is not known."""

_SIZES = {
    "independent": {"num_tokens": 2048, "settle": 200, "tail": 128},
    "drift": {"num_tokens": 2048, "settle": 200, "tail": 128},
    "text": {"num_tokens": 512, "settle": 64, "tail": 32},
    "wang": {"num_tokens": WANG_TOKENS, "settle": 200, "tail": 32},
}
_GATES = (("sign", 1e-3), ("sign", 1e-2), ("proportional", 1e-3))
_LOGITS = (("sign", 1e-2), ("sign", 1e-1), ("proportional", 1e-1))
_RULES = {"independent": _LOGITS, "drift": _LOGITS, "text": _GATES, "wang": _GATES}


def _cells(source: str, **smaller: int) -> list[Row]:
    """No bias, the best fixed bias, and the rules from there on; `settle` and `tail` count training batches."""
    arms = [("none", None, False), ("none", None, True), *((rule, u, True) for rule, u in _RULES[source])]
    return [
        {"source": source, "rule": rule, "step_size": u, "from_optimum": best, **_SIZES[source], **smaller}
        for rule, u, best in arms
    ]


GRID = [cell for source in _SIZES for cell in _cells(source)]
SEEDS = 4
SMOKE = [cell for source in _SIZES for cell in _cells(source, settle=4, tail=8)]


def cost(cell: Row) -> float:
    """Tokens routed."""
    tokens = len(load_router_trace().scores_TE) if cell["source"] == "wang" else cell["num_tokens"]
    return float(tokens * (cell["settle"] + 2 * cell["tail"]))


class Batch(NamedTuple):
    """One training batch: tokens, and how often each of them occurs in each piece."""

    scores_TE: FloatArray
    count_PT: NDArray[np.int64]

    def loads(self, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """Loads of each piece, all routed with this bias, shape (P, E)."""
        experts_TK = route(self.scores_TE, bias_E, TOP_K).experts_TK
        num_tokens = len(experts_TK)
        ends = np.arange(0, experts_TK.size + 1, TOP_K)
        picked_TE = csr_array((np.ones(experts_TK.size, dtype=np.int64), experts_TK.ravel(), ends))
        picked_TE.resize(num_tokens, len(bias_E))
        return np.asarray((picked_TE.T @ self.count_PT.T).T, dtype=np.int64)


def _batches(cell: Row, seed: int) -> Iterator[Batch]:
    """The training batches of a cell, without end."""
    source, num_tokens = cell["source"], cell["num_tokens"]
    if source == "wang":
        yield from _resampled(num_tokens, seed)
    names = {"independent": "logistic", "drift": "drift", "text": "trace"}
    sizes = {"num_tokens": num_tokens} if source == "text" else {"num_tokens": num_tokens, "num_experts": NUM_EXPERTS}
    count_PT = np.repeat(np.eye(PIECES, dtype=np.int64), num_tokens // PIECES, axis=1)
    for scores_TE in make_stream(names[source], **sizes).batches(seed):
        yield Batch(scores_TE, count_PT)


def _resampled(num_tokens: int, seed: int) -> Iterator[Batch]:
    """Real tokens drawn with replacement: how often each is drawn is all that a count of loads needs."""
    scores_TE = load_router_trace().scores_TE
    share_T = np.full(len(scores_TE), 1 / len(scores_TE))
    for t in itertools.count(1):
        rng = seeded("computation batch", seed, t)
        yield Batch(scores_TE, rng.multinomial(num_tokens // PIECES, share_T, size=PIECES))


class Facts(NamedTuple):
    """The best fixed bias of a source, and the curvature there where the source has one."""

    optimum_E: NDArray[np.float64]
    mode_M: NDArray[np.float64] | None


@cache
def _facts(source: str) -> Facts:
    """For `drift`, the optimum at the start."""
    population: Population
    if source in ("text", "wang"):
        trace = load_router_trace()
        optimum_E = solve_exact(AssignmentProblem(trace.scores_TE, trace.top_k)).bias_E
        if source == "text":
            return Facts(optimum_E, None)
        population = SampledScores(trace.scores_TE, trace.top_k)
    else:
        stream = make_stream("logistic" if source == "independent" else source, num_experts=NUM_EXPERTS)
        assert isinstance(stream, SyntheticStream)
        population = IndependentScores(stats.logistic(), TOP_K, offsets=stream.offset_E())
        optimum_E = population.optimum()
        if source == "drift":
            return Facts(optimum_E, None)
    return Facts(optimum_E, population.curvatures(optimum_E))


def run(cell: Row, seed: int) -> list[Row]:
    """One row per size: mean MaxVio with the bias moving and frozen, what sampling leaves, and what the law says."""
    facts = _facts(cell["source"])
    settle, tail, piece = cell["settle"], cell["tail"], cell["num_tokens"] // PIECES
    batches = _batches(cell, seed)
    bias_NE, load_NPE = _train(cell, _start(cell, facts.optimum_E, seed), itertools.islice(batches, settle + tail))
    later = list(itertools.islice(batches, tail))
    # Steps of equal size alternate: the last two biases stand for the bias of a step taken at random.
    frozen = [np.concatenate([batch.loads(bias_E) for batch in later]) for bias_E in bias_NE[-2:]]
    moving = np.concatenate(load_NPE[settle:])
    ripple = _ripple(cell, facts.mode_M)
    rows: list[Row] = []
    for count in (2**power for power in range(int(math.log2(PIECES * tail)) + 1)):
        floor = bounds.sampling_max_vio(count * piece, TOP_K, len(facts.optimum_E))
        rows.append(
            {
                "tokens": count * piece,
                "max_vio_moving": pooled_max_vio(moving, count),
                "max_vio_frozen": float(np.mean([pooled_max_vio(load_QE, count) for load_QE in frozen])),
                "floor": floor,
                "predicted_frozen": None if ripple is None else math.hypot(floor, ripple),
            }
        )
    return rows


def _start(cell: Row, optimum_E: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Zero, or the optimum less a random part of a step: equal steps from the optimum itself would return to it."""
    if not cell["from_optimum"]:
        return np.zeros_like(optimum_E)
    return optimum_E + (cell["step_size"] or 0.0) * seeded("start", seed).uniform(-1, 1, len(optimum_E))


def _train(
    cell: Row, bias_E: NDArray[np.float64], batches: Iterator[Batch]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
    """The bias before each batch and after the last, and the loads of the pieces of each batch."""
    rule = make_rule(cell["rule"]) if cell["step_size"] is None else make_rule(cell["rule"], cell["step_size"])
    target_E = np.full(len(bias_E), cell["num_tokens"] * TOP_K / len(bias_E))
    state = rule.init(len(bias_E))
    bias_NE, load_NPE = [bias_E], []
    for t, batch in enumerate(batches, start=1):
        load_NPE.append(batch.loads(bias_NE[-1]))
        bias_E, state = rule.step(bias_NE[-1], Observation(t, target_E, load_E=load_NPE[-1].sum(axis=0)), state)
        bias_NE.append(bias_E)
    return bias_NE, load_NPE


def pooled_max_vio(load_QE: NDArray[np.int64], count: int) -> float:
    """Mean MaxVio of the loads of `count` consecutive pieces; pieces that do not fill a last group are left out."""
    groups = len(load_QE) // count
    pooled_GE = load_QE[: groups * count].reshape(groups, count, -1).sum(axis=1)
    return float(metrics.max_vio(pooled_GE).mean())


def _ripple(cell: Row, mode_M: NDArray[np.float64] | None) -> float | None:
    """MaxVio that the law's own fluctuation of the bias leaves on infinitely many tokens."""
    if mode_M is None or not cell["from_optimum"]:
        return None
    if cell["step_size"] is None:
        return 0.0
    still = bounds.TargetMotion()
    with_noise, noise = (
        COST_OF[cell["rule"]](u, still, cell["num_tokens"], TOP_K, mode_M).max_vio for u in (cell["step_size"], 0.0)
    )
    return math.sqrt(with_noise**2 - noise**2)


def findings(rows: list[Row]) -> list[Finding]:
    """How far MaxVio falls, against the sampling floor, the ripple of the last bias, and the published figures."""
    arms = _arms(rows)
    found: list[Finding] = []
    for arm, chosen in arms.items():
        if arm.source == "independent":
            found += _independent_findings(arm, chosen)
        elif arm.source == "wang":
            found.append(_wang_finding(arm, chosen))
        else:
            found.append(_ratio_finding(arm, chosen))
    return found


class Arm(NamedTuple):
    """What a curve belongs to."""

    source: str
    rule: str
    step_size: float | None
    from_optimum: bool

    def __str__(self) -> str:
        if self.step_size is None:
            return "best fixed bias" if self.from_optimum else "no bias"
        return f"{self.rule}, u = {self.step_size:g}"


_WORDS = {
    "independent": "independent tokens",
    "drift": "moving optimum",
    "text": "real text in its order",
    "wang": "real tokens, batches of Wang et al.",
}


def _arms(rows: list[Row]) -> dict[Arm, list[Row]]:
    arms: dict[Arm, list[Row]] = {}
    for row in rows:
        arms.setdefault(Arm(*(row[name] for name in Arm._fields)), []).append(row)
    return arms


def _at(rows: list[Row], tokens: int, column: str, over: str | None = None) -> Estimate:
    """A column, or its ratio to another, at one size."""
    chosen = [row for row in rows if row["tokens"] == tokens]
    return mean_interval(row[column] / (1 if over is None else row[over]) for row in chosen)


def _independent_findings(arm: Arm, rows: list[Row]) -> Iterator[Finding]:
    where, most = f"{_WORDS[arm.source]}, {arm}", max(row["tokens"] for row in rows)
    batch = rows[0]["num_tokens"]
    if not arm.from_optimum:
        fall = mean_interval(
            after["max_vio_moving"] / before["max_vio_moving"]
            for before, after in zip(*([row for row in rows if row["tokens"] == size] for size in (batch, most)))
        )
        yield Finding(f"{where}: MaxVio of {most:,} tokens over that of {batch:,}", "1", str(fall), fall.low > 0.9)
        return
    frozen = _at(rows, most, "max_vio_frozen")
    said = next(row["predicted_frozen"] for row in rows if row["tokens"] == most)
    yield Finding(
        f"{where}, frozen: MaxVio of {most:,} tokens",
        f"{said:.3f}: sampling and ripple",
        str(frozen),
        0.8 * said <= frozen.high and frozen.low <= 1.2 * said,
    )
    if arm.step_size is not None:
        ratio = _at(rows, most, "max_vio_moving", over="floor")
        yield Finding(f"{where}, moving: the same over the sampling floor", "below 1", str(ratio), ratio.mean < 1)


def _ratio_finding(arm: Arm, rows: list[Row]) -> Finding:
    sizes = (rows[0]["num_tokens"], max(row["tokens"] for row in rows))
    words = "; ".join(
        f"{tokens:,} tokens: {_at(rows, tokens, 'max_vio_moving')}, sampling {_at(rows, tokens, 'floor').mean:.2g}"
        for tokens in sizes
    )
    return Finding(f"{_WORDS[arm.source]}, {arm}, moving: MaxVio", "-", words, None)


def _wang_finding(arm: Arm, rows: list[Row]) -> Finding:
    most = max(row["tokens"] for row in rows)
    published = WANG_PUBLISHED.get((arm.rule, arm.step_size or 0.0))
    said = next(row["predicted_frozen"] for row in rows if row["tokens"] == most)
    expected = "-" if said is None else f"{said:.2g} by the law"
    return Finding(
        f"{_WORDS[arm.source]}, {arm}, frozen: MaxVio of {most / 1e6:.0f}M tokens",
        expected if published is None else f"{expected}; published {published}",
        str(_at(rows, most, "max_vio_frozen")),
        None,
    )


@styled
def figure(rows: list[Row]) -> Figure:
    """MaxVio against the tokens of a computation batch: bias moving (solid), frozen (dashed), sampling alone (dots)."""
    drawing, axes = new_figure(2, 2, height=6.4)
    arms = _arms(rows)
    for axis, source in zip(axes, _WORDS):
        _draw(axis, {arm: chosen for arm, chosen in arms.items() if arm.source == source})
        axis.set_title(_WORDS[source][0].upper() + _WORDS[source][1:])
    legend_below(drawing, axes[-1], columns=4)
    return drawing


def _draw(axis: Axes, arms: dict[Arm, list[Row]]) -> None:
    looks = ((GRAY, "no bias"), (ORANGE, "best fixed bias"), (BLUE, "sign, smaller u"), (RED, "sign, larger u"))
    for chosen, (color, label) in zip(arms.values(), (*looks, (GREEN, "proportional"))):
        sizes = sorted({row["tokens"] for row in chosen})
        moving, frozen = (
            [_at(chosen, size, f"max_vio_{name}").mean for size in sizes] for name in ("moving", "frozen")
        )
        axis.loglog(sizes, moving, "o-", color=color, markersize=3, label=label)
        axis.loglog(sizes, frozen, "--", color=color)
    any_rows = next(iter(arms.values()))
    sizes = sorted({row["tokens"] for row in any_rows})
    axis.loglog(
        sizes, [_at(any_rows, size, "floor").mean for size in sizes], ":", color="black", label="sampling alone"
    )
    axis.axvline(any_rows[0]["num_tokens"], color=GRAY, linewidth=0.8)
    if any_rows[0]["source"] == "wang":
        values = list(WANG_PUBLISHED.values())
        axis.plot([71e6] * len(values), values, "D", color="black", label="published (Wang et al.)")
    plain_ticks(axis.yaxis)
    axis.set(xlabel="tokens of the computation batch", ylabel="MaxVio")
