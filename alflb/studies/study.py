"""The main job: ALF-LB on a real router trace and on synthetic streams, held against the exact optimum.

Five kinds of cells, each answering one question of the report:

* ``optimum``: what is the best balanced assignment of a fixed batch worth (LP*), and is that proven?
* ``static``: on that same batch, step after step: how fast and how close does a rule come, at which step size?
* ``stream``: on fresh batches (real text in its order, shuffled text, synthetic): how balanced does it stay?
* ``advice``: which step size does `alflb.advise` recommend, what does it do, and the self-tuning rule beside it?
* ``split``: does a bias fitted on one half of the trace balance the other half?
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb import bounds, duality, metrics
from alflb.advice import advise
from alflb.exact import AssignmentSolution, recertify, solve_exact
from alflb.io import Row, write_rows
from alflb.observers import make_observers
from alflb.problem import AssignmentProblem, FloatArray, check_count, check_number
from alflb.rules import RULES, Rule, make_rule
from alflb.schedules import Schedule, make_schedule, step_size_at
from alflb.simulation import simulate
from alflb.streams import Static, Stream, make_stream
from alflb.streams.trace import TraceReplay
from alflb.studies.sweep import Advance, Cell, Outcome, Progress, Silent, cell_key, run_cells
from alflb.traces import RouterTrace, load_router_trace
from alflb.trajectory import Trajectory

DEFAULT_STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Score units per step, for scores that spread like those of the shipped trace; see `scaled_step_sizes`."""
_SHIPPED_SPREAD = 0.168
"""Standard deviation of a token's scores over the experts, mean over the tokens of the shipped trace, score units."""
PUBLISHED_ARM = ("sign", "constant")
"""ALF-LB as published (arXiv 2408.15664): the arm a report draws in full and explains."""
BASELINE_RULE = "none"
"""What runs on every stream, for the affinity that all arms are compared with."""
NO_SCHEDULE = "none"
"""The schedule of an arm whose rule has no step size."""
DEFAULT_ARMS = (
    PUBLISHED_ARM,
    ("sign", "inverse_sqrt"),
    ("sign", "linear"),
    ("proportional", "constant"),
)
PORTRAIT_STEP_SIZE = 1e-3
"""The step size whose run is drawn in full (heat map, bias paths): the one in common use."""

_STATIC_SOURCES: dict[str, dict[str, Any]] = {"trace": {}, "linear_router": {"num_topics": 16}, "uniform": {}}
"""Fixed batches, with what they set beside the size: the trace, and the first batch of two streams."""
_STREAM_SOURCES = ("trace_text", "trace_shuffled", "logistic", "drift")


@dataclass(frozen=True)
class StudySize:
    """How large a study is; the smoke size exercises every path in seconds."""

    static_tokens: int
    batch_tokens: int
    num_experts: int
    top_k: int
    trace_tokens: int | None
    static_steps: int
    stream_steps: int
    certificates: int


FULL = StudySize(4096, 2048, 64, 8, None, 1000, 600, 5)
SMOKE = StudySize(512, 256, 16, 4, 1024, 60, 40, 4)


@dataclass(frozen=True)
class Study:
    """What to run. Bad values are refused here, before anything is written.

    Parameters
    ----------
    trace : RouterTrace, optional
        Default: the trace that ships with the package.
    arms : sequence of (rule, schedule)
        Names of rules and schedules to compare.
        A schedule may also be a callable of t = 1, 2, ...: then the arm has no grid and runs once per source, as does
        an arm whose rule has no step size (write its schedule as `NO_SCHEDULE`).
    step_sizes : sequence of float, optional
        Grid of every arm, score units per step. Default: `scaled_step_sizes` of the trace on the trace, and
        `DEFAULT_STEP_SIZES` on synthetic sources.
    size : StudySize
        `FULL` or `SMOKE`.
    num_steps : int, optional
        Overrides the steps of the static and the stream runs.
    seed : int
        Chooses the tokens of the random streams and the random split.
    name : str
        What the report calls the trace.
    """

    trace: RouterTrace = field(default_factory=load_router_trace)
    arms: Sequence[tuple[str, str | Schedule]] = DEFAULT_ARMS
    step_sizes: Sequence[float] | None = None
    size: StudySize = FULL
    num_steps: int | None = None
    seed: int = 0
    name: str = "the shipped trace"

    def __post_init__(self) -> None:
        if not self.arms or (self.step_sizes is not None and not self.step_sizes):
            raise ValueError("a study needs at least one rule and one step size")
        if self.step_sizes is not None:
            self._check_step_sizes(self.step_sizes)
        names = [arm_words(*arm) for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms are {', '.join(' '.join(name) for name in names)}; name each of them once")
        for rule, schedule in self.arms:
            _make_rule(rule, schedule, 1.0, 1)
            if rule == BASELINE_RULE:
                raise ValueError(f"arms name {rule!r}, which every study runs as its baseline; leave it out")
        if self.num_steps is not None:
            check_count(self.num_steps, "num_steps", minimum=2)
        if check_count(self.seed, "seed", minimum=0) >= 2**63:
            raise ValueError(f"seed is {self.seed}; pass one below 2**63, so that it fits a column of the rows")
        if self.trace.scores_TE.shape[0] < 2:
            raise ValueError("the study splits its trace in halves; give a trace of at least two tokens")

    def _check_step_sizes(self, step_sizes: Sequence[float]) -> None:
        for step_size in step_sizes:
            check_number(step_size, "step_sizes", positive=True)
        if len(set(step_sizes)) < len(step_sizes):
            raise ValueError(f"step_sizes are {', '.join(map(str, step_sizes))}; give each of them once")
        if not any(_has_grid(*arm) for arm in self.arms):
            raise ValueError("step_sizes have no effect on arms that have no step size; leave them out")

    @property
    def static_steps(self) -> int:
        """Steps of a run on a fixed batch."""
        return self.num_steps or self.size.static_steps

    @property
    def stream_steps(self) -> int:
        """Steps of a run on fresh batches."""
        return self.num_steps or self.size.stream_steps

    def grid(self, source: str) -> Sequence[float]:
        """The step sizes that a source is run with."""
        if self.step_sizes is not None:
            return self.step_sizes
        return scaled_step_sizes(self.trace.scores_TE) if source.startswith("trace") else DEFAULT_STEP_SIZES

    def trace_scores(self) -> FloatArray:
        """Scores of the trace in float64, so that certificates are limited by the problem, not by rounding."""
        return self.trace.scores_TE[: self.size.trace_tokens].astype(np.float64)


def scaled_step_sizes(scores: ArrayLike) -> tuple[float, ...]:
    """The default grid in the unit of these scores: logits spread wider than sigmoid scores, and need larger steps.

    The grid moves by half decades, 1, 3, 10, ..., with the standard deviation of a token's scores.

    Examples
    --------
    >>> scores_TE = np.random.default_rng(0).normal(scale=1.7, size=(100, 8))
    >>> scaled_step_sizes(scores_TE)[0], scaled_step_sizes(scores_TE / 10)[0]
    (0.001, 0.0001)
    """
    scores_TE = np.asarray(scores, dtype=np.float64)
    deviation_T = np.std(scores_TE, axis=1, where=np.isfinite(scores_TE))
    spread = float(np.mean(deviation_T[np.isfinite(deviation_T)]))
    if spread == 0:
        return DEFAULT_STEP_SIZES
    half_decades = round(2 * np.log10(spread / _SHIPPED_SPREAD))
    first = 2 * -4 + half_decades
    return tuple(_half_decade(first + place) for place in range(len(DEFAULT_STEP_SIZES)))


def _half_decade(index: int) -> float:
    """1e-4 at -8, 3e-4 at -7, 1e-3 at -6, ..."""
    return float(f"{3 if index % 2 else 1}e{index // 2}")


def default_schedule(rule: str) -> str:
    """The schedule of an arm that names none: constant steps, for a rule that takes steps."""
    return "constant" if RULES.get(rule).takes_schedule else NO_SCHEDULE


def arm_words(rule: str, schedule: str | Schedule) -> tuple[str, str]:
    """How an arm is called in rows and figures: its rule and its schedule."""
    if not RULES.get(rule).takes_schedule:
        return rule, NO_SCHEDULE
    return rule, getattr(schedule, "__name__", repr(schedule)) if callable(schedule) else schedule


@dataclass(frozen=True)
class StudyResult:
    """Rows of all cells and where their trajectories are."""

    study: Study
    rows: list[Row]
    folder: Path

    def select(self, **wanted: Any) -> list[Row]:
        """Rows whose columns have these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def trajectory(self, row: Row) -> Trajectory:
        """The run behind a row."""
        return Trajectory.load(self.folder / "cells" / f"{row['run']}.npz")

    def optimum(self, source: str) -> Row:
        """The row of a source's exact optimum."""
        return self.select(kind="optimum", source=source)[0]


def run_study(
    study: Study, folder: Path, progress: Progress | None = None, *, executor: Executor | None = None
) -> StudyResult:
    """Run what is missing, here or on an executor, write ``rows.parquet``, return everything the report needs."""
    progress = progress or Silent()
    cells = list(study_cells(study))
    bench = _Bench(study)
    progress.begin("study", sum(bench.cost(cell) for cell in cells))
    rows = run_cells(cells, bench.run, folder / "cells", cost=bench.cost, progress=progress, executor=executor)
    write_rows(folder / "rows.parquet", rows)
    return StudyResult(study, rows, folder)


def study_cells(study: Study) -> Iterator[dict[str, Any]]:
    """All cells of a study, in the order they are run."""
    common = {
        "seed": study.seed,
        "trace": study.trace.metadata.get("description", "") or repr(study.trace.scores_TE.shape),
        "trace_digest": _digest(study.trace),
        "size": repr(study.size),
    }
    for source in _STATIC_SOURCES:
        yield {"kind": "optimum", "source": source, **common}
    runs = [("static", source, study.static_steps) for source in _STATIC_SOURCES]
    runs += [("stream", source, study.stream_steps) for source in _STREAM_SOURCES]
    for kind, source, num_steps in runs:
        if kind == "stream":
            yield _run_cell(kind, source, BASELINE_RULE, NO_SCHEDULE, None, num_steps, common)
        for arm in study.arms:
            own = {**common, **_custom(arm, num_steps)}
            for step_size in study.grid(source) if _has_grid(*arm) else (None,):
                yield _run_cell(kind, source, *arm_words(*arm), step_size, num_steps, own)
    for source in ("trace_shuffled", "trace_text"):
        yield {"kind": "advice", "source": source, "num_steps": study.stream_steps, **common}
    for half in ("first", "random"):
        yield {"kind": "split", "source": "trace", "half": half, "num_steps": study.static_steps, **common}


def _run_cell(
    kind: str, source: str, rule: str, schedule: str, step_size: float | None, num_steps: int, common: Cell
) -> dict[str, Any]:
    return {
        "kind": kind,
        "source": source,
        "rule": rule,
        "schedule": schedule,
        "step_size": None if step_size is None else float(step_size),
        "num_steps": num_steps,
        **common,
    }


def _has_grid(rule: str, schedule: str | Schedule) -> bool:
    """Whether an arm is run at several step sizes."""
    return RULES.get(rule).takes_schedule and not callable(schedule)


def _custom(arm: tuple[str, str | Schedule], num_steps: int) -> dict[str, Any]:
    """A digest of the values of a schedule given as a callable, so that another one of its name is another cell."""
    if not callable(arm[1]):
        return {}
    values = [step_size_at(arm[1], t) for t in range(1, num_steps + 1)]
    return {"schedule_digest": hashlib.sha256(repr(values).encode()).hexdigest()[:16]}


class _Bench:
    """Runs the cells of one study; remembers the problems and optima that cells share."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.problem = cache(self._problem)
        self.optimum = cache(self._optimum)

    def __reduce__(self) -> tuple[type[_Bench], tuple[Study]]:
        return _Bench, (self.study,)  # what was remembered stays behind

    def run(self, cell: Cell, advance: Advance) -> Outcome:
        outcome: Outcome = getattr(self, f"_run_{cell['kind']}")(cell, advance)
        return outcome

    def cost(self, cell: Cell) -> float:
        """Units of work: routed scores, an exact solve counted as 300 passes over its batch."""
        if cell["kind"] == "optimum":
            return 300.0 * self.problem(cell["source"]).scores_TE.size
        return float(cell["num_steps"] * self._batch_size(cell))

    def _batch_size(self, cell: Cell) -> int:
        if cell["kind"] in ("stream", "advice"):
            stream, _ = self._stream(cell["source"])
            return stream.num_tokens * stream.num_experts
        return int(self.problem(cell["source"]).scores_TE.size)

    def _problem(self, source: str) -> AssignmentProblem:
        """The fixed batch of a static source."""
        if source == "trace":
            return AssignmentProblem(self.study.trace_scores(), self.study.trace.top_k)
        size = self.study.size
        shape = {"num_tokens": size.static_tokens, "num_experts": size.num_experts}
        stream = make_stream(source, **shape, **_STATIC_SOURCES[source])
        scores_TE = next(stream.batches(self.study.seed)).astype(np.float64)
        return AssignmentProblem(scores_TE, size.top_k)

    def _stream(self, source: str) -> tuple[Stream, int]:
        """A stream of fresh batches and its top-k."""
        size = self.study.size
        if source.startswith("trace_"):
            scores_TE = self.study.trace_scores()
            trace = RouterTrace(scores_TE, self.study.trace.top_k)
            batch = min(size.batch_tokens, len(scores_TE) // 2)
            return TraceReplay(trace, num_tokens=batch, order=source.removeprefix("trace_")), trace.top_k
        return make_stream(source, num_tokens=size.batch_tokens, num_experts=size.num_experts), size.top_k

    def _optimum(self, source: str) -> AssignmentSolution:
        problem = self.problem(source)
        return recertify(problem, solve_exact(problem))

    def _run_optimum(self, cell: Cell, advance: Advance) -> Outcome:
        problem = self.problem(cell["source"])
        solution = self.optimum(cell["source"])
        greedy = duality.allocate(problem, np.zeros(problem.num_experts))
        balanced = duality.allocate(problem, solution.bias_E)
        row = {
            **_shape(problem),
            "score_range": problem.score_range,
            "method": solution.method,
            "lp_value": solution.value,
            "lp_upper_bound": solution.upper_bound,
            "lp_residual_load": solution.residuals.load,
            "lp_residual_picks": solution.residuals.picks,
            "lp_residual_slackness": solution.residuals.slackness,
            "lp_bias_E": solution.bias_E.tolist(),
            "greedy_affinity": duality.affinity(problem, greedy.experts_TK),
            "greedy_load_E": greedy.load_E.tolist(),
            "greedy_max_vio": float(metrics.max_vio(greedy.load_E)),
            "topk_at_lp_bias_max_vio": float(metrics.max_vio(balanced.load_E)),
        }
        return Outcome([row])

    def _run_static(self, cell: Cell, advance: Advance) -> Outcome:
        problem = self.problem(cell["source"])
        trajectory = self._simulate(cell, Static(problem.scores_TE), problem.top_k, advance)
        series = trajectory.series
        slack = series["monotonicity_slack"]
        cycle = metrics.find_cycle(trajectory)
        row = {
            **_shape(problem),
            **_quoted(cell, trajectory),
            "dual_value_final": float(series["dual_value"][-1]),
            "dual_value_best": float(series["dual_value"].min()),
            "affinity_final": float(series["affinity"][-1]),
            "affinity_tail": _tail_mean(series["affinity"]),
            "dual_rises": int((slack < -_rounding(problem)).sum()),
            "cycle_period": cycle.period if cycle else None,
            **self._certificates(problem, trajectory, cell["source"]),
        }
        return _with_run(row, trajectory)

    def _certificates(self, problem: AssignmentProblem, trajectory: Trajectory, source: str) -> Row:
        """C1, C2, weak duality and C6 along a run, recomputed in plain numpy, independently of the kernels."""
        steps = np.unique(np.geomspace(1, trajectory.num_steps, self.study.size.certificates).astype(int)) - 1
        lp_value = self.optimum(source).value
        bias_NE = trajectory.bias_NE
        moves = [duality.step_certificate(problem, bias_NE[n], bias_NE[n + 1]) for n in steps]
        gaps = [duality.gap_certificate(problem, bias_NE[n]) for n in steps]
        return {
            "certified_steps": (steps + 1).tolist(),
            "identity_residual": max(abs(move.identity_residual) for move in moves),
            "sandwich_margin": min(min(move.change - move.lower, move.upper - move.change) for move in moves),
            "benefit_min": min(move.benefit for move in moves),
            "gap_n": [gap.dual_value - lp_value for gap in gaps],
            "gap_bound_n": [gap.gap_bound for gap in gaps],
            "affinity_excess_n": [gap.affinity - lp_value for gap in gaps],
            "affinity_excess_bound_n": [gap.affinity_excess_bound for gap in gaps],
            "affinity_loss_bound_n": [gap.affinity_loss_bound for gap in gaps],
        }

    def _run_stream(self, cell: Cell, advance: Advance) -> Outcome:
        stream, top_k = self._stream(cell["source"])
        trajectory = self._simulate(cell, stream, top_k, advance)
        row = {
            "num_tokens": stream.num_tokens,
            "num_experts": stream.num_experts,
            "top_k": top_k,
            **_quoted(cell, trajectory),
            "affinity_tail": _tail_mean(trajectory.series["affinity"]),
        }
        return _with_run(row, trajectory)

    def _run_split(self, cell: Cell, advance: Advance) -> Outcome:
        """Fit the bias on one half of the tokens by the annealed sign loop, then route the other half with it."""
        scores_TE, top_k = self.study.trace_scores(), self.study.trace.top_k
        order = np.arange(len(scores_TE))
        if cell["half"] == "random":
            order = np.random.default_rng(self.study.seed).permutation(len(scores_TE))
        fit_T, test_T = np.array_split(order, 2)
        rule = make_rule("sign", make_schedule("linear", 0.02, cell["num_steps"]))
        units = len(fit_T) * scores_TE.shape[1]
        trajectory = simulate(
            Static(scores_TE[fit_T]),
            rule,
            top_k=top_k,
            num_steps=cell["num_steps"],
            on_step=lambda t: advance(units),
        )
        bias_E = trajectory.bias_NE[-1]
        held_out = AssignmentProblem(scores_TE[test_T], top_k)
        load_E = duality.allocate(held_out, bias_E).load_E
        unbiased_E = duality.allocate(held_out, np.zeros(len(bias_E))).load_E
        row = {
            **_shape(held_out),
            "max_vio_fit": float(metrics.max_vio(trajectory)[-1]),
            "max_vio_held_out": float(metrics.max_vio(load_E)),
            "max_vio_held_out_unbiased": float(metrics.max_vio(unbiased_E)),
            "held_out_load_E": load_E.tolist(),
        }
        return Outcome([row])

    def _run_advice(self, cell: Cell, advance: Advance) -> Outcome:
        """The recommended step size, what it does on fresh batches, and the self-tuning rule on the same batches."""
        stream, top_k = self._stream(cell["source"])
        row: Row = {"num_tokens": stream.num_tokens, "num_experts": stream.num_experts, "top_k": top_k}
        row["floor"] = bounds.sampling_max_vio(stream.num_tokens, top_k, stream.num_experts)
        try:
            advice = advise(
                self.study.trace_scores(), top_k, batch_tokens=stream.num_tokens, num_steps=cell["num_steps"]
            )
        except ValueError as error:  # advise says why it cannot: K = E, forbidden pairs, too small a sample
            return Outcome([{**row, "refusal": str(error)}])
        rules = {"advised": make_rule("sign", advice.step_size), "self_tuning": make_rule("self_tuning")}
        for name, rule in rules.items():
            run = self._run_rule(cell, stream, rule, top_k, lambda units: advance(units / 2))
            quoted = metrics.summary(run, tail=tail_steps(run.num_steps))
            row |= {f"{name}_{number}": quoted[number] for number in ("max_vio_tail", "max_vio_global_tail")}
        row |= {"advised_step_size": advice.step_size, "predicted_max_vio": advice.max_vio}
        return Outcome([{**row, "arrival_steps": advice.arrival_steps, "refusal": ""}])

    def _simulate(self, cell: Cell, stream: Stream, top_k: int, advance: Advance) -> Trajectory:
        named = {arm_words(*arm): arm for arm in self.study.arms}
        arm = named.get((cell["rule"], cell["schedule"]), (cell["rule"], cell["schedule"]))
        rule = _make_rule(*arm, cell["step_size"], cell["num_steps"])
        return self._run_rule(cell, stream, rule, top_k, advance)

    def _run_rule(self, cell: Cell, stream: Stream, rule: Rule, top_k: int, advance: Advance) -> Trajectory:
        static = cell["kind"] == "static"
        units = stream.num_tokens * stream.num_experts
        return simulate(
            stream,
            rule,
            top_k=top_k,
            num_steps=cell["num_steps"],
            seed=cell["seed"],
            observers=make_observers() if static else make_observers("affinity"),
            on_step=lambda t: advance(units),
        )


def _make_rule(name: str, schedule: str | Schedule, step_size: float | None, num_steps: int) -> Rule:
    """The rule of an arm; one without a step size runs as it is, and refuses a schedule."""
    if not RULES.get(name).takes_schedule:
        if schedule != NO_SCHEDULE:
            raise ValueError(
                f"schedule is {schedule!r}, but the rule {name!r} has no step size; leave the schedule out"
            )
        return make_rule(name)
    if callable(schedule):
        return make_rule(name, schedule)
    assert step_size is not None  # every arm with a named schedule has a grid
    return make_rule(name, make_schedule(schedule, step_size, num_steps))


def _quoted(cell: Cell, trajectory: Trajectory) -> Row:
    """What is quoted of a run, and the name it is kept under."""
    return {"run": cell_key(cell), **metrics.summary(trajectory, tail=tail_steps(trajectory.num_steps))}


def _with_run(row: Row, trajectory: Trajectory) -> Outcome:
    """A row, and the run itself as a file beside it."""
    return Outcome([row], {f"{row['run']}.npz": trajectory.to_bytes()})


def tail_steps(num_steps: int) -> int:
    """How many last steps count as steady state: a fifth of the run."""
    return max(1, num_steps // 5)


def _tail_mean(values: NDArray[np.float64]) -> float:
    return float(values[-tail_steps(len(values)) :].mean())


def _shape(problem: AssignmentProblem) -> Row:
    return {"num_tokens": problem.num_tokens, "num_experts": problem.num_experts, "top_k": problem.top_k}


def _rounding(problem: AssignmentProblem) -> float:
    """What float64 rounding can do to a sum over all picks; smaller changes of D are not counted as rises."""
    return 1e-12 * problem.num_tokens * problem.top_k


def _digest(trace: RouterTrace) -> str:
    """Digest of a trace's content, so that results of another trace are never taken up."""
    return hashlib.sha256(f"top-{trace.top_k} ".encode() + trace.scores_TE.tobytes()).hexdigest()[:16]
