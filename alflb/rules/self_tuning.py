"""A rule without a step size: it finds the unit of the scores, then weighs averages of past loads by least squares.

A load says where the optimal bias is. With r the relative shortfall of each expert and kappa the curvature of its load
(d log load / d bias), bias + r / kappa is an unbiased, noisy sighting of the optimum, on every batch and wherever the
bias stands. Balancing is then the prediction of the next sighting from those before, which is a linear problem:

- *Search.* While kappa is unknown, steps grow fourfold until the loads answer. The answer is the curvature.
- *Averages.* The sightings are averaged over the last batch, the last 2, 4, 8, 16, and over all of them.
  Batches that are calmer than independent tokens can be, as one fixed batch is, count inversely to their noise.
- *Weights.* The next bias is the long average plus a_1 ... a_5 times the differences of neighboring averages. The
  weights are least squares over all experts and the recent batches, shrunk to 0. So the long average (steps of 1/n)
  rules until the data show that something else predicts better: a step size, a trend, or noise that repeats.
- *Jump.* A batch far outside the usual noise is answered at once by a Newton step, whatever the averages say.

docs/theory/self_tuning.md has the derivations, docs/experiments/self_tuning.md the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, Observation, Rule

Vector = NDArray[np.float64]

FIRST_STEP = 2.0**-30
"""Score units. Any number far below the scores' own scale does: the search takes one batch per factor of `GROWTH`."""
STEP_RANGE = 2.0**80
"""Largest factor between the first step and any other."""
CALM_BATCHES = 4
"""Batches at the first step, whose noise is measured before steps grow."""
GROWTH = 4.0
"""Factor from one step of the search to the next."""
ALARM_SLACK, ALARM = 1.0, 4.0
"""Standard deviations: what a CUSUM chart ignores per batch, and the sum at which it says that loads answer."""
MEMORY = 0.9
"""Share of the old value kept, per batch, by running averages: noise, tokens per batch, persistence; in the search also
loads and bias."""
SURPRISE = 4.0
"""A batch this many times noisier than usual is a jump of the optimum until the next batch says otherwise."""
NEW_SLOPE = 0.5
"""Weight of a new measurement of the curvature against all earlier ones, times its share of signal."""
LARGEST_FALL = 0.25
"""Smallest factor by which one measurement may change the curvature."""
LARGEST_STEP = 4.0
"""Largest step size, in Newton steps: where gains have become small, shortfalls agree whatever the step size."""
LEAST_NOISE = 1.0 / 64.0
"""Level of noise below which a calmer batch counts no more than any other in the averages."""
NUM_AVERAGES = 6
"""Averages over 1, 2, 4, 8, 16 batches, and over all batches."""
LEARNING_MEMORY = 0.99
"""Share of the old evidence about the weights that is kept per batch."""
PRIOR_PRECISION = 16.0
"""Weights are a priori normal with mean 0 and standard deviation 1/4."""
DEAD_TOKENS = 16.0
"""An expert that missed this many expected tokens in a row is not noise (probability e^-16) and teaches nothing."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What the rule keeps: twelve vectors of E numbers, normal equations of five weights, a handful of numbers."""

    load_E: NDArray[np.int64]
    shortfall_E: Vector
    move_E: Vector
    """Loads and relative shortfalls of the last batch, and how the bias moved after it."""
    missed_E: Vector
    """Tokens that an expert was expected to get since it last got one."""
    usual_E: Vector
    ahead_E: Vector
    """While the curvature is searched: the running average of the shortfalls, and the bias less its running average."""
    offset_ME: Vector
    """The averages of sightings, relative to the bias in force."""
    information_DD: Vector
    evidence_D: Vector
    """Normal equations of the weights."""
    step_size: float
    """Score units that a relative shortfall of 1 is worth."""
    usual_tokens: float = 0.0
    """Running level of the tokens per batch, 0 before the first batch."""
    calm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Number, sum and sum of squares of the scores of the search before the loads answered."""
    alarm: float = 0.0
    """The CUSUM chart of these scores, standard deviations."""
    curvature: float = 0.0
    """Relative change of load per score unit; 0 while it is searched."""
    noise: float = 0.0
    """Usual squared size of a shortfall; 1 for independent tokens at the optimum."""
    persistence: float = 0.0
    """Running correlation of successive shortfalls."""
    num_averaged: float = 0.0
    """Weight of the batches in the longest average."""


@dataclass(frozen=True)
class _Batch:
    """A batch as the rule looks at it."""

    load_E: NDArray[np.int64]
    shortfall_E: Vector
    metric_E: Vector
    """Weights of the inner product: shortfalls of independent tokens at the optimum have squared size 1."""
    degrees: int
    """Experts that teach something, less one for the common shift of all biases."""
    tokens: float
    missed_E: Vector

    @classmethod
    def of(cls, seen: Observation, missed_E: Vector) -> _Batch:
        """Shortfalls against the targets; live experts share what dead ones do not take."""
        load_E, target_E = seen.load_E, seen.target_E
        missed_E = np.where(load_E > 0, 0.0, missed_E + target_E)
        alive_E = missed_E <= np.maximum(DEAD_TOKENS, target_E)
        ratio = _sum(np.where(alive_E, load_E, 0.0)) / _sum(np.where(alive_E, target_E, 0.0))
        goal_E = np.where(alive_E, target_E * round(ratio, 12), target_E)
        unit_E = np.maximum(goal_E, 1.0)
        degrees = max(1, int(alive_E.sum()) - 1)
        metric_E = np.where(alive_E, unit_E, 0.0) / degrees
        return cls(load_E, (goal_E - load_E) / unit_E, metric_E, degrees, _sum(1.0 * load_E), missed_E)

    def inner(self, one_E: Vector, other_E: Vector) -> float:
        """Inner product of relative shortfalls, or of moves."""
        return _sum(self.metric_E * one_E * other_E)

    @property
    def size(self) -> float:
        """Squared size of the shortfall."""
        return self.inner(self.shortfall_E, self.shortfall_E)

    def answer(self, last_E: Vector, move_E: Vector) -> tuple[float, float]:
        """How far the shortfalls fell below `last_E` along a move, and the square of that move.

        Their ratio is the curvature. Loads answer in proportion to themselves: log load = curvature bias + constant.
        """
        mean_load_E = self.metric_E * (1.0 - 0.5 * (last_E + self.shortfall_E))
        total = _sum(mean_load_E)
        pull_E = move_E - _sum(mean_load_E * move_E) / total if total > 0.0 else move_E
        return self.inner(pull_E, last_E - self.shortfall_E), _sum(mean_load_E * pull_E * pull_E)


@RULES.register("self_tuning")
@dataclass(frozen=True)
class SelfTuning(Rule):
    """b += the move that least squares on past loads predicts to balance the next batch; nothing to set.

    With r = (target - load) / target and kappa the measured curvature, b + r / kappa is a sighting of the optimum.
    Steps grow until loads answer, which gives kappa; then b = A_5 + a_0 (A_0 - A_1) + ... + a_4 (A_4 - A_5). The
    A_j are averages of the sightings over 1, 2, 4, 8, 16 and all batches, the a_j least squares on past loads.

    Notes
    -----
    Loads only; memory 12 E numbers. Exactly equivariant under a permutation of the experts, and under a common shift of
    the bias. Scores and `FIRST_STEP` times a power of two give the same loads, bit for bit; with `FIRST_STEP` fixed, as
    it must be (no rule can know the unit of scores from loads before it has moved a load), scores four times as large
    cost one more step of search. A batch without tokens changes nothing. Loads that repeat exactly teach nothing. An
    expert that gets no token however its bias rises is left out of what is learned, and its bias keeps rising. Nothing
    moves at exact balance from rest; while the averages differ the bias keeps moving with them.

    The constants of this module are ours; what a factor of 4 either way does is measured in
    docs/experiments/self_tuning.md.

    Source: ours. Innovations of the best linear predictor are white: Mehra, IEEE Trans. Automatic Control 15 (1970).

    Examples
    --------
    >>> import numpy as np
    >>> from alflb import metrics, simulate
    >>> from alflb.streams import make_stream
    >>> from alflb.rules import make_rule
    >>> stream = make_stream("logistic", num_tokens=1024, num_experts=8)
    >>> run = simulate(stream, make_rule("self_tuning"), top_k=2, num_steps=100)
    >>> violation_N = metrics.max_vio(run.load_NE, run.target_E)
    >>> bool(violation_N[:10].mean() > 0.5), bool(violation_N[50:].mean() < 0.1)
    (True, True)
    """

    def init(self, num_experts: int) -> Memory:
        """Nothing known; the step is `FIRST_STEP`."""
        none_E, differences = np.zeros(num_experts), NUM_AVERAGES - 1
        return Memory(
            load_E=np.zeros(num_experts, dtype=np.int64),
            shortfall_E=none_E,
            move_E=none_E,
            missed_E=none_E,
            usual_E=none_E,
            ahead_E=none_E,
            offset_ME=np.zeros((NUM_AVERAGES, num_experts)),
            information_DD=np.zeros((differences, differences)),
            evidence_D=np.zeros(differences),
            step_size=FIRST_STEP,
        )

    def step(self, bias_E: Vector, seen: Observation, state: Memory) -> tuple[Vector, Memory]:
        """Search while the curvature is unknown, track afterwards."""
        if not seen.load_E.any():
            return bias_E, state
        batch = _Batch.of(seen, state.missed_E)
        is_new = not np.array_equal(batch.load_E, state.load_E)
        if state.curvature == 0.0:
            state = _searched(state, batch)
            jumps = state.curvature > 0.0
        else:
            jumps = is_new and batch.size > SURPRISE * max(state.noise, 1.0)
            state = _measured(state, batch, jumps) if is_new else state
        if state.curvature == 0.0:
            move_E, state = _searching_move(state, batch)
        elif jumps:
            move_E, state = _jump(state, batch)
        else:
            move_E, state = _tracking_move(state, batch, is_new)
        usual_tokens = _blend(state.usual_tokens, batch.tokens) if state.usual_tokens > 0.0 else batch.tokens
        return bias_E + move_E, replace(
            state,
            load_E=batch.load_E,
            shortfall_E=batch.shortfall_E,
            move_E=move_E,
            missed_E=batch.missed_E,
            usual_tokens=usual_tokens,
        )


def _searched(memory: Memory, batch: _Batch) -> Memory:
    """Whether the loads of this batch answer to where the bias has gone; if so, the curvature.

    Shortfalls and bias are compared with their running averages. The score is the slope of one against the other over
    its standard error for independent tokens. Scores have some mean and spread without any answer; a CUSUM chart of
    them ends the search.
    """
    count, total, squares = memory.calm
    top, bottom = batch.answer(memory.usual_E, memory.ahead_E)
    score = top * math.sqrt(batch.degrees / bottom) if bottom > 0.0 else 0.0
    usual = total / max(count, 1.0)
    spread = math.sqrt(max(squares / max(count, 1.0) - usual**2, 1.0))
    alarm = max(0.0, memory.alarm + (score - usual) / spread - ALARM_SLACK) if count >= CALM_BATCHES else 0.0
    if alarm > ALARM and top > 0.0:
        return replace(memory, curvature=top / bottom, step_size=bottom / top, noise=1.0)
    calm = memory.calm if alarm > 0.0 or bottom == 0.0 else (count + 1.0, total + score, squares + score**2)
    gain = max(1.0 / (count + 1.0), 1.0 - MEMORY)
    usual_E = memory.usual_E + gain * (batch.shortfall_E - memory.usual_E)
    return replace(memory, calm=calm, alarm=alarm, usual_E=usual_E, ahead_E=(1.0 - gain) * memory.ahead_E)


def _searching_move(memory: Memory, batch: _Batch) -> tuple[Vector, Memory]:
    """A proportional step, each `GROWTH` times as large as the one before once the noise is known."""
    step_size = _bounded(GROWTH * memory.step_size) if memory.calm[0] >= CALM_BATCHES else memory.step_size
    move_E = step_size * batch.shortfall_E
    return move_E, replace(memory, step_size=step_size, ahead_E=memory.ahead_E + move_E)


def _measured(memory: Memory, batch: _Batch, jumps: bool) -> Memory:
    """Curvature and step size after one more answer.

    Batches whose shortfall stood out of the noise measure the curvature, and a jump takes it over as it is. Otherwise
    the step size grows while successive shortfalls agree and falls while they alternate: with the best linear
    prediction they do neither.
    """
    last_E = memory.shortfall_E
    last_size = batch.inner(last_E, last_E)
    signal = max(0.0, 1.0 - 2.0 * max(memory.noise, 1.0) / last_size) if last_size > 0.0 else 0.0
    top, bottom = batch.answer(last_E, memory.move_E)
    curvature = memory.curvature
    if signal > 0.0 and bottom > 0.0:
        curvature = max(curvature + NEW_SLOPE * signal * (top / bottom - curvature), LARGEST_FALL * curvature)
    sizes = math.sqrt(last_size * batch.size)
    agreement = batch.inner(last_E, batch.shortfall_E) / sizes if sizes > 0.0 else 0.0
    persistence = _blend(memory.persistence, agreement)
    chance = 2.0 * math.sqrt((1.0 - MEMORY) / (1.0 + MEMORY) / batch.degrees)
    beyond_chance = math.copysign(max(0.0, abs(persistence) - chance), persistence)
    step_size = 1.0 / curvature if jumps else memory.step_size * math.exp(beyond_chance)
    step_size = _bounded(min(step_size, LARGEST_STEP / curvature))
    return replace(memory, curvature=curvature, persistence=persistence, step_size=step_size)


def _jump(memory: Memory, batch: _Batch) -> tuple[Vector, Memory]:
    """A Newton step, less the share of noise in the shortfall; log(target / load) to second order."""
    signal = max(0.0, 1.0 - max(memory.noise, 1.0) / batch.size)
    shortfall_E = batch.shortfall_E
    move_E = signal * memory.step_size * 2.0 * shortfall_E / (2.0 - shortfall_E)
    offset_ME = _averaged(memory, move_E, _weight(memory, batch)) - move_E
    return move_E, replace(memory, offset_ME=offset_ME, noise=_noise(memory, batch))


def _tracking_move(memory: Memory, batch: _Batch, is_new: bool) -> tuple[Vector, Memory]:
    """The predicted move; averages and weights take this batch in, loads that only repeat teach no weights."""
    sighting_E, weight = memory.step_size * batch.shortfall_E, _weight(memory, batch)
    if is_new:
        memory = _taught(memory, batch, sighting_E)
    memory = replace(memory, num_averaged=memory.num_averaged + weight)
    offset_ME = _averaged(memory, sighting_E, weight)
    difference_DE = offset_ME[:-1] - offset_ME[1:]
    prior_DD = PRIOR_PRECISION * np.eye(NUM_AVERAGES - 1)
    weight_D = np.linalg.solve(memory.information_DD + prior_DD, memory.evidence_D)
    move_E = offset_ME[-1] + (weight_D[:, None] * difference_DE).sum(axis=0)
    size = math.sqrt(batch.inner(move_E, move_E))
    newton_size = memory.step_size * math.sqrt(max(batch.size, memory.noise))
    if size > newton_size:
        move_E = move_E * (newton_size / size)
    noise = _noise(memory, batch) if is_new else memory.noise
    return move_E, replace(memory, offset_ME=offset_ME - move_E, noise=noise)


def _taught(memory: Memory, batch: _Batch, sighting_E: Vector) -> Memory:
    """The normal equations of the weights after a sighting, in units of the step size and of the noise."""
    if memory.noise == 0.0:
        return memory
    offset_ME = memory.offset_ME
    difference_DE = (offset_ME[:-1] - offset_ME[1:]) / memory.step_size
    ahead_E = (sighting_E - offset_ME[-1]) / memory.step_size
    precision = batch.degrees / memory.noise
    information_DD = np.array([[batch.inner(one_E, other_E) for other_E in difference_DE] for one_E in difference_DE])
    evidence_D = np.array([batch.inner(one_E, ahead_E) for one_E in difference_DE])
    return replace(
        memory,
        information_DD=LEARNING_MEMORY * memory.information_DD + precision * information_DD,
        evidence_D=LEARNING_MEMORY * memory.evidence_D + precision * evidence_D,
    )


def _weight(memory: Memory, batch: _Batch) -> float:
    """What a batch counts for in the averages: its tokens, against the usual number; more where there is no noise."""
    return batch.tokens / memory.usual_tokens / min(1.0, max(memory.noise, LEAST_NOISE))


def _averaged(memory: Memory, sighting_E: Vector, weight: float) -> Vector:
    """The averages, after a sighting of this weight; before any calm batch they are the sighting itself."""
    if memory.num_averaged == 0.0:
        return np.tile(sighting_E, (NUM_AVERAGES, 1))
    share_M = 0.5 ** np.arange(NUM_AVERAGES)
    gain_M = share_M * weight / (1.0 - share_M + share_M * weight)
    gain_M = np.minimum(1.0, np.maximum(gain_M, weight / (memory.num_averaged + 1.0)))
    return np.asarray(memory.offset_ME + gain_M[:, None] * (sighting_E - memory.offset_ME))


def _noise(memory: Memory, batch: _Batch) -> float:
    """The level of noise after this batch, which counts at most as the largest that would not be a jump."""
    return _blend(memory.noise, min(batch.size, SURPRISE * max(memory.noise, 1.0)))


def _blend(old: float, new: float) -> float:
    return MEMORY * old + (1.0 - MEMORY) * new


def _bounded(step_size: float) -> float:
    """The step size within the range that can be computed with, should loads never answer."""
    return min(max(step_size, FIRST_STEP / STEP_RANGE), FIRST_STEP * STEP_RANGE)


def _sum(values_E: NDArray[Any]) -> float:
    """A sum that does not depend on the order of the experts, to the last bit."""
    return float(np.sort(values_E).sum())
