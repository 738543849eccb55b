"""What MaxVio of a trained, frozen router is made of: ripple and drift of its bias, the text, dependent tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb import duality, metrics
from alflb.bounds import sampling_max_vio
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem, target_load_E
from alflb.rules import Observation, Rule
from experiments.ladder.along import mean_correlation, overdispersion, prices

Array = NDArray[np.float64]
Scores = NDArray[np.float32]

SNAPSHOTS = 10
"""Biases of the frozen continuation whose MaxVio is averaged."""


class Texts(NamedTuple):
    """Scores of one frozen router on several texts, each of shape (sequences, tokens, E)."""

    held_out_STE: Scores
    """The evaluation's: consecutive text of the works that are not in training."""
    held_out_mixed_STE: Scores
    """Sequences from all over these works."""
    training_STE: Scores
    """Consecutive text of the works that are in training."""
    training_mixed_STE: Scores
    """Sequences from all over these works."""
    practice_STE: Scores
    """Other sequences from all over these works, to move or fit a bias on."""


class Parts(NamedTuple):
    """MaxVio of one frozen router with several biases on several texts of equal length."""

    held_out: float
    """The final bias on the evaluation's text: MaxVio_global."""
    held_out_mixed: float
    training: float
    training_mixed: float
    """The final bias on the other texts; from here on the text is that of `training_mixed`."""
    frozen: float
    """The same rule goes on while the weights stand still: mean over its biases. Drift is gone."""
    averaged: float
    """The mean of these biases. Ripple is gone."""
    priced: float
    """The optimal bias of as many tokens of the same kind."""
    floor: float
    """What sampling alone leaves of independent tokens."""


def parts(texts: Texts, bias_E: Array, rule: Rule | None, top_k: int, batch: int, seed: int = 0) -> Parts:
    """Take MaxVio apart: one thing after the other is taken away.

    Parameters
    ----------
    texts : Texts
    bias_E : array, shape (E,)
        The bias at the end of training.
    rule : Rule, optional
        A load-only rule to go on with; without one the bias stays.
    top_k : int
    batch : int
        Sequences per balancing step.
    seed : int
        Chooses the batches.
    """

    def value(scores_STE: Scores, bias_E: Array) -> float:
        return float(metrics.max_vio(loads(scores_STE, bias_E, top_k).sum(axis=0)))

    path_NE = bias_E[None]
    if rule is not None:
        path_NE = continued(texts.practice_STE, bias_E, rule, top_k, batch, seed)
    mixed_STE = texts.training_mixed_STE
    practice = AssignmentProblem(_flat(texts.practice_STE), top_k)
    return Parts(
        held_out=value(texts.held_out_STE, bias_E),
        held_out_mixed=value(texts.held_out_mixed_STE, bias_E),
        training=value(texts.training_STE, bias_E),
        training_mixed=value(mixed_STE, bias_E),
        frozen=float(np.mean([value(mixed_STE, p) for p in path_NE[:: max(1, len(path_NE) // SNAPSHOTS)]])),
        averaged=value(mixed_STE, path_NE.mean(axis=0)),
        priced=value(mixed_STE, solve_exact(practice).bias_E),
        floor=sampling_max_vio(mixed_STE.shape[0] * mixed_STE.shape[1], top_k, mixed_STE.shape[2]),
    )


def loads(scores_STE: Scores, bias_E: Array, top_k: int) -> NDArray[np.int64]:
    """Tokens per expert of each sequence, shape (sequences, E)."""
    return np.array([duality.allocate(AssignmentProblem(part, top_k), bias_E).load_E for part in scores_STE])


def continued(
    scores_STE: Scores, bias_E: Array, rule: Rule, top_k: int, batch: int, seed: int, num_steps: int = 400
) -> Array:
    """Biases of the second half of a run that goes on from `bias_E` while the scores' law stands still, shape (N, E).

    Each batch is drawn anew from the sequences.
    """
    rng = np.random.default_rng(seed)
    num_sequences, num_tokens, num_experts = scores_STE.shape
    target_E = target_load_E(batch * num_tokens, num_experts, top_k)
    state = rule.init(num_experts)
    path = []
    for step in range(1, num_steps + 1):
        chosen = rng.choice(num_sequences, batch, replace=False)
        load_E = loads(scores_STE[chosen], bias_E, top_k).sum(axis=0)
        bias_E, state = rule.step(bias_E, Observation(step, target_E, load_E=load_E), state)
        path.append(bias_E)
    return np.array(path[num_steps // 2 :])


class ComputationBatch(NamedTuple):
    """MaxVio of the tokens that are computed together."""

    tokens: int
    max_vio: float
    """Mean over batches."""
    floor: float
    """Of independent tokens and the best fixed bias."""


def computation_batches(scores_STE: Scores, bias_E: Array, top_k: int, seed: int = 0) -> list[ComputationBatch]:
    """MaxVio against the number of sequences computed together, in powers of two (Wang et al., figure 5).

    Sequences are put into batches at random.

    Examples
    --------
    >>> scores_STE = np.random.default_rng(0).random((4, 16, 8), dtype=np.float32)
    >>> [batch.tokens for batch in computation_batches(scores_STE, np.zeros(8), 2)]
    [16, 32, 64]
    """
    load_SE = np.random.default_rng(seed).permutation(loads(scores_STE, bias_E, top_k))
    num_sequences, num_tokens, num_experts = scores_STE.shape
    found = []
    for power in range(int(math.log2(num_sequences)) + 1):
        together = 2**power
        count = num_sequences // together
        batch_NE = load_SE[: count * together].reshape(count, together, num_experts).sum(axis=1)
        tokens = together * num_tokens
        value = float(np.mean(metrics.max_vio(batch_NE)))
        found.append(ComputationBatch(tokens, value, sampling_max_vio(tokens, top_k, num_experts)))
    return found


class Composition(NamedTuple):
    """What one batch's price depends on: how the batch is put together."""

    drawn: str
    bias_correlation: float | None
    """Mean correlation of the final bias with the price of one batch; None for a bias that never moved."""
    price_correlation: float
    """The same of the price of the whole text."""
    overdispersion: float
    """Variance of a load over that of independent tokens."""


def compositions(
    scores_STE: Scores, bias_E: Array, top_k: int, batch: int, num_batches: int = 40, seed: int = 0
) -> list[Composition]:
    """Batches of single tokens, of sequences from all over the text, and of consecutive sequences.

    `scores_STE` is in the order of the text.
    """
    rng = np.random.default_rng(seed)
    num_sequences, num_tokens, _ = scores_STE.shape
    tokens_TE = _flat(scores_STE)
    whole_E = solve_exact(AssignmentProblem(tokens_TE, top_k)).bias_E

    def sequences(first_or_all: NDArray[np.int64]) -> Scores:
        return _flat(scores_STE[first_or_all])

    def tokens() -> Scores:
        return tokens_TE[rng.choice(len(tokens_TE), batch * num_tokens, replace=False)]

    drawn: dict[str, Callable[[], Scores]] = {
        "tokens from all over the text": tokens,
        "sequences from all over the text": lambda: sequences(rng.choice(num_sequences, batch, replace=False)),
        "neighboring sequences": lambda: sequences(rng.integers(num_sequences - batch + 1) + np.arange(batch)),
    }
    found = []
    for kind, draw in drawn.items():
        batch_NTE = np.stack([draw() for _ in range(num_batches)])
        price_NE = prices(batch_NTE, top_k)
        load_NE = loads(batch_NTE, bias_E, top_k)
        found.append(
            Composition(
                kind,
                mean_correlation(np.broadcast_to(bias_E, price_NE.shape), price_NE) if np.ptp(bias_E) else None,
                mean_correlation(np.broadcast_to(whole_E, price_NE.shape), price_NE),
                overdispersion(load_NE, batch * num_tokens, top_k),
            )
        )
    return found


def _flat(scores_STE: Scores) -> Scores:
    """Tokens of all sequences, shape (T, E)."""
    return np.ascontiguousarray(scores_STE.reshape(-1, scores_STE.shape[2]))
