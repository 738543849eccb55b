"""The loop of claims that `alflb.simulate` has no argument for: unequal targets, and loads that arrive late."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.kernels import get_kernels
from alflb.problem import FloatArray
from alflb.rules import Observation, Rule


def run_rule(
    batches: Iterable[FloatArray],
    rule: Rule,
    target_E: NDArray[np.float64],
    *,
    top_k: int,
    num_steps: int,
    bias_E: ArrayLike | None = None,
    delay: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Biases p_0 ... p_N and loads of p_0 ... p_(N-1); a step sees the load of `delay` steps ago, none before that."""
    loads = get_kernels("reference").loads
    biases = [np.zeros(len(target_E)) if bias_E is None else np.asarray(bias_E, dtype=np.float64)]
    load_NE: list[NDArray[np.int64]] = []
    state = rule.init(len(target_E))
    for step, scores_TE in enumerate(islice(batches, num_steps)):
        load_NE.append(loads(scores_TE, biases[-1], top_k)[0])
        bias_next_E = biases[-1]
        if step >= delay:
            seen = Observation(step - delay + 1, target_E, load_E=load_NE[step - delay])
            bias_next_E, state = rule.step(biases[-1], seen, state)
        biases.append(bias_next_E)
    return np.array(biases), np.array(load_NE)
