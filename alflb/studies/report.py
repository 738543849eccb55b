"""From the rows of a study to a folder one can hand on: figures, and one self-contained ``report.html``.

The report reads as an argument: the problem, the data, what the optimum is worth, how ALF-LB approaches it, which step
size to use, what balance costs, where the theory's conditions hold, and what changes when text is not stationary. Its
numbers come from the rows and from the trace; every claim is followed by the check that could refute it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from alflb import __version__, duality, metrics
from alflb.io import Row, provenance, write_text
from alflb.plotting import RED, save_figure
from alflb.problem import AssignmentProblem
from alflb.studies import figures
from alflb.studies.claims import run_checks
from alflb.studies.study import BASELINE_RULE, PORTRAIT_STEP_SIZE, PUBLISHED_ARM, SMOKE, Study, StudyResult
from alflb.studies.sweep import Progress, Silent
from alflb.trajectory import Trajectory
from alflb.verdict import Verdict

NEAR_OPTIMAL_GAP, NEAR_OPTIMAL_MAX_VIO = 1e-3, 0.01
"""What "near-optimal" means in the report: relative dual gap, and MaxVio above what ties leave."""
SMOKE_BANNER = "smoke size: shows that everything runs, the numbers mean nothing"


def source_title(study: Study, source: str) -> str:
    """How a source is called in text and figures; a trace by its own name."""
    titles = {
        "trace": study.name,
        "linear_router": "linear router",
        "trace_text": f"{study.name}, in order",
        "trace_shuffled": f"{study.name}, shuffled",
        "drift": "drifting logistic",
    }
    return titles.get(source, source)


@dataclass(frozen=True)
class Report:
    """What was written and what it says in short."""

    path: Path
    checks: list[Verdict]
    headline: Row

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def conclusion(self) -> str:
        """The answer in two sentences: near-optimal or not, and which step size to use."""
        said = self.headline
        near = "ALF-LB is near-optimal here" if said["is_near_optimal"] else "ALF-LB was not near-optimal in these runs"
        best = f"{near}: MaxVio {two_digits(said['best_max_vio'])} on a fixed batch ({said['best_arm']})."
        if said["advised_step_size"] is None:
            return best
        return (
            f"{best} On fresh batches use the sign rule with u = {two_digits(said['advised_step_size'])}: MaxVio "
            f"{said['advised_max_vio']:.3g}, of which {said['sampling_floor']:.3g} is sampling."
        )

    def as_json(self) -> str:
        """The short version for machines."""
        checks = [asdict(check) for check in self.checks]
        return json.dumps({"report": str(self.path), "holds": self.holds, "headline": self.headline, "checks": checks})


def write_report(result: StudyResult, progress: Progress | None = None) -> Report:
    """Draw all figures into ``figures/`` and write ``report.html``. No run or optimum is computed again."""
    progress = progress or Silent()
    progress.begin("figures", len(_FIGURES))
    pictures = {}
    for name, draw in _FIGURES.items():
        figure = draw(result)
        if result.study.size == SMOKE:
            figure.suptitle(SMOKE_BANNER.upper(), color=RED, fontsize=8, fontweight="bold")
        pictures[name] = save_figure(figure, result.folder / "figures" / name)
        progress.advance(1)
    checks = run_checks(result)
    headline = _headline(result)
    page = _environment().get_template("report.html.j2")
    html = page.render(
        figure={name: _embedded(png) for name, (png, _) in pictures.items()},
        checks=checks,
        headline=headline,
        name=result.study.name,
        smoke_banner=SMOKE_BANNER if result.study.size == SMOKE else "",
        advice={row["source"]: row for row in result.select(kind="advice")},
        optima=[_optimum_words(result, row) for row in result.select(kind="optimum")],
        best=_best_rows(result),
        streams=_stream_rows(result),
        facts=_facts(result),
        provenance=provenance(),
        packages=", ".join(f"{name} {v}" for name, v in json.loads(provenance()["versions"]).items()),
        version=__version__,
        seed=result.study.seed,
        num_cells=len(result.rows),
    )
    path = result.folder / "report.html"
    write_text(path, html)
    return Report(path, checks, headline)


def _figure_scores(result: StudyResult) -> Figure:
    scores_TE, trace = result.study.trace_scores(), result.study.trace
    problem = AssignmentProblem(scores_TE, trace.top_k)
    optimum = result.optimum("trace")
    loads = {"bias 0": np.array(optimum["greedy_load_E"])}
    if trace.bias_E is not None:
        loads["the model's own bias"] = duality.allocate(problem, trace.bias_E).load_E
    loads["the LP's bias p*"] = duality.allocate(problem, optimum["lp_bias_E"]).load_E
    return figures.plot_scores(scores_TE, loads, problem.target_load)


def _figure_convergence(result: StudyResult) -> Figure:
    return figures.plot_convergence(_sign_runs(result), result.optimum("trace")["lp_value"])


def _figure_condition(result: StudyResult) -> Figure:
    return figures.plot_condition(_sign_runs(result), result.select(kind="static", source="trace"))


def _figure_heat_map(result: StudyResult) -> Figure:
    row = _portrait(result)
    return figures.plot_load_heat_map(
        result.trajectory(row),
        title=f"Loads on {result.study.name}, {figures.arm_name(row)}, u = {figures.step_words(row)}",
    )


def _figure_bias_paths(result: StudyResult) -> Figure:
    row = _portrait(result)
    return figures.plot_bias_paths(
        result.trajectory(row),
        result.optimum("trace")["lp_bias_E"],
        title=f"Bias paths on {result.study.name}, {figures.arm_name(row)}, u = {figures.step_words(row)}",
    )


def _figure_step_sizes_static(result: StudyResult) -> Figure:
    optima = result.select(kind="optimum")
    return figures.plot_step_sizes(
        {
            source_title(result.study, row["source"]): result.select(kind="static", source=row["source"])
            for row in optima
        },
        column="max_vio_tail",
        label="MaxVio, mean of the last fifth",
        baselines={source_title(result.study, row["source"]): row["greedy_max_vio"] for row in optima},
    )


def _figure_step_sizes_streams(result: StudyResult) -> Figure:
    baselines = result.select(kind="stream", rule=BASELINE_RULE)
    return figures.plot_step_sizes(
        {source_title(result.study, row["source"]): _stream_arms(result, row["source"]) for row in baselines},
        column="max_vio_tail",
        label="MaxVio, mean of the last fifth",
        baselines={source_title(result.study, row["source"]): row["max_vio_tail"] for row in baselines},
    )


def _figure_affinity(result: StudyResult) -> Figure:
    panels = {}
    for optimum in result.select(kind="optimum"):
        rows = result.select(kind="static", source=optimum["source"])
        panels[source_title(result.study, optimum["source"])] = [
            {**row, "affinity_ratio": row["affinity_tail"] / optimum["lp_value"]} for row in rows
        ]
    return figures.plot_pareto(panels, label="affinity / LP* − 1, mean of the last fifth")


def _figure_gap_bound(result: StudyResult) -> Figure:
    groups = {}
    for optimum in result.select(kind="optimum"):
        rows = result.select(kind="static", source=optimum["source"])
        groups[source_title(result.study, optimum["source"])] = (
            np.concatenate([row["gap_bound_n"] for row in rows]),
            np.concatenate([row["gap_n"] for row in rows]),
        )
    return figures.plot_gap_bounds(groups)


def _figure_stationarity(result: StudyResult) -> Figure:
    labels = {"first": "first half,\nin order", "random": "random half"}
    splits = {
        labels[row["half"]]: (row["max_vio_held_out_unbiased"], row["max_vio_fit"], row["max_vio_held_out"])
        for row in result.select(kind="split")
    }
    runs = {
        source_title(result.study, source): result.trajectory(_nearest_portrait(_stream_arms(result, source)))
        for source in ("trace_text", "trace_shuffled")
    }
    return figures.plot_stationarity(splits, runs)


_FIGURES: dict[str, Callable[[StudyResult], Figure]] = {
    "scores": _figure_scores,
    "convergence": _figure_convergence,
    "heat_map": _figure_heat_map,
    "bias_paths": _figure_bias_paths,
    "condition": _figure_condition,
    "step_sizes_static": _figure_step_sizes_static,
    "affinity": _figure_affinity,
    "gap_bound": _figure_gap_bound,
    "stationarity": _figure_stationarity,
    "step_sizes_streams": _figure_step_sizes_streams,
}


def _headline(result: StudyResult) -> Row:
    """The few numbers the summary is made of; runs are compared by the mean MaxVio of their last fifth throughout."""
    optimum = result.optimum("trace")
    best = min(result.select(kind="static", source="trace"), key=lambda row: row["max_vio_tail"])
    portrait = _portrait(result)
    lp_value = optimum["lp_value"]
    splits = {row["half"]: row["max_vio_held_out"] for row in result.select(kind="split")}
    (advice,) = result.select(kind="advice", source="trace_shuffled")
    gap = _relative_gap(best, lp_value)
    tie_floor = optimum["topk_at_lp_bias_max_vio"]
    return {
        "lp_value": lp_value,
        "greedy_affinity_over_lp": optimum["greedy_affinity"] / lp_value,
        "max_vio_unbiased": optimum["greedy_max_vio"],
        "max_vio_model_bias": _model_bias_max_vio(result),
        "is_near_optimal": bool(gap <= NEAR_OPTIMAL_GAP and best["max_vio_tail"] <= tie_floor + NEAR_OPTIMAL_MAX_VIO),
        "best_arm": figures.arm_name(best),
        "best_step_size": figures.step_words(best),
        "best_max_vio": best["max_vio_tail"],
        "tie_floor": tie_floor,
        "tie_tokens": round(tie_floor * optimum["top_k"] * optimum["num_tokens"] / optimum["num_experts"], 2),
        "best_affinity_over_lp": best["affinity_tail"] / lp_value,
        "best_relative_gap": gap,
        "portrait_arm": figures.arm_name(portrait),
        "portrait_step_size": figures.step_words(portrait),
        "portrait_max_vio": portrait["max_vio_tail"],
        "portrait_relative_gap": _relative_gap(portrait, lp_value),
        "portrait_rises": portrait["dual_rises"],
        "portrait_steps": portrait["num_steps"],
        "portrait_cycle": portrait["cycle_period"],
        "split_first": splits["first"],
        "split_random": splits["random"],
        "advised_step_size": advice.get("advised_step_size"),
        "advised_max_vio": advice.get("advised_max_vio_tail"),
        "sampling_floor": advice["floor"],
    }


def _relative_gap(row: Row, lp_value: float) -> float:
    """(D - LP*) / |LP*| at the end of a run."""
    return float((row["dual_value_final"] - lp_value) / abs(lp_value)) if lp_value else 0.0


def _facts(result: StudyResult) -> Row:
    """Numbers the running text quotes."""
    runs = result.select(kind="static", source="trace")
    rising = [row for row in runs if row["dual_rises"]]
    published = [row for row in runs if _is_published(row)]
    gaps = np.concatenate([row["gap_n"] for row in result.select(kind="static")])
    bounds = np.concatenate([row["gap_bound_n"] for row in result.select(kind="static")])
    meaningful = bounds > 0
    trace = result.study.trace
    return {
        "trace": dict(trace.metadata),
        "num_tokens": runs[0]["num_tokens"],
        "num_experts": runs[0]["num_experts"],
        "top_k": runs[0]["top_k"],
        "score_range": result.optimum("trace")["score_range"],
        "num_runs": len(runs),
        "rising_runs": len(rising),
        "rise_share": max((row["dual_rises"] / row["num_steps"] for row in runs), default=0.0),
        "rise_arm": figures.arm_name(max(runs, key=lambda row: row["dual_rises"] / row["num_steps"])),
        "rise_step_size": figures.step_words(max(runs, key=lambda row: row["dual_rises"] / row["num_steps"])),
        "published_runs": len(published),
        "cycles": sum(row["cycle_period"] is not None for row in published),
        "bound_tightness": float(np.max(gaps[meaningful] / bounds[meaningful], initial=0.0)),
        "bound_median": float(np.median(gaps[meaningful] / bounds[meaningful])) if meaningful.any() else 0.0,
        "bias_distance": _bias_distance(result),
        "travel": _travel(result),
    }


def _bias_distance(result: StudyResult) -> Row | None:
    """How the model's own bias relates to the LP's: correlation and spreads after centering."""
    bias_E = result.study.trace.bias_E
    if bias_E is None or np.ptp(bias_E) == 0:
        return None
    lp_bias_E = np.array(result.optimum("trace")["lp_bias_E"])
    return {
        "correlation": float(np.corrcoef(bias_E, lp_bias_E)[0, 1]),
        "spread_model": float(np.ptp(bias_E)),
        "spread_lp": float(np.ptp(lp_bias_E)),
    }


def _travel(result: StudyResult) -> Row:
    """How far the farthest bias has to go, how many steps of the portrait that is, and when the run was there."""
    portrait = _portrait(result)
    distance = float(np.abs(result.optimum("trace")["lp_bias_E"]).max())
    return {
        "distance": distance,
        "steps": distance / portrait["step_size"] if _is_published(portrait) else None,
        "settled": portrait["settling_time_10"],
        "step_size": figures.step_words(portrait),
    }


def _model_bias_max_vio(result: StudyResult) -> float | None:
    trace = result.study.trace
    if trace.bias_E is None:
        return None
    problem = AssignmentProblem(result.study.trace_scores(), trace.top_k)
    return float(metrics.max_vio(duality.allocate(problem, trace.bias_E).load_E))


def _best_rows(result: StudyResult) -> list[Row]:
    """For each static source and arm, the step size with the least tail MaxVio."""
    table = []
    for optimum in result.select(kind="optimum"):
        rows = result.select(kind="static", source=optimum["source"])
        for arm in dict.fromkeys(map(figures.arm_name, rows)):
            best = min((row for row in rows if figures.arm_name(row) == arm), key=lambda row: row["max_vio_tail"])
            table.append(
                {
                    **best,
                    "title": source_title(result.study, best["source"]),
                    "arm": arm,
                    "step_words": _step_words(result, best),
                    "relative_gap": _relative_gap(best, optimum["lp_value"]),
                    "affinity_ratio": best["affinity_tail"] / optimum["lp_value"],
                }
            )
    return table


def _stream_rows(result: StudyResult) -> list[Row]:
    """For each stream and arm, the step size with the least tail MaxVio, and the affinity kept of top-K's."""
    table = []
    for baseline in result.select(kind="stream", rule=BASELINE_RULE):
        rows = _stream_arms(result, baseline["source"])
        for arm in dict.fromkeys(map(figures.arm_name, rows)):
            best = min((row for row in rows if figures.arm_name(row) == arm), key=lambda row: row["max_vio_tail"])
            table.append(
                {
                    **best,
                    "title": source_title(result.study, best["source"]),
                    "arm": arm,
                    "step_words": _step_words(result, best),
                    "unbiased": baseline["max_vio_tail"],
                    "affinity_ratio": best["affinity_tail"] / baseline["affinity_tail"],
                }
            )
    return table


def _step_words(result: StudyResult, row: Row) -> str:
    """A step size, and whether the grid ends there: then a better one may lie beyond."""
    words, grid = figures.step_words(row), result.study.grid(row["source"])
    at_end = len(grid) > 1 and row["step_size"] in (min(grid), max(grid))
    return f"{words} (end of the grid)" if at_end else words


def _optimum_words(result: StudyResult, row: Row) -> Row:
    return {
        **row,
        "title": source_title(result.study, row["source"]),
        "target_load": row["top_k"] * row["num_tokens"] / row["num_experts"],
        "gap": row["lp_upper_bound"] - row["lp_value"],
    }


def _sign_runs(result: StudyResult) -> dict[float | None, Trajectory]:
    """Runs on the trace of the sign rule at constant steps, or of the portrait's arm if it was not studied."""
    portrait = _portrait(result)
    rows = result.select(kind="static", source="trace", rule=portrait["rule"], schedule=portrait["schedule"])
    return {row["step_size"]: result.trajectory(row) for row in rows}


def _portrait(result: StudyResult) -> Row:
    return _nearest_portrait(result.select(kind="static", source="trace"))


def _is_published(row: Row) -> bool:
    return (row["rule"], row["schedule"]) == PUBLISHED_ARM


def _nearest_portrait(rows: Sequence[Row]) -> Row:
    """The run of the published arm nearest to the step size in common use, or the first arm's if there is none."""
    preferred = [row for row in rows if _is_published(row)]
    preferred = preferred or [row for row in rows if row["step_size"] is not None] or list(rows)
    if preferred[0]["step_size"] is None:
        return preferred[0]
    return min(preferred, key=lambda row: abs(np.log(row["step_size"] / PORTRAIT_STEP_SIZE)))


def _stream_arms(result: StudyResult, source: str) -> list[Row]:
    return [row for row in result.select(kind="stream", source=source) if row["rule"] != BASELINE_RULE]


def _embedded(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def two_digits(value: float) -> str:
    """Two significant digits, small numbers with a power of ten, and no minus sign on zero.

    Examples
    --------
    >>> [two_digits(value) for value in (2.954, 0.16548, 6.51e-4, -0.0, 123.4)]
    ['3.0', '0.17', '6.5e-04', '0', '123']
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def gap_words(value: float) -> str:
    """A gap, which cannot be negative: what is, up to the rounding of float64 sums, is rounding.

    Examples
    --------
    >>> gap_words(0.0), gap_words(-3e-16), gap_words(2.345e-4)
    ('0', '0 (rounding)', '2.3e-04')
    """
    return "0 (rounding)" if 0 < abs(value) <= 1e-13 or -1e-10 <= value < 0 else two_digits(value)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alflb.studies", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sci"] = two_digits
    environment.filters["gap"] = gap_words
    environment.filters["off"] = lambda ratio: f"{100 * (ratio - 1):+.1g} %"
    environment.filters["pct"] = lambda value: f"{100 * value:.4g} %"
    environment.filters["num"] = lambda value: f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return environment
