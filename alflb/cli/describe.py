"""Plain facts about a trace, a recorded run or a solution, as the command line prints them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb import duality
from alflb.exact import AssignmentSolution
from alflb.io import Row
from alflb.problem import AssignmentProblem
from alflb.traces import LoadTrace, RouterTrace


def describe_solution(problem: AssignmentProblem, solution: AssignmentSolution) -> Row:
    """Value, certificate and bias of an exact optimum, beside what unbalanced top-K would give."""
    greedy = duality.allocate(problem, np.zeros(problem.num_experts))
    greedy_affinity = duality.affinity(problem, greedy.experts_TK)
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
        "max_vio_bias_0": float(greedy.load_E.max() / problem.target_load - 1.0),
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
    finite = trace.scores_TE[np.isfinite(trace.scores_TE)]
    facts = {
        "num_tokens": problem.num_tokens,
        "num_experts": problem.num_experts,
        "dtype": str(trace.scores_TE.dtype),
        "top_k": trace.top_k,
        **{key: value for key, value in trace.metadata.items() if key not in {"top_k", "format", "version"}},
        "score_min": float(finite.min()),
        "score_median": float(np.median(finite)),
        "score_max": float(finite.max()),
        "forbidden_pairs": int(trace.scores_TE.size - finite.size),
        "score_range": problem.score_range,
        "boundary_ties": _boundary_ties(problem),
        **_balance_facts(problem, np.zeros(problem.num_experts), "bias_0"),
    }
    if trace.bias_E is not None:
        facts |= {"bias_spread": duality.spread(trace.bias_E), **_balance_facts(problem, trace.bias_E, "own_bias")}
    return facts


def _boundary_ties(problem: AssignmentProblem) -> int:
    """Tokens whose K-th and (K+1)-th scores are equal at bias 0: there the tie rule decides."""
    if problem.top_k == problem.num_experts:
        return 0
    cut = problem.num_experts - problem.top_k
    ordered = np.partition(problem.scores_TE, (cut - 1, cut), axis=1)
    return int(np.count_nonzero(ordered[:, cut] == ordered[:, cut - 1]))


def _balance_facts(problem: AssignmentProblem, bias_E: NDArray[np.float64], label: str) -> Row:
    load_E = duality.allocate(problem, bias_E).load_E
    return {
        f"max_vio_{label}": float(load_E.max() / problem.target_load - 1.0),
        f"load_cv_{label}": float(load_E.std() / load_E.mean()),
        f"unused_experts_{label}": int((load_E == 0).sum()),
        f"load_{label}": load_E.tolist(),
    }


def describe_loads(trace: LoadTrace) -> Row:
    """Balance of a recorded run: MaxVio of its batches and of the whole."""
    loads = trace.loads_NE
    relative = loads / loads.mean(axis=1, keepdims=True)
    total = loads.sum(axis=0)
    return {
        "num_batches": loads.shape[0],
        "num_experts": loads.shape[1],
        "top_k": trace.top_k,
        **{key: value for key, value in trace.metadata.items() if key not in {"top_k", "format", "version"}},
        "tokens_first_batch": int(loads[0].sum() // trace.top_k),
        "max_vio_batch_mean": float((relative.max(axis=1) - 1.0).mean()),
        "max_vio_batch_last": float(relative[-1].max() - 1.0),
        "max_vio_global": float(total.max() / total.mean() - 1.0),
        "unused_experts": int((total == 0).sum()),
    }
