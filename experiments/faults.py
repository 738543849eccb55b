"""Faults of balancing seen in production: which rules survive them, how bad it gets, and which check tells.

A global batch comes in parts (ranks, or micro-batches), each routed with the bias in force. A balancer turns what the
parts report into the next bias. Each fault is a small wrapper around the healthy balancer; the router keeps drifting,
so a balancer that stops working falls behind. `alflb.diagnose` gets what a run could have logged, and nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.stats import logistic

from alflb import make_rule, metrics
from alflb.exact import solve_exact
from alflb.io import Row
from alflb.kernels import get_kernels
from alflb.kernels.draws import Draw
from alflb.plotting import new_figure, styled
from alflb.population import IndependentScores
from alflb.precision import round_to
from alflb.problem import AssignmentProblem, FloatArray
from alflb.rules import Observation, Rule, Sight
from alflb.streams.drift import Drift
from alflb.streams.logistic import Logistic
from alflb.training.diagnosis import diagnose
from alflb.verdict import Finding
from experiments._statistics import Estimate, mean_interval

CLAIM = "Every fault that hurts balance leaves a mark that a check of the log finds, and healthy runs raise no alarm."
VERDICT = (
    "Supported for the 18 findings here: counts that do not sum to K T give away most faults, MaxVio of the "
    "update's own counts none."
)

Vector = NDArray[np.float64]

TOP_K = 2
RULES = {
    "sign 0.001": lambda: make_rule("sign", 1e-3),
    "sign 0.01": lambda: make_rule("sign", 1e-2),
    "proportional 0.02": lambda: make_rule("proportional", 0.02),
    "qb": lambda: make_rule("qb"),
}
LOAD_RULES = ("sign 0.001", "sign 0.01", "proportional 0.02")
HARMLESS = 1.1
"""MaxVio over that of the healthy run below which a fault did no harm."""
DUAL_RISES = 0.05
"""Share of steps on which D may rise on quantile balancing's own batch; by theory 0 (rules/quantiles.py)."""


class Setting(NamedTuple):
    """What is trained: a router whose population drifts, in `num_parts` parts of a batch."""

    num_tokens: int
    num_experts: int
    num_parts: int
    period: float = 10_000.0
    domain_spread: float = 0.0
    """Standard deviation of what each part's own population adds to the offsets; 0: parts are alike."""


SETTINGS = {
    "ranks": Setting(2048, 16, 8),
    "domains": Setting(2048, 16, 8, domain_spread=1.0),
    "8 micro-batches": Setting(163_840, 8, 8),
    "64 micro-batches": Setting(163_840, 8, 64),
    "512 micro-batches": Setting(163_840, 8, 512),
}


@dataclass(frozen=True)
class Batch:
    """What the parts of one global batch can report: scores (as draws), loads, and the bias they were routed with."""

    draws: tuple[Draw, ...]
    load_PE: NDArray[np.int64]
    bias_E: Vector
    dual_sum: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all parts."""
        return sum(draw.num_tokens for draw in self.draws)

    def scores(self) -> FloatArray:
        """Scores of all parts, shape (T, E)."""
        return np.concatenate([draw.scores() for draw in self.draws])

    def part(self, place: int) -> Batch:
        """One part of it."""
        return replace(self, draws=self.draws[place : place + 1], load_PE=self.load_PE[place : place + 1])

    def joined(self, other: Batch) -> Batch:
        """Both together."""
        return replace(self, draws=self.draws + other.draws, load_PE=np.concatenate([self.load_PE, other.load_PE]))


@dataclass
class Balancer:
    """Healthy: each part counts once, in integers; counts are held against their own mean, as in production code."""

    rule: Rule

    def received(self, batch: Batch, t: int) -> Batch:
        """What reaches the update."""
        return batch

    def counts(self, batch: Batch) -> Vector:
        """The counts of all parts, added up."""
        return batch.load_PE.sum(axis=0).astype(np.float64)

    def target(self, counts_E: Vector) -> Vector:
        """What counts are held against."""
        return np.full_like(counts_E, counts_E.mean())

    def next_bias(self, batch: Batch, bias_E: Vector, t: int) -> Vector:
        """The rule's update from what it received."""
        counts_E: Any = self.counts(batch)
        seen = Observation(t, self.target(counts_E), load_E=counts_E, scores_TE=batch.scores, top_k=TOP_K)
        # thresholds were taken in the forward pass, under the bias of that pass; loads move the bias in force
        start_E = bias_E if self.rule.sees is Sight.LOADS else batch.bias_E
        return self.rule.step(start_E, seen, ())[0]


class Bf16Counts(Balancer):
    """The counter is a bf16 buffer to which part after part is added."""

    def counts(self, batch: Batch) -> Vector:
        """Rounded after each addition."""
        return bf16_sum(batch.load_PE)


class Bf16Bias(Balancer):
    """The bias is a bf16 buffer. A common shift, which exact arithmetic does not notice, then costs resolution."""

    def next_bias(self, batch: Batch, bias_E: Vector, t: int) -> Vector:
        """Rounded after each update."""
        return round_to(super().next_bias(batch, bias_E, t), "bf16").astype(np.float64)


class CountedTwice(Balancer):
    """Activation checkpointing runs the router again in the backward pass, and the counter with it."""

    def received(self, batch: Batch, t: int) -> Batch:
        """Every part twice."""
        return batch.joined(batch)


class CountedTwiceAgainstTarget(CountedTwice):
    """The same, where counts are held against the configured K T / E and not against their own mean."""

    def target(self, counts_E: Vector) -> Vector:
        """Half the mean of the doubled counts."""
        return np.full_like(counts_E, counts_E.mean() / 2)


@dataclass
class Stale(Balancer):
    """The update gets the statistics of `delay` steps before; until there are any, the first ones."""

    delay: int = 0
    waiting: deque[Batch] = field(default_factory=deque)

    def received(self, batch: Batch, t: int) -> Batch:
        """The batch of `delay` steps before."""
        self.waiting.append(batch)
        return self.waiting.popleft() if len(self.waiting) > self.delay else self.waiting[0]


class OneRank(Balancer):
    """No all-reduce: the first rank's statistics, and the bias they make, are taken for all."""

    def received(self, batch: Batch, t: int) -> Batch:
        """The first part."""
        return batch.part(0)


class AveragedQuantiles(Balancer):
    """Quantile balancing on each part, and the average of the results: not the quantile of the whole batch."""

    def next_bias(self, batch: Batch, bias_E: Vector, t: int) -> Vector:
        """The mean over parts."""
        parts = [super(AveragedQuantiles, self).next_bias(batch.part(p), bias_E, t) for p in range(len(batch.draws))]
        return np.mean(parts, axis=0)


@dataclass
class EvalLeak(Balancer):
    """Counters run on in evaluation: every `every` steps the update also gets `batches` batches of other text."""

    every: int = 1
    batches: int = 1
    evaluation: Drift = field(default_factory=lambda: Drift(population_seed=1))
    seed: int = 0

    def received(self, batch: Batch, t: int) -> Batch:
        """Training and evaluation together."""
        if t % self.every:
            return batch
        stream = replace(
            self.evaluation, num_tokens=self.batches * batch.num_tokens, num_experts=batch.load_PE.shape[1]
        )
        return batch.joined(route(tuple(islice(stream.draws(10**7 + 1000 * self.seed + t), 1)), batch.bias_E))


@dataclass
class Frozen(Balancer):
    """The bias no longer moves from step `last` on, while the router goes on drifting."""

    last: int = 0

    def next_bias(self, batch: Batch, bias_E: Vector, t: int) -> Vector:
        """The bias as it is."""
        return bias_E if t > self.last else super().next_bias(batch, bias_E, t)


class Fault(NamedTuple):
    """How to break a balancer, where it is tried, and what should tell."""

    make: Callable[[Rule, int], Balancer]
    settings: tuple[str, ...]
    rules: tuple[str, ...]
    check: str
    """Name of the check that is expected to find it; "" for a healthy run."""
    check_qb: str = ""
    """The same for quantile balancing, where it differs."""
    gauge: float = 0.0
    separate_ranks: bool = False


EVERY_RULE = tuple(RULES)
LARGE = ("8 micro-batches", "64 micro-batches", "512 micro-batches")
FAULTS = {
    "healthy": Fault(lambda rule, seed: Balancer(rule), ("ranks", "domains"), EVERY_RULE, ""),
    "healthy, large batch": Fault(lambda rule, seed: Balancer(rule), LARGE[:1], LOAD_RULES, ""),
    "bf16 counts": Fault(lambda rule, seed: Bf16Counts(rule), LARGE, LOAD_RULES, "totals"),
    "bf16 bias": Fault(lambda rule, seed: Bf16Bias(rule), ("ranks",), EVERY_RULE, "rounded bias"),
    "bf16 bias near 5": Fault(lambda rule, seed: Bf16Bias(rule), ("ranks",), LOAD_RULES, "rounded bias", gauge=5.0),
    "counted twice": Fault(lambda rule, seed: CountedTwice(rule), ("ranks",), EVERY_RULE, "totals"),
    "counted twice, fixed target": Fault(
        lambda rule, seed: CountedTwiceAgainstTarget(rule), ("ranks",), EVERY_RULE, "totals"
    ),
    "stale by 4": Fault(lambda rule, seed: Stale(rule, 4), ("ranks",), EVERY_RULE, "delay", "dual rises"),
    "stale by 32": Fault(lambda rule, seed: Stale(rule, 32), ("ranks",), EVERY_RULE, "delay", "dual rises"),
    "one rank for all": Fault(lambda rule, seed: OneRank(rule), ("ranks", "domains"), EVERY_RULE, "totals"),
    "each rank for itself": Fault(
        lambda rule, seed: Balancer(rule), ("ranks", "domains"), EVERY_RULE, "ranks", separate_ranks=True
    ),
    "averaged quantiles": Fault(
        lambda rule, seed: AveragedQuantiles(rule), ("ranks", "domains"), ("qb",), "dual rises"
    ),
    "eval every 50 steps": Fault(
        lambda rule, seed: EvalLeak(rule, every=50, batches=10, seed=seed), ("ranks",), EVERY_RULE, "totals"
    ),
    "eval at every step": Fault(lambda rule, seed: EvalLeak(rule, seed=seed), ("ranks",), EVERY_RULE, "totals"),
    "frozen": Fault(lambda rule, seed: Frozen(rule, 50), ("ranks",), EVERY_RULE, "unmoved bias"),
}
CHECKS = ("totals", "rounded counts", "rounded bias", "unmoved bias", "delay", "ranks", "dual rises")

GRID = [
    {"fault": name, "setting": setting, "rule": rule, "num_steps": 100 if setting in LARGE else 400}
    for name, fault in FAULTS.items()
    for setting in fault.settings
    for rule in fault.rules
]
SEEDS = 5
SMOKE = [
    cell | {"num_steps": 100}
    for cell in GRID
    if (cell["rule"] == "sign 0.01" and cell["setting"] == "ranks" and cell["fault"] != "stale by 32")
    or (cell["rule"] == "qb" and cell["fault"] in ("healthy", "averaged quantiles"))
]


def cost(cell: Row) -> float:
    """Parts routed, roughly."""
    setting = SETTINGS[cell["setting"]]
    return cell["num_steps"] * (setting.num_parts * 100 + setting.num_tokens * (3 if cell["rule"] == "qb" else 1) / 4)


@dataclass(frozen=True)
class Record:
    """What a run leaves behind."""

    bias_NE: Vector
    load_NE: NDArray[np.int64]
    """Loads as routed."""
    counts_NE: Vector
    """Loads as the update received them."""
    affinity_N: Vector
    """Score units, summed over the batch."""
    dual_rises_N: NDArray[np.bool_]
    """Whether D rose on the batch from which quantile balancing took its next bias; False for other rules."""


def run(cell: Row, seed: int) -> list[Row]:
    """Train with the fault; balance and affinity of the last half, and which checks fire on the log."""
    fault, setting, rule = FAULTS[cell["fault"]], SETTINGS[cell["setting"]], RULES[cell["rule"]]()
    streams = part_streams(setting)
    start_E = starting_bias(streams, seed) + fault.gauge
    if fault.separate_ranks:
        records = [
            train([stream], fault.make(rule, seed), cell["num_steps"], seed, start_E, first_part=place)
            for place, stream in enumerate(streams)
        ]
        whole = _together(records)
        rank_bias = [record.bias_NE[-1] for record in records]
        found = _checks(records[0], TOP_K * setting.num_tokens // setting.num_parts, rank_bias)
    else:
        whole = train(streams, fault.make(rule, seed), cell["num_steps"], seed, start_E)
        found = _checks(whole, TOP_K * setting.num_tokens)
    saved = _later_load(streams, whole.bias_NE[-1], cell["num_steps"], seed)
    half = cell["num_steps"] // 2
    max_vio_N = metrics.max_vio(whole.load_NE[half:])
    return [
        {
            "max_vio_mean": float(max_vio_N.mean()),
            "max_vio_p99": float(np.quantile(max_vio_N, 0.99)),
            "max_vio_worst": float(max_vio_N.max()),
            "max_vio_logged": float(metrics.max_vio(whole.counts_NE[half:]).mean()),
            "max_vio_global": metrics.max_vio_global(whole.load_NE[half:]),
            "max_vio_saved_bias": float(metrics.max_vio(saved)),
            "affinity_per_pick": float(whole.affinity_N[half:].mean() / (TOP_K * setting.num_tokens)),
            **{f"fires: {name}": name in found for name in CHECKS},
        }
    ]


def part_streams(setting: Setting) -> list[Drift]:
    """One drifting stream for each part; their populations differ where the setting says so."""
    num_tokens = setting.num_tokens // setting.num_parts
    common = Drift(num_tokens, setting.num_experts, period=setting.period)
    own_PE = np.random.default_rng(1).standard_normal((setting.num_parts, setting.num_experts))
    offsets_PE = common.offset_E() + setting.domain_spread * (own_PE - own_PE.mean(axis=0))
    return [replace(common, offsets=tuple(offset_E.tolist())) for offset_E in offsets_PE]


def starting_bias(streams: list[Drift], seed: int) -> Vector:
    """The optimal bias when the run begins: of the population where parts are alike, else of 1,024 tokens a part."""
    if len(set(streams)) == 1:
        return IndependentScores(logistic(), TOP_K, offsets=streams[0].offset_at(1)).optimum()
    picked = [replace(stream, num_tokens=1024) for stream in streams]
    scores_TE = np.concatenate([next(stream.batches(10**6 + seed)) for stream in picked])
    return solve_exact(AssignmentProblem(scores_TE, TOP_K)).bias_E


def train(
    streams: list[Drift], balancer: Balancer, num_steps: int, seed: int, start_E: Vector, first_part: int = 0
) -> Record:
    """The loop of `alflb.simulate` with a batch in parts and a balancer between loads and rule."""
    sees_scores = balancer.rule.sees is not Sight.LOADS
    bias_NE = np.empty((num_steps + 1, len(start_E)))
    bias_NE[0] = start_E
    load_NE = np.empty((num_steps, len(start_E)), dtype=np.int64)
    counts_NE, affinity_N = np.empty(load_NE.shape), np.empty(num_steps)
    dual_rises_N = np.zeros(num_steps, dtype=bool)
    for n, draws in enumerate(islice(_batches(streams, seed, first_part), num_steps)):
        batch = route(draws, bias_NE[n])
        received = balancer.received(batch, n + 1)
        counts_NE[n] = balancer.counts(received)
        bias_NE[n + 1] = balancer.next_bias(received, bias_NE[n], n + 1)
        load_NE[n] = batch.load_PE.sum(axis=0)
        affinity_N[n] = batch.dual_sum - load_NE[n] @ bias_NE[n]
        dual_rises_N[n] = sees_scores and _dual_rises(batch, bias_NE[n + 1])
    return Record(bias_NE, load_NE, counts_NE, affinity_N, dual_rises_N)


def route(draws: tuple[Draw, ...], bias_E: Vector) -> Batch:
    """Top-K of every part."""
    kernels = get_kernels("numba")
    loads, dual_sums = zip(*(kernels.drawn_loads(draw, bias_E, TOP_K) for draw in draws))
    return Batch(draws, np.stack(loads), bias_E, float(sum(dual_sums)))


def bf16_sum(load_PE: NDArray[np.int64]) -> Vector:
    """Loads of the parts added one after the other in bf16."""
    total_E = np.zeros(load_PE.shape[1], dtype=np.float32)
    for load_E in load_PE:
        total_E = round_to(total_E + round_to(load_E, "bf16"), "bf16")
    return total_E.astype(np.float64)


def _batches(streams: list[Drift], seed: int, first_part: int) -> Iterator[tuple[Draw, ...]]:
    return zip(*(stream.draws(1000 * seed + part) for part, stream in enumerate(streams, first_part)))


def _dual_rises(batch: Batch, next_bias_E: Vector) -> bool:
    """Whether D of this batch is higher at the next bias, by more than rounding."""
    after = route(batch.draws, next_bias_E).dual_sum
    share = TOP_K * batch.num_tokens / len(next_bias_E)
    change = after - batch.dual_sum - share * float((next_bias_E - batch.bias_E).sum())
    return change > 1e-6 * batch.num_tokens


def _later_load(streams: list[Drift], bias_E: Vector, num_steps: int, seed: int) -> Vector:
    """Loads of 20 fresh batches of all parts at the end of the run, routed with the bias a checkpoint would hold."""
    load_E = np.zeros(len(bias_E))
    for place, stream in enumerate(streams[:16]):
        offsets = tuple(stream.offset_at(num_steps).tolist())
        later = Logistic(20 * stream.num_tokens, stream.num_experts, offsets)
        load_E += route(tuple(islice(later.draws(1000 * seed + place), 1)), bias_E).load_PE[0]
    return load_E


def _together(records: list[Record]) -> Record:
    """Ranks that ran each for itself, seen as one run; the bias shown is the first rank's."""
    return Record(
        records[0].bias_NE,
        np.sum([record.load_NE for record in records], axis=0),
        np.sum([record.counts_NE for record in records], axis=0),
        np.sum([record.affinity_N for record in records], axis=0),
        records[0].dual_rises_N,
    )


def _checks(record: Record, num_picks: int, rank_bias: list[Vector] | None = None) -> set[str]:
    """Names of the checks that fire on the log of a run."""
    suspicions = diagnose(
        record.counts_NE, record.bias_NE, num_picks=num_picks, loads=record.load_NE, rank_bias=rank_bias
    )
    found = {suspicion.check for suspicion in suspicions}
    return found | ({"dual rises"} if record.dual_rises_N.mean() > DUAL_RISES else set())


def findings(rows: list[Row]) -> list[Finding]:
    """False alarms of every check; then each fault: whether its check fired, and what it did to each rule."""
    healthy = [row for row in rows if not FAULTS[row["fault"]].check]
    alarms = sum(row[f"fires: {name}"] for row in healthy for name in CHECKS)
    statement = f"false alarms of {len(CHECKS)} checks on {len(healthy)} healthy runs"
    stated = [Finding(statement, "0", str(alarms), alarms == 0)]
    for label, chosen in _by_fault(rows).items():
        fired = sum(row[f"fires: {_expected_check(row)}"] for row in chosen)
        ratios = {rule: _ratio(rows, [row for row in chosen if row["rule"] == rule]) for rule in _rules(chosen)}
        harmless = all(ratio.mean < HARMLESS for ratio in ratios.values())
        names = " or ".join(sorted({f"“{_expected_check(row)}”" for row in chosen}))
        words = "; ".join(f"{rule} {_damage(rows, chosen, rule, ratio)}" for rule, ratio in ratios.items())
        verdict = True if fired == len(chosen) else None if harmless else False
        measured = f"{names} in {fired} of {len(chosen)} runs. {words}"
        stated.append(Finding(label, "check fires, or no harm", measured, verdict))
    return stated


def _damage(rows: list[Row], chosen: list[Row], rule: str, ratio: Estimate) -> str:
    """Mean MaxVio over that of the healthy run, its extremes, what the update's own counts showed, and affinity."""
    own = [row for row in chosen if row["rule"] == rule]
    p99, worst = max(row["max_vio_p99"] for row in own), max(row["max_vio_worst"] for row in own)
    logged, saved = (np.mean([row[name] for row in own]) for name in ("max_vio_logged", "max_vio_saved_bias"))
    gain = np.mean([row["affinity_per_pick"] - _twin(rows, row)["affinity_per_pick"] for row in own])
    true = np.mean([row["max_vio_mean"] for row in own])
    return (
        f"×{ratio} ({true:.3f}, p99 {p99:.2f}, worst {worst:.2f}, logged {logged:.3f}, saved bias {saved:.2f}, "
        f"affinity {gain:+.3f})"
    )


def _ratio(rows: list[Row], chosen: list[Row]) -> Estimate:
    """Geometric mean over seeds of MaxVio over that of the healthy run, with its interval."""
    logarithm = mean_interval(math.log(row["max_vio_mean"] / _twin(rows, row)["max_vio_mean"]) for row in chosen)
    low, mean, high = map(math.exp, (logarithm.low, logarithm.mean, logarithm.high))
    return Estimate(mean, low, high, logarithm.num_seeds)


def _twin(rows: list[Row], row: Row) -> Row:
    """The healthy run of the same rule, population and seed."""
    kind = "healthy, large batch" if row["setting"] in LARGE else "healthy"
    setting = LARGE[0] if row["setting"] in LARGE else row["setting"]
    return next(
        other
        for other in rows
        if (other["fault"], other["setting"], other["rule"], other["seed"]) == (kind, setting, row["rule"], row["seed"])
    )


def _expected_check(row: Row) -> str:
    fault = FAULTS[row["fault"]]
    return fault.check_qb if row["rule"] == "qb" and fault.check_qb else fault.check


def _by_fault(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of each fault and setting, in the order of `FAULTS`, healthy ones left out."""
    groups: dict[str, list[Row]] = {}
    for name, fault in FAULTS.items():
        for setting in fault.settings:
            chosen = [row for row in rows if (row["fault"], row["setting"]) == (name, setting)]
            if fault.check and chosen:
                groups[name if setting == "ranks" else f"{name}, {setting}"] = chosen
    return groups


def _rules(rows: list[Row]) -> list[str]:
    present = {row["rule"] for row in rows}
    return [rule for rule in RULES if rule in present]


@styled
def figure(rows: list[Row]) -> Figure:
    """Left: MaxVio over that of the healthy run, by rule. Right: in which share of runs each check fires."""
    groups = {"healthy": [row for row in rows if not FAULTS[row["fault"]].check], **_by_fault(rows)}
    drawing, (left, right) = new_figure(1, 2, height=0.8 + 0.24 * len(groups), sharey=True, ratios=(4, 7))
    rules = _rules(rows)
    ratio = np.full((len(groups), len(rules)), np.nan)
    fired = np.zeros((len(groups), len(CHECKS)))
    for place, chosen in enumerate(groups.values()):
        fired[place] = [np.mean([row[f"fires: {name}"] for row in chosen]) for name in CHECKS]
        for name in {_expected_check(row) for row in chosen} - {""}:
            right.add_patch(Rectangle((CHECKS.index(name) - 0.5, place - 0.5), 1, 1, fill=False, linewidth=0.8))
        for column, rule in enumerate(rules):
            own = [row for row in chosen if row["rule"] == rule]
            if own:
                ratio[place, column] = _ratio(rows, own).mean
    left.imshow(np.log2(ratio), cmap="Oranges", vmin=0.0, vmax=5.0, aspect="auto")
    right.imshow(fired, cmap="Blues", vmin=0.0, vmax=2.0, aspect="auto")
    for (place, column), value in np.ndenumerate(ratio):
        words = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        left.text(column, place, words if np.isfinite(value) else "–", ha="center", va="center", fontsize=7)
    for (place, column), value in np.ndenumerate(fired):
        if value > 0:
            right.text(column, place, f"{value:.0%}", ha="center", va="center", fontsize=7)
    left.set_yticks(range(len(groups)), list(groups), fontsize=7.5)
    left.set_title("MaxVio / healthy")
    right.set_title("Runs in which a check fires (framed: should)")
    for axis, names in ((left, rules), (right, CHECKS)):
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=7.5)
        axis.grid(False)
        axis.tick_params(length=0)
    return drawing
