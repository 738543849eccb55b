"""Min-cost flow by OR-Tools on integer-scaled scores: exact for the scaled scores, then certified on the real ones.

A token sends K units to the experts, an expert receives its target; when targets are fractional, all flows are
counted in the fraction's unit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb.exact.reference._duals import bias_from_plan
from alflb.exact.reference._scaling import SPAN, normalized_scores
from alflb.exact.results import SolverError
from alflb.exact.units import target_units
from alflb.problem import AssignmentProblem

_COST_BITS = 61
"""OR-Tools multiplies costs by the number of nodes and needs the product to stay inside int64."""


def solve(problem: AssignmentProblem) -> tuple[csr_array, NDArray[np.float64]]:
    """Optimal plan from the flow, and a bias from shortest paths (the flow solver reports no duals)."""
    try:
        from ortools.graph.python.min_cost_flow import SimpleMinCostFlow
    except ImportError as error:
        raise ValueError(
            f"method 'mincostflow' needs OR-Tools ({error}); install it with: pip install 'alflb[flow]'"
        ) from None
    target_units_E, unit = target_units(problem.target_E, problem.num_tokens, problem.top_k)
    if unit > problem.num_experts:
        raise ValueError("method 'mincostflow' needs targets that are multiples of 1 / E; use method 'highs'")
    gamma_TE, allowed_TE, _ = normalized_scores(problem)
    token_N, expert_N = np.nonzero(allowed_TE)
    num_nodes = problem.num_tokens + problem.num_experts
    per_unit = 2.0 ** (_COST_BITS - math.ceil(math.log2(num_nodes + 1)) - 1) / SPAN
    flow = SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        token_N, problem.num_tokens + expert_N, np.full(len(token_N), unit), _whole(-per_unit * gamma_TE[allowed_TE])
    )
    supply_T = np.full(problem.num_tokens, problem.top_k * unit)
    flow.set_nodes_supplies(np.arange(num_nodes), np.concatenate([supply_T, -target_units_E]))
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise SolverError(
            f"min-cost flow ended with status {status.name}; with -inf scores a balanced assignment may not exist"
        )
    plan = csr_array((flow.flows(arcs) / unit, (token_N, expert_N)), shape=gamma_TE.shape)
    plan.eliminate_zeros()
    return plan, bias_from_plan(problem, plan)


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)
