r"""Our own exact solver, for many tokens and few experts (T >> E).

The dual D(p) has only E unknowns, and near the optimal bias only tokens whose K-th and (K+1)-th choices are close
can still change hands. So the scores are read a few times, and all hard work is done on a small remainder:

1. **Guess** (`guess`): damped quantile steps on a sample give a bias, with a window around each expert's bias
   that should hold the optimal one.
2. **Screen** (`undecided`): one pass over all scores keeps the entries the windows leave undecided.
3. **Descend** (`settle.quantile_descent`): exact quantile steps on those, now in integers.
4. **Reroute** (`settle.reroute_closest`): shortest augmenting paths on the graph of E experts move the last
   misplaced tokens, and fix the prices.
5. **Prove** (`proof`): one pass over all T x E pairs proves the result, in integers and without tolerance.
6. **Refine** (`refine`): where scores have digits below the quantum of those integers, the few rows that the digits
   can still turn are settled again on finer grids, until no digit is left.

Stages 1 to 4 only ever propose; if the proof fails, windows are widened and 2 to 5 repeated (`solver`), at
last without screening, when 3 and 4 solve the whole problem by themselves. Stage 4 ending without a path then
proves that no balanced assignment exists.

`alflb.exact.units` says how scores and loads become integers, `ranges` what happens to tiny and huge scores, `sources`
how arrays and batches look alike, `groups` how tokens with identical scores become one row; compiled loops are in
`row_kernels` (over rows of scores) and `flow_kernels` (over undecided entries).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from alflb import duality
from alflb.exact.batched import BatchedProblem
from alflb.exact.certificate import proves_optimum
from alflb.exact.results import AssignmentSolution, Residuals, SolverError
from alflb.exact.screening.groups import GroupedSource, grouped
from alflb.exact.screening.proof import Assignment
from alflb.exact.screening.solver import find_optimum
from alflb.exact.screening.sources import ArraySource, BatchSource, ScoreSource
from alflb.problem import AssignmentProblem, check_bias, check_target, check_top_k


def solve(problem: AssignmentProblem | BatchedProblem, bias_init: ArrayLike | None) -> AssignmentSolution:
    """The certified optimum; batches get no plan, which could be larger than memory."""
    if isinstance(problem, AssignmentProblem):
        source: ScoreSource = grouped(ArraySource(problem))
    else:
        source = BatchSource(problem)
    num_tokens, num_experts = source.num_tokens, source.num_experts
    top_k = check_top_k(problem.top_k, num_experts)
    target_E = check_target(problem.target_E, num_tokens, num_experts, top_k)
    bias_E = np.zeros(num_experts) if bias_init is None else check_bias(bias_init, num_experts, name="bias_init")
    in_memory = isinstance(problem, AssignmentProblem)

    with np.errstate(over="ignore", invalid="ignore"):
        found = find_optimum(source, top_k, target_E, bias_E, keep_experts=in_memory)
        centered_E = duality.center(found.bias_E).astype(np.float64)
    if not (proves_optimum(found.value - found.value, 0.0) and np.isfinite(centered_E).all()):
        raise SolverError(
            f"the optimum or its bias is too large for float64: scores are as large as {source.largest:g} in size; "
            "use -inf to forbid a pair, or divide all scores by a power of two"
        )
    assignment = found.assignment
    if isinstance(source, GroupedSource):
        assignment = source.spread(assignment, found.unit)
    load_E = assignment.load_E / found.unit
    return AssignmentSolution(
        method="screen",
        lower_bound=found.value,
        upper_bound=found.value,
        bias_E=centered_E,
        load_E=load_E,
        plan=_plan(assignment, num_experts, found.unit) if in_memory else None,
        residuals=Residuals(0.0, float(np.abs(load_E - target_E).max()), 0.0, 0.0, 0.0),
        forbidden_below=found.forbidden_below,
    )


def _plan(assignment: Assignment, num_experts: int, unit: int) -> csr_array:
    """The plan as a sparse matrix; one byte per entry when it is 0/1."""
    num_tokens, top_k = assignment.experts_TK.shape
    shape = (num_tokens, num_experts)
    split_token_S, split_expert_S, split_units_S = assignment.split_S3.T
    if len(split_token_S) == 0:
        ones = np.ones(num_tokens * top_k, dtype=np.int8)
        starts = np.arange(0, num_tokens * top_k + 1, top_k, dtype=np.int32 if ones.size < 2**31 else np.int64)
        return csr_array((ones, assignment.experts_TK.reshape(-1), starts), shape=shape)
    whole_T = np.ones(num_tokens, dtype=np.bool_)
    whole_T[split_token_S] = False
    tokens = np.concatenate([np.repeat(np.flatnonzero(whole_T), top_k), split_token_S])
    experts = np.concatenate([assignment.experts_TK[whole_T].reshape(-1), split_expert_S])
    shares = np.concatenate([np.ones(len(tokens) - len(split_token_S)), split_units_S / unit])
    return csr_array((shares, (tokens, experts)), shape=shape)
