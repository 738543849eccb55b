"""Plain facts about a trace, a recorded run or a solution, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb import duality, metrics
from alflb.exact import AssignmentSolution
from alflb.io import Row
from alflb.problem import AssignmentProblem, FloatArray
from alflb.traces import LoadTrace, RouterTrace

_CHUNK = 2**20
"""Scores looked at together: what is computed of them takes little memory beside the scores themselves."""


def describe_solution(problem: AssignmentProblem, solution: AssignmentSolution) -> Row:
    """Value, certificate and bias of an exact optimum, beside what unbalanced top-K would give."""
    greedy_load_E, greedy_affinity = _top_k(problem, np.zeros(problem.num_experts))
    return {
        "num_tokens": problem.num_tokens,
        "num_experts": problem.num_experts,
        "top_k": problem.top_k,
        "target_load": problem.target_load,
        "method": solution.method,
        "value": solution.value,
        "lower_bound": solution.lower_bound,
        "upper_bound": solution.upper_bound,
        "gap": solution.gap,
        "integral": solution.experts_TK is not None,
        "residual_picks": solution.residuals.picks,
        "residual_load": solution.residuals.load,
        "residual_slackness": solution.residuals.slackness,
        **({"forbidden_below": solution.forbidden_below} if np.isfinite(solution.forbidden_below) else {}),
        "unbalanced_topk_affinity": greedy_affinity,
        "max_vio_bias_0": float(metrics.max_vio(greedy_load_E)),
        "bias_spread": duality.spread(solution.bias_E),
        "bias_E": solution.bias_E.tolist(),
    }


def describe_trace(trace: RouterTrace) -> Row:
    """Shapes, metadata, score quantiles, ties at the top-K boundary, and loads at bias 0 and at the trace's bias.

    Examples
    --------
    >>> from alflb import load_router_trace
    >>> round(describe_trace(load_router_trace())["max_vio_bias_0"], 3)
    2.954
    """
    problem = AssignmentProblem(trace.scores_TE, trace.top_k)
    facts = {
        "num_tokens": problem.num_tokens,
        "num_experts": problem.num_experts,
        "dtype": str(trace.scores_TE.dtype),
        "top_k": trace.top_k,
        "documents": None if trace.document_starts_D is None else len(trace.document_starts_D),
        **_score_facts(trace.scores_TE),
        "score_range": problem.score_range,
        "boundary_ties": sum(_boundary_ties(part, trace.top_k) for part in _parts(trace.scores_TE)),
    }
    if trace.is_grouped:  # loads of plain top-K are not what this router does
        return _with_metadata(facts, trace.metadata)
    facts |= _balance_facts(problem, np.zeros(problem.num_experts), "bias_0")
    if trace.bias_E is not None:
        facts |= {"bias_spread": duality.spread(trace.bias_E), **_balance_facts(problem, trace.bias_E, "own_bias")}
    return _with_metadata(facts, trace.metadata)


def _with_metadata(facts: Row, metadata: Mapping[str, Any]) -> Row:
    """Facts with what the file says of itself; what was measured keeps its name, a claim about it gets another."""
    claims = {key: value for key, value in metadata.items() if key not in {"top_k", "format", "version"}}
    return {**facts, **{f"metadata_{key}" if key in facts else key: value for key, value in claims.items()}}


def _parts(scores_TE: FloatArray) -> Iterator[FloatArray]:
    """The scores of consecutive tokens, a few at a time."""
    step = max(1, _CHUNK // scores_TE.shape[1])
    return (scores_TE[start : start + step] for start in range(0, len(scores_TE), step))


def _top_k(problem: AssignmentProblem, bias_E: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Loads and affinity of top-K at a bias."""
    load_E, affinity = np.zeros(problem.num_experts, dtype=np.int64), 0.0
    for scores_TE in _parts(problem.scores_TE):
        part = AssignmentProblem(scores_TE, problem.top_k)
        allocation = duality.allocate(part, bias_E)
        load_E += allocation.load_E
        affinity += duality.affinity(part, allocation.experts_TK)
    return load_E, affinity


def _score_facts(scores_TE: FloatArray) -> Row:
    """Extremes and median of the scores that are not -inf, and how many are."""
    low, high = _extremes(scores_TE)
    forbidden = sum(int(np.count_nonzero(part == -np.inf)) for part in _parts(scores_TE))
    return {
        "score_min": low,
        "score_median": _median(scores_TE, low, high, scores_TE.size - forbidden),
        "score_max": high,
        "forbidden_pairs": forbidden,
    }


def _extremes(scores_TE: FloatArray) -> tuple[float, float]:
    low = min(float(part.min(where=part > -np.inf, initial=np.inf)) for part in _parts(scores_TE))
    return low, float(scores_TE.max())


def _median(scores_TE: FloatArray, low: float, high: float, count: int) -> float:
    """Median of the `count` scores in [low, high]; a histogram says where it lies, so that few scores are sorted."""
    ranks = np.array([(count - 1) // 2, count // 2])
    edges = np.array([low, high])
    counted = histogram(scores_TE, bins=4096)
    if counted is not None:
        first, last = np.searchsorted(np.cumsum(counted[0]), ranks, side="right")
        edges = counted[1][[max(first - 1, 0), min(last + 2, 4096)]]
    near_low, near_high = edges.astype(scores_TE.dtype)  # one bin more on both sides: edges are rounded
    below = sum(int(np.count_nonzero((part > -np.inf) & (part < near_low))) for part in _parts(scores_TE))
    near = np.concatenate([part[(part >= near_low) & (part <= near_high)] for part in _parts(scores_TE)])
    near.partition(ranks - below)
    return float(near[ranks - below].astype(np.float64).mean())


def histogram(scores_TE: FloatArray, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Counts and edges of the scores that are not -inf; None if their range is zero or no finite number."""
    low, high = _extremes(scores_TE)
    if not 0 < high - low < np.inf:
        return None
    counts, edges = np.histogram(scores_TE, bins=bins, range=(low, high))
    return counts, edges


def _boundary_ties(scores_TE: FloatArray, top_k: int) -> int:
    """Tokens whose K-th and (K+1)-th scores are equal at bias 0: there the tie rule decides."""
    num_experts = scores_TE.shape[1]
    if top_k == num_experts:
        return 0
    cut = num_experts - top_k
    ordered = np.partition(scores_TE, (cut - 1, cut), axis=1)
    return int(np.count_nonzero(ordered[:, cut] == ordered[:, cut - 1]))


def _balance_facts(problem: AssignmentProblem, bias_E: NDArray[np.float64], label: str) -> Row:
    load_E, _ = _top_k(problem, bias_E)
    return {
        f"max_vio_{label}": float(metrics.max_vio(load_E)),
        f"load_cv_{label}": float(metrics.load_cv(load_E)),
        f"unused_experts_{label}": int((load_E == 0).sum()),
        f"load_{label}": load_E.tolist(),
    }


def describe_loads(trace: LoadTrace) -> Row:
    """Balance of a recorded run: MaxVio of its batches and of the whole."""
    loads = trace.loads_NE
    max_vio_N = metrics.max_vio(loads)
    facts = {
        "num_batches": loads.shape[0],
        "num_experts": loads.shape[1],
        "top_k": trace.top_k,
        "tokens_first_batch": int(loads[0].sum() // trace.top_k),
        "max_vio_batch_mean": float(max_vio_N.mean()),
        "max_vio_batch_last": float(max_vio_N[-1]),
        "max_vio_global": float(metrics.max_vio(loads.sum(axis=0))),
        "unused_experts": int((loads.sum(axis=0) == 0).sum()),
    }
    return _with_metadata(facts, trace.metadata)
