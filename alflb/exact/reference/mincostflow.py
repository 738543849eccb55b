"""Min-cost flow by OR-Tools on integer-scaled scores: exact for the scaled scores, then certified on the real ones.

A token sends K units to the experts, an expert receives its target; when targets are fractional, all flows are
counted in the fraction's unit. OR-Tools runs in a process of its own: its wheel and highspy's carry different
versions of one shared library, and whichever is imported second fails.
"""

from __future__ import annotations

import importlib.util
import io
import math
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb.exact.reference._duals import bias_from_plan
from alflb.exact.reference._scaling import normalised_scores
from alflb.exact.results import SolverError
from alflb.problem import AssignmentProblem

_COST_BITS = 61
"""OR-Tools multiplies costs by the number of nodes and needs the product to stay inside int64."""


def solve(problem: AssignmentProblem) -> tuple[csr_array, NDArray[np.float64]]:
    """Optimal plan from the flow, and a bias from shortest paths (the flow solver reports no duals)."""
    if importlib.util.find_spec("ortools") is None:
        raise ValueError("method 'mincostflow' needs OR-Tools; install it with: pip install 'alflb[flow]'")
    unit = flow_unit(problem)
    if unit is None:
        raise ValueError("method 'mincostflow' needs targets that are multiples of 1 / E; use method 'highs'")
    gamma, allowed, _ = normalised_scores(problem)
    tokens, experts = np.nonzero(allowed)
    num_nodes = problem.num_tokens + problem.num_experts
    costs = np.rint(-gamma[allowed] * 2.0 ** (_COST_BITS - math.ceil(math.log2(num_nodes + 1)) - 1)).astype(np.int64)
    supplies_T = np.full(problem.num_tokens, problem.top_k * unit, dtype=np.int64)
    supplies = np.concatenate([supplies_T, -np.rint(problem.target_E * unit).astype(np.int64)])
    flows = _solve_apart(tokens, problem.num_tokens + experts, np.full(len(costs), unit), costs, supplies)
    plan = csr_array((flows / unit, (tokens, experts)), shape=gamma.shape)
    plan.eliminate_zeros()
    return plan, bias_from_plan(problem, plan)


def flow_unit(problem: AssignmentProblem) -> int | None:
    """Units per pick that make every target a whole number: 1 for whole targets, at most E; None if none does."""
    for unit in (1, problem.num_experts // math.gcd(problem.num_experts, problem.top_k * problem.num_tokens)):
        units_E = problem.target_E * unit
        if np.all(np.abs(units_E - np.rint(units_E)) <= 1e-9 * np.maximum(1.0, units_E)):
            return unit
    return None


def _solve_apart(*arrays: NDArray[np.integer]) -> NDArray[np.int64]:
    """Run `alflb.exact.reference._flow_worker` in a child process: arrays in, flows out."""
    message = io.BytesIO()
    for array in arrays:
        np.save(message, array.astype(np.int64), allow_pickle=False)
    child = subprocess.run(
        [sys.executable, "-m", "alflb.exact.reference._flow_worker"], input=message.getbuffer(), capture_output=True
    )
    if child.returncode != 0:
        words = child.stderr.decode(errors="replace").strip().splitlines()
        raise SolverError(f"min-cost flow failed: {words[-1] if words else f'exit status {child.returncode}'}")
    flows: NDArray[np.int64] = np.load(io.BytesIO(child.stdout), allow_pickle=False)
    return flows
