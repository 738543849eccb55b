"""A rule without a step size: it finds the unit of the scores, then weighs averages of past loads by least squares.

A load says where the optimal bias is. With r the relative shortfall of each expert and kappa the curvature of its load
(d log load / d bias), bias + r / kappa is an unbiased, noisy sighting of the optimum, on every batch and wherever the
bias stands. Balancing is then the prediction of the next sighting from those before, which is a linear problem:

- *Search.* While kappa is unknown, steps double until the loads answer. The answer is the curvature.
- *Averages.* The sightings are averaged over the last batch, the last 2, 4, 8, 16, and over all of them.
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
"""Score units. Any number far below the scores' own scale does: the search takes one batch per factor of 2."""
STEP_RANGE = 2.0**80
"""Largest factor between the first step and any other."""
CALM_BATCHES = 8
"""Batches at the first step, whose noise is measured before steps double."""
ALARM_SLACK, ALARM = 1.0, 4.0
"""Standard deviations: what a CUSUM chart ignores per batch, and the sum at which it says that loads answer."""
SWINGS = 4
"""Successive reversals of the shortfall, none smaller than the one before, that are an answer and not chance: for two
experts and noise alone 1 / (5! 2^4), far less for more experts."""
MEMORY = 0.9
"""Share of the old value kept, per batch, by the running level of noise, of tokens per batch, and of persistence."""
SURPRISE = 4.0
"""A batch this many times noisier than usual is a jump of the optimum until the next batch says otherwise."""
NEW_SLOPE = 0.5
"""Weight of a new measurement of the curvature against all earlier ones, times its share of signal."""
LARGEST_FALL = 0.25
"""Smallest factor by which one measurement may change the curvature."""
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
    """What the rule keeps: ten vectors of E numbers, the normal equations of five weights and a handful of numbers."""

    load_E: NDArray[np.int64]
    shortfall_E: Vector
    move_E: Vector
    """Loads and relative shortfalls of the last batch, and how the bias moved after it."""
    missed_E: Vector
    """Tokens that an expert was expected to get since it last got one."""
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
    """Number, sum and sum of squares of the falls of the shortfall before the loads answered."""
    alarm: float = 0.0
    """The CUSUM chart of the falls, standard deviations."""
    swings: int = 0
    """Successive reversals of the shortfall, none smaller than the one before."""
    answer: tuple[float, float] = (0.0, 0.0)
    """Numerator and denominator of the curvature, while it is searched."""
    curvature: float = 0.0
    """Relative change of load per score unit; 0 while it is searched."""
    noise: float = 0.0
    """Usual squared size of a shortfall; 1 for independent tokens at the optimum."""
    persistence: float = 0.0
    """Running correlation of successive shortfalls."""
    num_averaged: float = 0.0
    """Batches in the longest average."""


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

    def answer(self, memory: Memory, expected_E: Vector) -> tuple[float, float]:
        """How far the shortfalls fell below `expected_E` along the last move, and the square of that move.

        Their ratio is the curvature. Loads answer in proportion to themselves: log load = curvature bias + constant.
        """
        mean_load_E = np.where(self.metric_E > 0.0, 0.5 * (memory.load_E + self.load_E), 0.0)
        total = _sum(mean_load_E)
        pull_E = memory.move_E - _sum(mean_load_E * memory.move_E) / total if total > 0.0 else memory.move_E
        return self.inner(pull_E, expected_E - self.shortfall_E), _sum(mean_load_E * pull_E * pull_E) / self.degrees


@RULES.register("self_tuning")
@dataclass(frozen=True)
class SelfTuning(Rule):
    """b += the move that least squares on past loads predicts to balance the next batch; nothing to set.

    With r = (target - load) / target and kappa the measured curvature, b + r / kappa is a sighting of the optimum.
    Steps double until loads answer, which gives kappa; then b = A_5 + a_0 (A_0 - A_1) + ... + a_4 (A_4 - A_5). The
    A_j are averages of the sightings over 1, 2, 4, 8, 16 and all batches, the a_j least squares on past loads.

    Notes
    -----
    Loads only; memory 10 E numbers. Exactly equivariant under a permutation of the experts, and under a common shift of
    the bias. Scores and `FIRST_STEP` times a power of two give the same loads, bit for bit; with `FIRST_STEP` fixed, as
    it must be (no rule can know the unit of scores from loads before it has moved a load), scores twice as large cost
    one more step of search. A batch without tokens changes nothing. Loads that repeat exactly teach nothing. An expert
    that gets no token however its bias rises is left out of what is learned, and its bias keeps rising. Nothing moves
    at exact balance from rest; while the averages differ the bias keeps moving with them.

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
    """Whether the shortfalls of this batch answer to the last moves; if so, the curvature and the level of noise.

    The share of the last shortfall that is gone, the fall, has some mean and spread from sampling alone. A CUSUM chart
    of the falls ends the search. So do swings that grow: with two experts the falls can spread so widely, one shortfall
    near 0 is enough, that the chart never sounds.
    """
    last_E = memory.shortfall_E
    size = batch.inner(last_E, last_E)
    if size == 0.0:
        return memory
    fall = 1.0 - batch.inner(last_E, batch.shortfall_E) / size
    count, total, squares = memory.calm
    usual = total / count if count else 0.0
    spread = math.sqrt(max((squares - count * usual**2) / max(count - 1.0, 1.0), 1.0 / (batch.degrees * size)))
    top, bottom = batch.answer(memory, (1.0 - usual) * last_E)
    top, bottom = MEMORY * memory.answer[0] + top, MEMORY * memory.answer[1] + bottom
    alarm = 0.0
    if count >= CALM_BATCHES:
        alarm = max(0.0, memory.alarm + (fall - usual) / spread - ALARM_SLACK)
    swings = memory.swings + 1 if fall > 1.0 and batch.size >= size else 0
    if (alarm > ALARM or swings == SWINGS) and top > 0.0:
        return replace(memory, curvature=top / bottom, step_size=bottom / top, noise=max(usual * size, 1.0))
    calm = memory.calm if alarm > 0.0 else (count + 1.0, total + fall, squares + fall**2)
    return replace(memory, calm=calm, alarm=alarm, swings=swings % SWINGS, answer=(top, bottom))


def _searching_move(memory: Memory, batch: _Batch) -> tuple[Vector, Memory]:
    """A proportional step, each twice as large as the one before once the noise is known."""
    step_size = _bounded(2.0 * memory.step_size) if memory.calm[0] >= CALM_BATCHES else memory.step_size
    return step_size * batch.shortfall_E, replace(memory, step_size=step_size)


def _measured(memory: Memory, batch: _Batch, jumps: bool) -> Memory:
    """Curvature and step size after one more answer.

    Batches whose shortfall stood out of the noise measure the curvature, and a jump takes it over as it is. Otherwise
    the step size grows while successive shortfalls agree and falls while they alternate: with the best linear
    prediction they do neither.
    """
    last_E = memory.shortfall_E
    last_size = batch.inner(last_E, last_E)
    signal = max(0.0, 1.0 - 2.0 * max(memory.noise, 1.0) / last_size) if last_size > 0.0 else 0.0
    top, bottom = batch.answer(memory, last_E)
    curvature = memory.curvature
    if signal > 0.0 and bottom > 0.0:
        curvature = max(curvature + NEW_SLOPE * signal * (top / bottom - curvature), LARGEST_FALL * curvature)
    sizes = math.sqrt(last_size * batch.size)
    agreement = batch.inner(last_E, batch.shortfall_E) / sizes if sizes > 0.0 else 0.0
    persistence = _blend(memory.persistence, agreement)
    chance = 2.0 * math.sqrt((1.0 - MEMORY) / (1.0 + MEMORY) / batch.degrees)
    beyond_chance = math.copysign(max(0.0, abs(persistence) - chance), persistence)
    step_size = _bounded(1.0 / curvature if jumps else memory.step_size * math.exp(beyond_chance))
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
    """What a batch counts for in the averages: its tokens, against the usual number."""
    return batch.tokens / memory.usual_tokens


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
