r"""Our own exact solver, for many tokens and few experts (T >> E).

The dual D(p) has only E unknowns, and near the optimal bias only tokens whose K-th and (K+1)-th choices are close
can still change hands. So the scores are read a few times, and all hard work is done on a small remainder:

1. **Guess** (`guess`): damped quantile steps on a sample give a bias, with a window around each expert's bias
   that should hold the optimal one.
2. **Screen** (`undecided`): one pass over all scores keeps the entries the windows leave undecided.
3. **Descend** (`settle.quantile_descent`): exact quantile steps on those, now in integers.
4. **Reroute** (`settle.reroute_closest`): shortest augmenting paths on the graph of E experts move the last
   misplaced tokens, and fix the prices.
5. **Certify** (`certificate`): one pass over all T x E pairs proves the result, in integers and without tolerance.

Stages 1 to 4 only ever propose; if the certificate fails, windows are widened and 2 to 5 repeated (`solver`), at
last without screening, when 3 and 4 solve the whole problem by themselves. Stage 4 ending without a path then
proves that no balanced assignment exists.

`units` says how scores and loads become integers, `sources` how arrays and batches look alike; compiled loops are
in `row_kernels` (over rows of scores, with `vectors`) and `flow_kernels` (over undecided entries).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from alflb import duality
from alflb.exact.batched import BatchedProblem
from alflb.exact.results import AssignmentSolution, Quantisation, Residuals
from alflb.exact.screening.certificate import Certificate
from alflb.exact.screening.solver import find_optimum
from alflb.exact.screening.sources import ArraySource, BatchSource, ScoreSource
from alflb.problem import AssignmentProblem, check_bias, check_target, check_top_k


def solve(problem: AssignmentProblem | BatchedProblem, bias_init: ArrayLike | None) -> AssignmentSolution:
    """The certified optimum; batches get no plan, which could be larger than memory."""
    if isinstance(problem, AssignmentProblem):
        source: ScoreSource = ArraySource(problem)
    else:
        source = BatchSource(problem)
    num_tokens, num_experts = source.num_tokens, source.num_experts
    top_k = check_top_k(problem.top_k, num_experts)
    target_E = check_target(problem.target_E, num_tokens, num_experts, top_k)
    bias_E = np.zeros(num_experts) if bias_init is None else check_bias(bias_init, num_experts, name="bias_init")
    in_memory = isinstance(problem, AssignmentProblem)

    certificate, price_E, grid, unit = find_optimum(source, top_k, target_E, bias_E, keep_experts=in_memory)
    bound = 0.0 if certificate.is_lossless else num_tokens * top_k * grid.quantum
    load_E = certificate.load_E / unit
    return AssignmentSolution(
        method="screen",
        value=certificate.value,
        bias_E=duality.center(grid.bias(price_E)).astype(np.float64),
        load_E=load_E,
        plan=_plan(certificate, num_experts, unit) if in_memory else None,
        dual_value=certificate.value + bound,
        residuals=Residuals(
            picks=0.0,
            load=float(np.abs(load_E - target_E).max()),
            bounds=0.0,
            integrality=0.0,
            slackness=0.0 if certificate.is_lossless else grid.quantum,
        ),
        quantisation=Quantisation(grid.quantum, certificate.is_lossless, 0.5 * bound),
    )


def _plan(certificate: Certificate, num_experts: int, unit: int) -> csr_array:
    """The plan as a sparse matrix; one byte an entry when it is 0/1."""
    num_tokens, top_k = certificate.experts_TK.shape
    shape = (num_tokens, num_experts)
    split_token_S, split_expert_S, split_units_S = certificate.split_S3.T
    if len(split_token_S) == 0:
        ones = np.ones(num_tokens * top_k, dtype=np.int8)
        starts = np.arange(0, num_tokens * top_k + 1, top_k, dtype=np.int32 if ones.size < 2**31 else np.int64)
        return csr_array((ones, certificate.experts_TK.reshape(-1), starts), shape=shape)
    whole_T = np.ones(num_tokens, dtype=np.bool_)
    whole_T[split_token_S] = False
    tokens = np.concatenate([np.repeat(np.flatnonzero(whole_T), top_k), split_token_S])
    experts = np.concatenate([certificate.experts_TK[whole_T].reshape(-1), split_expert_S])
    shares = np.concatenate([np.ones(len(tokens) - len(split_token_S)), split_units_S / unit])
    return csr_array((shares, (tokens, experts)), shape=shape)
