"""C19, MaxVio of one batch at p* (T independent tokens, equal targets, any K < E, any law of the scores).

With probability 1 - delta at least, MaxVio <= sqrt(a^2 + 2 (1 - K/E) l / L) + a, a = (1 - K/E) l / (3 L),
l = ln(E / delta).

The load of one expert is binomial at p*, with mean L and variance L (1 - K/E); Bernstein's inequality for each expert
and a union over experts. Proof in docs/theory/noise.md. So a batch above the bound is not explained by sampling: its
tokens depend on each other, or the bias is off.

Checked on populations of mixed laws at their optimal bias: how often sampled batches exceed the bound, against what
delta allows, at the false-alarm rate of the other statistical checks.

BROKEN repeats every token of a batch 16 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alflb import bounds
from alflb.kernels import get_kernels
from proofs_check._random import FALSE_ALARM, first_failure_or_worst, populations, sampled_batches
from proofs_check._verdict import Verdict

CLAIM = "C19"
TITLE = "MaxVio of a batch"
NUM_TOKENS, NUM_BATCHES, FAILURE = 64, 400, 0.05
COPIES = 16


def check(seed: int = 0, instances: int = 14) -> Verdict:
    """How often batches of `instances` populations exceed the bound."""
    return _compare(seed, instances, copies=1)


def BROKEN(seed: int = 0, instances: int = 14) -> Verdict:
    """The control: batches of four kinds of tokens, 16 of each."""
    return _compare(seed, instances, copies=COPIES)


def _compare(seed: int, instances: int, *, copies: int) -> Verdict:
    verdicts = []
    for words, population, _ in populations(seed, instances):
        batches = sampled_batches(words, NUM_TOKENS // copies, seed)
        repeated = (np.repeat(scores_TE, copies, axis=0) for scores_TE in batches)
        verdicts.append(_exceedances(repeated, population.optimum(), words, instances))
    return first_failure_or_worst(verdicts)


def _exceedances(
    batches: Iterator[NDArray[np.float64]], bias_E: NDArray[np.float64], words: dict[str, Any], instances: int
) -> Verdict:
    """Batches above the bound, and the number that chance reaches at the false-alarm rate where the bound holds."""
    top_k, num_experts = words["top_k"], len(bias_E)
    allowed = bounds.max_vio_bound(NUM_TOKENS, top_k, num_experts, failure=FAILURE)
    loads = get_kernels("reference").loads
    largest = [int(loads(scores_TE, bias_E, top_k)[0].max()) for scores_TE in islice(batches, NUM_BATCHES)]
    target = top_k * NUM_TOKENS / num_experts
    above = int(np.sum(np.array(largest) / target - 1 > allowed))
    limit = int(stats.binom.isf(FALSE_ALARM / instances, NUM_BATCHES, FAILURE))
    return Verdict(CLAIM, "statistical", 1, above, limit, above <= limit, words)
