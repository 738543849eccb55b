"""The loop: survey, start from a sample's optimum, then pass after pass until the bounds meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb import duality
from alflb.exact.batched import BatchedProblem
from alflb.exact.certificate import value_range
from alflb.exact.results import SolverError
from alflb.exact.screening import solve
from alflb.exact.streaming.passes import (
    AnySummary,
    Fingerprint,
    LoadingTask,
    Routing,
    RoutingTask,
    Survey,
    SurveyTask,
    reduce_pass,
)
from alflb.exact.streaming.repair import Repair, balance_by_swaps, bin_edges, reassign_closest
from alflb.exact.streaming.results import MapBatches, Pass, StreamingSolution, relative_gap
from alflb.exact.units import NeededScores, target_units
from alflb.problem import AssignmentProblem, FloatArray, check_target, check_top_k

FloatVector = NDArray[np.float64]

_CLOSE_ROWS = 64
"""Rows assigned anew in each pass for each expert, if the caller does not say how many."""
_DITHER = 1 / 16
"""Part of the tolerated loss of a pick that breaking ties at random may cost."""
_FINEST_DITHER = 2.0**-44
"""The same in terms of the largest score, for float64's sake."""
_MARGIN_ROWS = 4096
"""Rows of the sample whose margins say how wide the histograms must be."""
_PROGRESS = 0.5
"""Part of the gap that a good pass leaves; after a worse one the other way to choose a bias has its turn."""
_STALLED = 4
"""Failed steps in a row after which a new sample is drawn, at the cost of a pass: D has kinks the old one lacks."""
_DESCENT = 0.01
"""Part of the gap by which D has to fall, or the step counts as failed."""
_SAME = 1.01
"""Largest quotient of losses that are about the same."""
_SHRINK = 0.25
"""Part of a step that is tried next when neither way to choose a bias lowered D."""
_TINY = float(np.finfo(np.float64).tiny)
_ROUNDOFF = 2.0**-53
_HEADROOM = 2.0**-24
"""Part of the floating-point range that scores may use if biases are to stay inside it."""


class PassReader:
    """Reads the batches again and again, and holds them to being the same."""

    def __init__(self, problem: BatchedProblem, map_batches: MapBatches) -> None:
        self._problem = problem
        self._map_batches = map_batches
        self._first: Fingerprint | None = None
        self.passes = 0

    def __call__(self, task: Callable[[tuple[int, FloatArray]], AnySummary]) -> AnySummary:
        """One pass: the task's summaries of all batches, added up."""
        total = reduce_pass(LoadingTask(task, self._problem.top_k), self._problem.batches(), self._map_batches)
        self.passes += 1
        self._first = self._first or total.fingerprint
        if total.fingerprint != self._first:
            raise ValueError(
                f"batches gave {self._first} at first and {total.fingerprint} in pass {self.passes}; they must repeat"
            )
        return total


@dataclass(frozen=True)
class _Setting:
    """What stays the same from pass to pass."""

    top_k: int
    target_E: FloatVector
    target_units_E: NDArray[np.int64]
    unit: int
    dither: float
    top_exponent: int
    largest: float
    seed: int
    close_rows: int

    def routing_task(self, bias_E: FloatVector) -> RoutingTask:
        return RoutingTask(bias_E, self.top_k, self.dither, self.top_exponent, self.largest, self.seed, self.close_rows)


def find_bounds(
    problem: BatchedProblem,
    *,
    tolerance: float,
    max_passes: int,
    map_batches: MapBatches,
    seed: int,
    sample_rows: int | None,
    close_rows: int | None,
) -> StreamingSolution:
    """Pass after pass until the relative gap is within the tolerance or the passes are used up."""
    read = PassReader(problem, map_batches)
    survey = read(SurveyTask(seed, sample_rows))
    setting, sample = _prepare(problem, survey, tolerance, seed, close_rows)
    search = _Search(sample)
    while True:
        routing = read(setting.routing_task(search.bias_E))
        search.record(routing, *_bounds(setting, routing, search.bias_E))
        if relative_gap(search.lower_bound, search.best.upper_bound) <= tolerance or read.passes >= max_passes:
            break
        if search.is_stalled and read.passes + 1 < max_passes:
            survey = read(SurveyTask(seed + read.passes, sample_rows))
            search.step_by(_prepare(problem, survey, tolerance, seed, close_rows)[1])
        else:
            search.step()
    return StreamingSolution(
        search.lower_bound, search.best.upper_bound, search.best.bias_E, search.best.load_E,
        survey.fingerprint.num_tokens, survey.fingerprint.num_batches, read.passes, tuple(search.history), tolerance,
    )  # fmt: skip


class _Search:
    """Which bias is next: from the best one towards its repair's, or towards the sample's."""

    def __init__(self, sample: _Sample) -> None:
        self.sample = sample
        self.bias_E = _centered(sample.optimum())
        self.best = _Visited(math.inf, self.bias_E, np.zeros(len(self.bias_E), np.int64), Repair(math.inf, self.bias_E))
        self.lower_bound = -math.inf
        self.history: list[Pass] = []
        self.failures = 0
        self._by_sample = False
        self._radius = math.inf
        self._gap = math.inf

    @property
    def is_stalled(self) -> bool:
        """Whether the sample in use has had its chances."""
        return self.failures > 0 and self.failures % _STALLED == 0

    def record(self, routing: Routing, found: Pass, repaired: Repair) -> None:
        """Take in what the pass with `bias_E` found, and choose the way of the next step and its longest length."""
        self.history.append(found)
        self.lower_bound = max(self.lower_bound, found.lower_bound)
        enough = _DESCENT * self._gap if math.isfinite(self._gap) else 0.0
        has_failed = found.upper_bound >= self.best.upper_bound - enough and math.isfinite(self.best.upper_bound)
        self.failures = self.failures + 1 if has_failed else 0
        self._radius = _SHRINK * float(np.ptp(self.bias_E - self.best.bias_E)) if self.failures > 1 else math.inf
        if found.upper_bound < self.best.upper_bound:
            self.best = _Visited(found.upper_bound, self.bias_E, routing.load_E, repaired)
        last_gap, self._gap = self._gap, self.best.upper_bound - self.lower_bound
        if not has_failed and not math.isfinite(self.best.repaired.loss):
            self._by_sample = True
        elif has_failed or self._gap > _PROGRESS * last_gap:
            self._by_sample = not self._by_sample

    def step(self) -> None:
        """Set `bias_E` for the next pass."""
        best = self.best
        aim_E = self.sample.corrected_optimum(best.bias_E, best.load_E) if self._by_sample else best.repaired.bias_E
        step_E = aim_E - best.bias_E
        self.bias_E = _centered(best.bias_E + step_E * min(1.0, self._radius / max(float(np.ptp(step_E)), _TINY)))

    def step_by(self, sample: _Sample) -> None:
        """A whole step by a new sample."""
        self.sample, self._by_sample, self._radius = sample, True, math.inf
        self.step()


def _centered(bias_E: FloatVector) -> FloatVector:
    return duality.center(bias_E).astype(np.float64)


class _Visited(NamedTuple):
    """A bias the batches have been routed with."""

    upper_bound: float
    bias_E: FloatVector
    load_E: NDArray[np.int64]
    repaired: Repair
    """The better repair of its routing."""


class _Sample:
    """Some rows that stand for all, with dithered scores."""

    def __init__(self, dithered_ME: FloatVector, num_tokens: int, top_k: int, target_E: FloatVector) -> None:
        self.scores_ME = dithered_ME
        self.top_k = top_k
        self.share = len(dithered_ME) / num_tokens
        self.target_E = self.share * target_E

    def optimum(self) -> FloatVector:
        """An optimal bias of the sample, 0 if forbidden pairs leave it without a balanced assignment."""
        return self._solve(self.target_E, np.zeros(len(self.target_E)))

    def corrected_optimum(self, bias_E: FloatVector, load_E: NDArray[np.int64]) -> FloatVector:
        """An optimal bias for targets that make the sample's gradient at this bias the gradient of all tokens.

        Minimizes share * D up to the sample's error in how loads *change* (the step of Shamir, Srebro and Zhang's
        DANE, arXiv 1312.7853), kinks and ties included.
        """
        sample_load_E = duality.allocate(AssignmentProblem(self.scores_ME, self.top_k), bias_E).load_E
        correction_E = sample_load_E - self.share * load_E
        wanted_E = self.target_E + correction_E
        within_E = np.clip(wanted_E, 0.0, len(self.scores_ME))
        off_E = correction_E != 0
        part = np.min((within_E - self.target_E)[off_E] / correction_E[off_E], initial=1.0)
        return self._solve(np.clip(self.target_E + part * correction_E, 0.0, len(self.scores_ME)), bias_E)

    def _solve(self, target_E: FloatVector, bias_E: FloatVector) -> FloatVector:
        try:
            return solve(AssignmentProblem(self.scores_ME, self.top_k, target_E), bias_E).bias_E
        except SolverError:
            return bias_E


def _prepare(
    problem: BatchedProblem, survey: Survey, tolerance: float, seed: int, close_rows: int | None
) -> tuple[_Setting, _Sample]:
    """What stays the same from pass to pass."""
    num_tokens, num_experts = survey.fingerprint.num_tokens, survey.sample_ME.shape[1]
    top_k = check_top_k(problem.top_k, num_experts)
    target_E = check_target(problem.target_E, num_tokens, num_experts, top_k)
    target_units_E, unit = target_units(target_E, num_tokens, top_k)
    dtype = survey.sample_ME.dtype
    if survey.largest > min(NeededScores.of(survey.sample_ME, top_k).limit, float(np.finfo(dtype).max) * _HEADROOM):
        raise ValueError(
            f"scores as large as {survey.largest:.3g} in size leave the others no digits: a sample has "
            f"{value_range(survey.sample_ME)}; or solve the pooled problem with solve_exact, which takes any size"
        )
    sample_ME = survey.sample_ME.astype(np.float64)
    typical = float(np.mean(np.abs(sample_ME[np.isfinite(sample_ME)])))
    dither = max(_DITHER * tolerance * typical, _FINEST_DITHER * survey.largest)
    if survey.largest > 0:
        sample_ME += dither * np.random.default_rng(seed).random(sample_ME.shape)
    else:
        dither = 1.0  # nothing is lost by any order of equal scores
    setting = _Setting(
        top_k, target_E, target_units_E, unit, dither, _top_exponent(sample_ME[:_MARGIN_ROWS], top_k), survey.largest,
        seed, close_rows or _CLOSE_ROWS * num_experts,
    )  # fmt: skip
    return setting, _Sample(sample_ME, num_tokens, top_k, target_E)


def _top_exponent(sample_ME: FloatVector, top_k: int) -> int:
    """2 to this power exceeds the usual range of a row, and twice its largest margin."""
    num_experts = sample_ME.shape[1]
    if top_k == num_experts:
        return 0
    ranked_ME = np.sort(sample_ME, axis=1)
    margin_M = ranked_ME[:, num_experts - top_k] - ranked_ME[:, num_experts - top_k - 1]
    range_M = ranked_ME[:, -1] - np.min(sample_ME, axis=1, where=np.isfinite(sample_ME), initial=np.inf)
    widest = max(2.0 * float(np.max(margin_M, where=np.isfinite(margin_M), initial=0.0)), float(np.median(range_M)))
    return math.frexp(widest)[1]


def _bounds(setting: _Setting, routing: Routing, bias_E: FloatVector) -> tuple[Pass, Repair]:
    """Both bounds from one routing, and the repair behind the lower one."""
    size = setting.largest + float(np.abs(bias_E).max())
    cost = math.fsum(setting.target_E * bias_E)
    picked = setting.top_k + 6.0
    rounding = _ROUNDOFF * 1.01 * (picked * routing.sums[4] + 4.0 * np.abs(setting.target_E * bias_E).sum())
    swaps = balance_by_swaps(
        routing, setting.target_units_E, setting.unit, bias_E, bin_edges(setting.top_exponent), size
    )
    closest = reassign_closest(routing, setting.target_E, setting.top_k, bias_E, size)
    loss, name = min((swaps.loss, "swaps"), (closest.loss, "closest"))
    found = Pass(
        lower_bound=float(routing.chosen - cost - loss - rounding),
        upper_bound=float(routing.best - cost + rounding),
        violation=float(np.abs(routing.load_E - setting.target_E).sum()),
        repair=name if math.isfinite(loss) else "none",
    )
    # Of two about as good the reassignment has the better bias: an exact optimum, not one of bins.
    return found, closest if closest.loss < math.inf and closest.loss <= _SAME * swaps.loss else swaps
