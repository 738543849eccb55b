"""Plain facts about a trace, a recorded run or a solution, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb import duality, metrics
from alflb.exact import AssignmentSolution
from alflb.io import Row
from alflb.problem import AssignmentProblem
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
        **_score_facts(problem),
        "score_range": problem.score_range,
        "boundary_ties": sum(map(_boundary_ties, _parts(problem))),
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


def _parts(problem: AssignmentProblem) -> Iterator[AssignmentProblem]:
    """The problem cut into consecutive tokens."""
    step = max(1, _CHUNK // problem.num_experts)
    for start in range(0, problem.num_tokens, step):
        yield AssignmentProblem(problem.scores_TE[start : start + step], problem.top_k)


def _top_k(problem: AssignmentProblem, bias_E: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Loads and affinity of top-K at a bias."""
    load_E, affinity = np.zeros(problem.num_experts, dtype=np.int64), 0.0
    for part in _parts(problem):
        allocation = duality.allocate(part, bias_E)
        load_E += allocation.load_E
        affinity += duality.affinity(part, allocation.experts_TK)
    return load_E, affinity


def _score_facts(problem: AssignmentProblem) -> Row:
    """Extremes and median of the scores that are not -inf."""
    low, high, forbidden = np.inf, -np.inf, 0
    for part in _parts(problem):
        allowed_TE = part.scores_TE > -np.inf
        low = min(low, float(part.scores_TE.min(where=allowed_TE, initial=np.inf)))
        high = max(high, float(part.scores_TE.max()))
        forbidden += part.scores_TE.size - int(np.count_nonzero(allowed_TE))
    first = forbidden + (problem.scores_TE.size - forbidden - 1) // 2
    last = forbidden + (problem.scores_TE.size - forbidden) // 2
    return {
        "score_min": low,
        "score_median": float(np.mean([_ranked(problem, rank, low, high) for rank in {first, last}])),
        "score_max": high,
        "forbidden_pairs": forbidden,
    }


def _ranked(problem: AssignmentProblem, rank: int, low: float, high: float) -> float:
    """The score of a rank from below, known to lie in [low, high]: halves the interval until few scores are left."""
    while True:
        below = sum(int(np.count_nonzero(part.scores_TE < low)) for part in _parts(problem))
        inside = sum(int(np.count_nonzero(part.scores_TE <= high)) for part in _parts(problem)) - below
        if inside <= _CHUNK or low == high:
            break
        middle = low / 2 + high / 2
        at_most = sum(int(np.count_nonzero(part.scores_TE <= middle)) for part in _parts(problem))
        if at_most > rank:
            high = max(
                float(part.scores_TE.max(where=part.scores_TE <= middle, initial=-np.inf)) for part in _parts(problem)
            )
        else:
            low = min(
                float(part.scores_TE.min(where=part.scores_TE > middle, initial=np.inf)) for part in _parts(problem)
            )
    if low == high:
        return low
    left = np.concatenate(
        [part.scores_TE[(part.scores_TE >= low) & (part.scores_TE <= high)] for part in _parts(problem)]
    )
    return float(np.partition(left, rank - below)[rank - below])


def histogram(trace: RouterTrace, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Counts and edges of the scores that are not -inf; None if they span more than a float can express."""
    facts = _score_facts(AssignmentProblem(trace.scores_TE, trace.top_k))
    low, high = facts["score_min"], facts["score_max"]
    if not np.isfinite(high - low):
        return None
    return np.histogram(trace.scores_TE, bins=bins, range=(low, high))


def _boundary_ties(problem: AssignmentProblem) -> int:
    """Tokens whose K-th and (K+1)-th scores are equal at bias 0: there the tie rule decides."""
    if problem.top_k == problem.num_experts:
        return 0
    cut = problem.num_experts - problem.top_k
    ordered = np.partition(problem.scores_TE, (cut - 1, cut), axis=1)
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
