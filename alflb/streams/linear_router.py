"""Scores of a linear router on Gaussian token embeddings: correlated experts, as in a real model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_count, check_number
from alflb.registry import unknown_name
from alflb.streams.base import STREAMS, SyntheticStream, seeded


@STREAMS.register("linear_router")
@dataclass(frozen=True)
class LinearRouter(SyntheticStream):
    """gamma_i = a score function of (z_i W + offsets), z_i Gaussian or a mixture of Gaussians.

    Parameters
    ----------
    hidden_dim : int
        Width of z. W is (hidden_dim, E) with variance 1 / hidden_dim, so a logit has unit variance for z ~ N(0, I).
    num_topics : int
        1: z ~ N(0, I). More: each token picks a topic at random and z ~ N(topic mean, I).
    topic_scale : float
        Standard deviation of the topic means' coordinates; matters when num_topics > 1.
    score_function : {"sigmoid", "softmax", "sqrtsoftplus"}
        How logits become scores: DeepSeek-V3 uses sigmoid, older routers softmax, DeepSeek-V4 sqrt(log(1 + exp(x))),
        which has no upper end.

    Examples
    --------
    >>> stream = LinearRouter(num_tokens=4, num_experts=3, score_function="softmax")
    >>> next(stream.batches(seed=0)).sum(axis=1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    scores_are_gates: ClassVar[bool] = True

    hidden_dim: int = 64
    num_topics: int = 1
    topic_scale: float = 1.0
    score_function: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.hidden_dim, "hidden_dim")
        check_count(self.num_topics, "num_topics")
        check_number(self.topic_scale, "topic_scale")
        if self.score_function not in SCORE_FUNCTIONS:
            raise unknown_name("score_function", self.score_function, SCORE_FUNCTIONS)

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end."""
        check_count(seed, "seed", minimum=0)
        router, topic_means = self._router(), self._topic_means()
        z_TH = np.empty((self.num_tokens, self.hidden_dim))
        for t in itertools.count(1):
            rng = seeded(self.name, seed, t)
            rng.standard_normal(out=z_TH)
            if self.num_topics > 1:
                z_TH += topic_means[rng.integers(self.num_topics, size=self.num_tokens)]
            yield router(z_TH)

    def _router(self) -> Callable[[NDArray[np.float64]], FloatArray]:
        """Scores of embeddings, by weights that are made once."""
        weights_HE, offset_E = self._weights(), self.offset_E()
        gates = SCORE_FUNCTIONS[self.score_function]

        def route(z_TH: NDArray[np.float64]) -> FloatArray:
            logits_TE = z_TH @ weights_HE
            logits_TE += offset_E
            return gates(logits_TE)

        return route

    def _weights(self) -> NDArray[np.float64]:
        weights = self.population_rng(1).standard_normal((self.hidden_dim, self.num_experts))
        return weights / np.sqrt(self.hidden_dim)

    def _topic_means(self) -> NDArray[np.float64]:
        return self.topic_scale * self.population_rng(2).standard_normal((self.num_topics, self.hidden_dim))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow for large negative logits."""
    gates = 0.5 * logits
    np.tanh(gates, out=gates)
    gates += 1.0
    gates *= 0.5
    return gates


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalized: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return normalized


def _sqrtsoftplus(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.logaddexp(0.0, logits))


SCORE_FUNCTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "sigmoid": sigmoid,
    "softmax": _softmax,
    "sqrtsoftplus": _sqrtsoftplus,
}
"""What routers make of their logits, by name."""
