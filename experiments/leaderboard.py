"""Every rule on every stream at its tuned step size, judged by balance, by the optimum and by the bias's unrest.

Protocol. All rules see the same batches: gates in [0, 1] (logit streams pass through a sigmoid, as a DeepSeek-V3
router does), T tokens per batch, from bias 0. Steps 1 ... N/2 are for settling, the second half is scored. Each rule
has one number tuned per stream, by the same budget: 7 candidates on a logarithmic grid, each run for N steps on a
tuning seed that is scored nowhere; the least mean MaxVio of the second half wins. For most rules it is a constant
step size, for `damped_qb` the gain, for `sinkhorn` the temperature; `none`, `qb`, `histogram_qb`, `bip` and `exact`
have none. Other constants stay at their defaults. LP* is the batch-wise optimum, exactly solved, on 8 batches spread
over the second half; affinity and dual gap are taken on these batches at the bias that routed them.

Expert choice and capacity with drop are no top-K of score plus bias; they are measured beside the rules, not ranked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from alflb import duality, load_router_trace, make_rule, make_stream, metrics, rule_names, simulate, solve_exact
from alflb.cli._console import run_program
from alflb.io import Row
from alflb.kernels import get_kernels
from alflb.plotting import BLUE, GRAY, GREEN, ORANGE, new_figure, styled
from alflb.problem import AssignmentProblem, FloatArray, target_load_E
from alflb.rules import RULES, Rule, Sight
from alflb.streams import STREAMS, Stream, stream_names
from alflb.streams.linear_router import sigmoid
from alflb.streams.logarithm import LogScores
from alflb.streams.trace import TraceReplay
from alflb.traces import RouterTrace
from alflb.verdict import Finding
from experiments._marks import write_between
from experiments._runner import saved_rows
from experiments._statistics import Estimate, mean_interval

CLAIM = "Tuned, the sign rule balances every stream at least as well as any other rule that sees loads only."
VERDICT = "Refuted on all 16 streams: tuned alike, another rule that sees loads only balances better on each."

TUNING_SEED = 1_000_000
LP_BATCHES = 8
SETTLED = 0.25
"""A run has settled when its 10-step mean of MaxVio is at most this share of what it is without a bias."""

VARIANTS = {"static": "linear_router", "trace_shuffled": "trace", "logistic_long": "logistic"}
"""Cells that use a registered stream in another way."""
PARAMETERS: Mapping[str, Mapping[str, Any]] = {"shift": {"shift_every": 50}, "drift": {"period": 400.0}}

_FULL = {"num_tokens": 1024, "num_experts": 32, "top_k": 4, "num_steps": 160}
_SMOKE = {"num_tokens": 128, "num_experts": 8, "top_k": 2, "num_steps": 24}
_STREAMS = ["static", *stream_names(), "trace_shuffled"]
GRID = [{"stream": name, **_FULL} for name in _STREAMS] + [{"stream": "logistic_long", **_FULL, "num_steps": 800}]
SMOKE = [{"stream": name, **_SMOKE} for name in ("static", "logistic")]
SEEDS = 4

BASELINES = ("capacity_drop", "expert_choice")
CAPACITY_FACTOR = 1.25
"""Switch's: experts take up to 1.25 target loads, in token order."""


def cost(cell: Row) -> float:
    """Scores routed."""
    experts = 64 if cell["stream"].startswith("trace") else cell["num_experts"]
    return float(cell["num_tokens"] * experts * cell["num_steps"])


@dataclass(frozen=True, eq=False)
class Recorded:
    """The first batches of a stream, kept, so that every rule is run on the same arrays."""

    recorded: list[FloatArray]

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.recorded[0])

    @property
    def num_experts(self) -> int:
        """E."""
        return self.recorded[0].shape[1]

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """The recorded batches, whatever the seed."""
        return iter(self.recorded)


@dataclass(frozen=True)
class _Setting:
    """A rule with the value of its tuned number, and how it did on the tuning seed."""

    rule: Rule
    tuned: str
    value: float | None
    tuning_max_vio: float | None
    on_edge: bool


def run(cell: Row, seed: int) -> list[Row]:
    """One row for each rule and each baseline, on the same batches."""
    batches, top_k = record(cell, seed)
    plain = simulate(Recorded(batches), make_rule("none"), top_k=top_k, num_steps=len(batches))
    settled = SETTLED * float(metrics.max_vio(plain).mean())
    judge = _Judge.of(batches, top_k)
    rows = []
    for name, setting in _settings(**cell).items():
        bias_NE, max_vio_N = _run_rule(setting.rule, batches, top_k)
        churn = np.abs(np.diff(bias_NE - bias_NE.mean(axis=1, keepdims=True), axis=0)).mean(axis=1)
        rows.append(
            {
                "rule": name,
                "sees": setting.rule.sees.value,
                "tuned": setting.tuned,
                "value": setting.value,
                "on_edge": setting.on_edge,
                "tuning_max_vio": setting.tuning_max_vio,
                **_balance(max_vio_N),
                **judge.at(bias_NE, logarithms=setting.rule.works_on_logarithms),
                "churn": float(churn[len(churn) // 2 :].mean()),
                "settling": _first_settled(max_vio_N, settled),
                "missing": 0.0,
            }
        )
    return rows + [_run_baseline(name, batches, top_k, judge) for name in BASELINES]


def record(cell: Row, seed: int) -> tuple[list[FloatArray], int]:
    """The batches of a cell as gates, and K."""
    stream, top_k = make_cell_stream(cell, seed)
    batches = list(itertools.islice(stream.batches(seed), cell["num_steps"]))
    name = str(cell["stream"])
    if not STREAMS.get(VARIANTS.get(name, name)).scores_are_gates:
        batches = [sigmoid(batch) for batch in batches]  # type: ignore[arg-type]  # float32 stays float32
    for batch in batches:
        batch.flags.writeable = False
    return batches, top_k


def make_cell_stream(cell: Row, seed: int) -> tuple[Stream, int]:
    """The stream of a cell, its scores as they are, and K."""
    name, tokens = cell["stream"], cell["num_tokens"]
    if name.startswith("trace"):
        trace = load_router_trace()
        order = name.partition("_")[2] or "text"
        # text order does not know seeds: each begins at a place of its own
        start = int(np.random.default_rng(seed).integers(len(trace.scores_TE)))
        rolled = RouterTrace(np.roll(trace.scores_TE, -start, axis=0), trace.top_k)
        return TraceReplay(rolled, num_tokens=tokens, order=order), trace.top_k
    size = {"num_tokens": tokens, "num_experts": cell["num_experts"]}
    if name == "static":
        batch = next(make_stream("linear_router", **size).batches(seed))
        return Recorded([batch] * cell["num_steps"]), cell["top_k"]
    return make_stream(name.removesuffix("_long"), **size, **PARAMETERS.get(name, {})), cell["top_k"]


@cache
def _settings(**cell: Any) -> dict[str, _Setting]:
    """Every rule at the value that did best on this stream's tuning seed."""
    batches, top_k = record(cell, TUNING_SEED)
    return {name: _tune(name, batches, top_k) for name in rule_names()}


def _tune(name: str, batches: list[FloatArray], top_k: int) -> _Setting:
    tuned = RULES.get(name).tuned
    if tuned is None:
        return _Setting(make_rule(name), "-", None, None, False)
    constants: list[dict[str, Any]] = [{tuned.name: value} for value in tuned.values]
    rules = [make_rule(name, **constant) for constant in constants]
    scores = [_balance(_run_rule(rule, batches, top_k)[1])["max_vio"] for rule in rules]
    best = int(np.argmin(scores))
    return _Setting(rules[best], tuned.name, tuned.values[best], scores[best], best in (0, len(rules) - 1))


def _run_rule(rule: Rule, batches: list[FloatArray], top_k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The biases that routed the batches, and MaxVio of each."""
    stream: Stream = Recorded(batches)
    if rule.works_on_logarithms:
        stream = LogScores(stream)
    trajectory = simulate(stream, rule, top_k=top_k, num_steps=len(batches))
    return trajectory.bias_NE[:-1], metrics.max_vio(trajectory)


def _balance(max_vio_N: NDArray[np.float64]) -> dict[str, float]:
    """Mean, 99th percentile and worst MaxVio of the second half of a run."""
    scored = max_vio_N[len(max_vio_N) // 2 :]
    return {
        "max_vio": float(scored.mean()),
        "max_vio_p99": float(np.percentile(scored, 99)),
        "max_vio_worst": float(scored.max()),
    }


def _first_settled(max_vio_N: NDArray[np.float64], level: float) -> int | None:
    """The first step that ends ten steps with a mean MaxVio of at most `level`."""
    mean_N = np.convolve(max_vio_N, np.full(10, 0.1), mode="valid")
    reached = np.flatnonzero(mean_N <= level)
    return int(reached[0]) + 10 if reached.size else None


@dataclass(frozen=True, eq=False)
class _Judge:
    """LP* of some batches of the second half, and what a bias is worth on them."""

    places: list[int]
    problems: list[AssignmentProblem]
    optimum: float

    @classmethod
    def of(cls, batches: list[FloatArray], top_k: int) -> _Judge:
        places = np.linspace(len(batches) // 2, len(batches) - 1, LP_BATCHES).astype(int).tolist()
        problems = [AssignmentProblem(batches[n], top_k) for n in places]
        return cls(places, problems, sum(solve_exact(problem).value for problem in problems))

    def at(self, bias_NE: NDArray[np.float64], *, logarithms: bool) -> dict[str, float | None]:
        """Affinity and dual gap on these batches, relative to LP*; a bias on logarithms has no dual gap."""
        affinity = dual = 0.0
        kernels = get_kernels("numba")
        for n, problem in zip(self.places, self.problems):
            scores_TE, bias_E = problem.scores_TE, bias_NE[n]
            routed_TE = np.log(scores_TE) if logarithms else scores_TE.astype(np.float64)
            allocation = kernels.allocate(routed_TE, bias_E, problem.top_k)
            affinity += float(np.take_along_axis(scores_TE, allocation.experts_TK, axis=1).sum(dtype=np.float64))
            dual += allocation.dual_sum - float(problem.target_E @ bias_E)
        gap = None if logarithms else (dual - self.optimum) / self.optimum
        return {"affinity": affinity / self.optimum, "gap": gap}


def _run_baseline(name: str, batches: list[FloatArray], top_k: int, judge: _Judge) -> Row:
    """A row for an allocation that is no top-K of score plus bias; `missing` is the share of T K picks not served."""
    allocate: Callable[[FloatArray, int], NDArray[np.bool_]] = {
        "capacity_drop": _capacity_drop,
        "expert_choice": _expert_choice,
    }[name]
    tokens, experts = batches[0].shape
    max_vio_N = np.zeros(len(batches))
    affinity = missing = 0.0
    for n in range(len(batches) // 2, len(batches)):
        served_TE = allocate(batches[n], top_k)
        max_vio_N[n] = metrics.max_vio(served_TE.sum(axis=0), target_load_E(tokens, experts, top_k))
        missing += float(np.maximum(0, top_k - served_TE.sum(axis=1)).mean()) / top_k
        if n in judge.places:
            affinity += float(batches[n][served_TE].sum(dtype=np.float64))
    return {
        "rule": name,
        "sees": Sight.SCORES_BEFORE_ROUTING.value,
        "tuned": "-",
        "value": None,
        "on_edge": False,
        "tuning_max_vio": None,
        **_balance(max_vio_N),
        "affinity": affinity / judge.optimum,
        "gap": None,
        "churn": 0.0,
        "settling": None,
        "missing": missing / (len(batches) - len(batches) // 2),
    }


def _capacity_drop(scores_TE: FloatArray, top_k: int) -> NDArray[np.bool_]:
    """Top-K without a bias; an expert takes the first tokens up to its capacity and drops the rest (Switch, GShard)."""
    problem = AssignmentProblem(scores_TE, top_k)
    wanted_TE = np.zeros(scores_TE.shape, dtype=bool)
    np.put_along_axis(wanted_TE, duality.allocate(problem, np.zeros(problem.num_experts)).experts_TK, True, axis=1)
    return wanted_TE & (np.cumsum(wanted_TE, axis=0) <= int(CAPACITY_FACTOR * problem.target_load))


def _expert_choice(scores_TE: FloatArray, top_k: int) -> NDArray[np.bool_]:
    """Each expert takes its T K / E best tokens, a token any number of experts (Zhou et al., arXiv 2202.09368)."""
    capacity = scores_TE.shape[0] * top_k // scores_TE.shape[1]
    best_CE = np.argpartition(-scores_TE, capacity - 1, axis=0)[:capacity]
    served_TE = np.zeros(scores_TE.shape, dtype=bool)
    np.put_along_axis(served_TE, best_CE, True, axis=0)
    return served_TE


def findings(rows: list[Row]) -> list[Finding]:
    """The sign rule against the best other load-only rule of each stream (chosen on the tuning seed), then ranks."""
    found = [_duel(rows, stream) for stream in _streams(rows)]
    by_loads = [row for row in rows if row["sees"] == Sight.LOADS]
    ranks, ranks_loads = _mean_ranks(rows), _mean_ranks(by_loads)
    best = {kind: min((r for r in ranks if _seen(rows, r) == kind), key=lambda r: _mean(ranks[r])) for kind in Sight}
    first = min(ranks_loads, key=lambda rule: _mean(ranks_loads[rule]))
    found += [
        Finding(
            f"mean rank of `sign` by MaxVio among the {len(ranks_loads)} rules that see loads; `{first}` is first",
            "-",
            f"{mean_interval(ranks_loads['sign'])}; `{first}` {mean_interval(ranks_loads[first])}",
            None,
        ),
        *(
            Finding(
                f"mean rank of `{rule}` among all {len(ranks)}, the best that sees {kind}", "-", str(interval), None
            )
            for kind, rule in best.items()
            for interval in [mean_interval(ranks[rule])]
        ),
        Finding("tuned step sizes of `sign`, over the streams", "-", _value_range(rows, "sign"), None),
        Finding("rule-stream pairs whose tuned value is an end of its grid", "-", _edge_share(rows), None),
    ]
    return found


def _duel(rows: list[Row], stream: str) -> Finding:
    """MaxVio of `sign` over that of its strongest rival, seed by seed; geometric mean, interval of the logarithms."""
    here = [row for row in rows if row["stream"] == stream]
    alike = {"sign", *(name for name in rule_names() if RULES.get(name).routes_as == "sign")}
    rivals = {
        row["rule"]: row["tuning_max_vio"]
        for row in here
        if row["sees"] == "loads" and row["tuned"] != "-" and row["rule"] not in alike
    }
    rival = min(rivals, key=lambda rule: rivals[rule])
    of = {(row["rule"], row["seed"]): row["max_vio"] for row in here}
    seeds = sorted({row["seed"] for row in here})
    logarithm = mean_interval(np.log(of["sign", seed] / of[rival, seed]) for seed in seeds)
    mean, low, high = np.exp(logarithm[:3]).tolist()
    ratio = Estimate(mean, low, high, logarithm.num_seeds)
    return Finding(f"{stream}: MaxVio of `sign` over that of `{rival}`", "at most 1", str(ratio), not ratio.low > 1.0)


def _streams(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["stream"] for row in rows))


def _seen(rows: list[Row], rule: str) -> str:
    return next(str(row["sees"]) for row in rows if row["rule"] == rule)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _mean_ranks(rows: list[Row]) -> dict[str, list[float]]:
    """For each rule one number per seed: its rank by MaxVio (1 is best, ties share), averaged over the streams."""
    rules = sorted({row["rule"] for row in rows} - set(BASELINES))
    of = {(row["stream"], row["seed"], row["rule"]): row["max_vio"] for row in rows}
    ranks: dict[str, list[float]] = {rule: [] for rule in rules}
    for seed in sorted({row["seed"] for row in rows}):
        per_stream = [rankdata([of[stream, seed, rule] for rule in rules]) for stream in _streams(rows)]
        for rule, rank in zip(rules, np.mean(per_stream, axis=0)):
            ranks[rule].append(float(rank))
    return ranks


def _value_range(rows: list[Row], rule: str) -> str:
    values = sorted({row["value"] for row in rows if row["rule"] == rule and row["value"] is not None})
    return f"{values[0]:g} to {values[-1]:g}" if values else "none"


def _edge_share(rows: list[Row]) -> str:
    pairs = {(row["rule"], row["stream"]): row["on_edge"] for row in rows if row["tuned"] != "-"}
    return f"{sum(pairs.values())} of {len(pairs)}"


def table(rows: list[Row]) -> str:
    """All rules in the order of their mean rank, in markdown; medians over the streams, of means over seeds."""
    lines = [
        "| rule | sees | tuned number | mean rank by MaxVio | MaxVio mean | p99 | worst | affinity, % of LP\\* "
        "| dual gap, % | churn | settled after | never |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ranks = _mean_ranks(rows)
    for rule in [*sorted(ranks, key=lambda name: _mean(ranks[name])), *BASELINES]:
        own = [row for row in rows if row["rule"] == rule]
        settled = [row["settling"] for row in own if row["settling"] is not None]
        cells = [
            f"`{rule}`" if rule in ranks else rule.replace("_", " "),
            _seen(rows, rule),
            _value_range(rows, rule),
            str(mean_interval(ranks[rule])) if rule in ranks else "-",
            *(f"{_over_streams(own, name):.3f}" for name in ("max_vio", "max_vio_p99", "max_vio_worst")),
            f"{100 * _over_streams(own, 'affinity'):.2f}",
            "-" if own[0]["gap"] is None else f"{100 * _over_streams(own, 'gap'):.3f}",
            f"{_over_streams(own, 'churn'):.1e}",
            f"{np.median(settled):g}" if settled else "-",
            f"{sum(row['settling'] is None for row in own)} of {len(own)}" if rule in ranks else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    missing = {rule: 100 * _over_streams([row for row in rows if row["rule"] == rule], "missing") for rule in BASELINES}
    words = ", ".join(f"{rule.replace('_', ' ')} {share:.1f}%" for rule, share in missing.items())
    return "\n".join([*lines, "", f"Picks that no expert serves, median over the streams: {words}."])


def _over_streams(rows: list[Row], name: str) -> float:
    """The median over streams of the mean over seeds."""
    means = [np.mean([row[name] for row in rows if row["stream"] == stream]) for stream in _streams(rows)]
    return float(np.median(means))


@styled
def figure(rows: list[Row]) -> Figure:
    """Mean ranks with their intervals, and MaxVio of every rule on every stream, colored against that of `sign`."""
    ranks = _mean_ranks(rows)
    rules = sorted(ranks, key=lambda rule: _mean(ranks[rule]))
    streams = _streams(rows)
    drawing, (left, right) = new_figure(1, 2, height=5.6, width=9.5, sharey=True, ratios=(1.0, 3.2))
    colors = dict(zip(Sight, (BLUE, ORANGE, GREEN)))
    for sight, color in colors.items():
        own = [place for place, rule in enumerate(rules) if _seen(rows, rule) == sight]
        intervals = [mean_interval(ranks[rules[place]]) for place in own]
        means = [interval.mean for interval in intervals]
        error = [interval.high - interval.mean if interval.num_seeds > 1 else 0.0 for interval in intervals]
        left.errorbar(means, own, xerr=error, fmt="o", color=color, label=sight, capsize=2)
    left.set_yticks(range(len(rules)), rules)
    left.set(xlabel="mean rank (1 is best)", title="All streams", ylim=(len(rules) - 0.5, -0.5))
    left.legend(title="sees", loc="lower left", fontsize=7, handlelength=1.0, borderpad=0.2)

    mean_of = {
        (rule, stream): _mean([row["max_vio"] for row in rows if (row["rule"], row["stream"]) == (rule, stream)])
        for rule in rules
        for stream in streams
    }
    values = np.array([[mean_of[rule, stream] for stream in streams] for rule in rules])
    against_sign = np.log2(np.maximum(values, 1e-3) / np.maximum(values[rules.index("sign")], 1e-3))
    picture = right.imshow(against_sign, cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -2.0, 2.0), aspect="auto")
    for place, column in itertools.product(range(len(rules)), range(len(streams))):
        strong = abs(against_sign[place, column]) > 1.3
        words = f"{values[place, column]:.2f}"
        right.text(column, place, words, ha="center", va="center", fontsize=6, color="white" if strong else "black")
    right.axhline(rules.index("sign") - 0.5, color=GRAY, linewidth=0.8)
    right.axhline(rules.index("sign") + 0.5, color=GRAY, linewidth=0.8)
    right.set_xticks(range(len(streams)), [name.replace("_", " ") for name in streams], rotation=45, ha="right")
    right.grid(False)
    right.set_title("MaxVio, mean of the second half")
    bar = drawing.colorbar(picture, ax=right, ticks=[-2, -1, 0, 1, 2], pad=0.01, fraction=0.03)
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
    bar.set_label("MaxVio over that of the sign rule")
    return drawing


def main(
    out: Annotated[Path, typer.Option(help="Results folder of `python -m experiments run`.")] = Path("report"),
    page: Annotated[Path, typer.Option(help="Page that holds the marks of the table.")] = Path(
        "docs/experiments/leaderboard.md"
    ),
) -> None:
    """Write the leaderboard's table, from saved rows, into its page."""
    write_between(page, "table", table(saved_rows("leaderboard", out / "leaderboard")))


if __name__ == "__main__":
    run_program(main)
