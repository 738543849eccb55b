"""C3, the preference rule.

If token i drops expert k and picks up j in one step from p to p_next, then delta_j > delta_k: for every such pair,
any K, any step, in exact arithmetic with one fixed tie order. Hence

- sign rule: tokens move only from overloaded experts to balanced or underloaded ones, or from balanced to underloaded;
- one eps for all experts (proportional rule): only towards strictly lower load.

Our generalization (any K, ties) of the preference argument in Han & Zhong, arXiv 2512.03915. In floating point two
equal steps can round differently, so the check is in integers.

BROKEN breaks ties to the lowest expert before the step and to the highest after it: then tokens move between experts
with equal steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb import duality
from alflb.rules import make_rule
from proofs_check._instances import Instance, draw
from proofs_check._smt import Model, Proof
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C3"
TITLE = "preference rule"


def check(seed: int = 0, instances: int = 1500) -> Verdict:
    """Moves against the preference, over a free step, a sign step and a step with one eps: none is allowed."""
    return worst_of(CLAIM, "equality", draw(seed, instances), lambda one: (forbidden_moves(one, flip=False), 0))


def BROKEN(seed: int = 0, instances: int = 1500) -> Verdict:
    """The control: with the tie order reversed after the step, some token must move without a preference."""
    return worst_of(CLAIM, "equality", draw(seed, instances), lambda one: (forbidden_moves(one, flip=True), 0))


def forbidden_moves(one: Instance, *, flip: bool) -> int:
    """Triples (token, dropped expert, new expert) whose step or load difference has the wrong sign."""
    free_E = one.next_bias - one.bias
    load_E = duality.allocate(one.problem, one.bias).load_E
    run = one.run(1, rule=make_rule("sign", one.step_size))
    sign_E = run.bias_NE[1] - run.bias_NE[0]
    common_E = -one.step_size * load_E  # eps (L - A) up to the gauge
    count = 0
    for delta_E, must_exceed_E in (
        (free_E, free_E),
        (sign_E, sign_E),
        (sign_E, -np.sign(one.excess(load_E))),
        (common_E, -load_E),
    ):
        dropped_TE, gained_TE = _changes(one, delta_E, flip=flip)
        wrong_EE = must_exceed_E[:, None] >= must_exceed_E[None, :]  # (k, j) with no strict preference for j
        count += int(np.einsum("ik,ij,kj->", dropped_TE, gained_TE, wrong_EE.astype(np.int64)))
    return count


def _changes(one: Instance, delta_E: NDArray[Any], *, flip: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    before_TE = _chosen(one, one.bias, flip=False)
    after_TE = _chosen(one, one.bias + delta_E, flip=flip)
    return (before_TE & ~after_TE).astype(np.int64), (after_TE & ~before_TE).astype(np.int64)


def _chosen(one: Instance, bias_E: NDArray[Any], *, flip: bool) -> NDArray[np.bool_]:
    """Which experts each token holds; `flip` gives ties to the highest index."""
    order = slice(None, None, -1 if flip else 1)
    problem = Instance.of(one.scores[:, order], one.top_k).problem
    mask_TE = np.zeros(one.scores.shape, dtype=bool)
    np.put_along_axis(mask_TE, duality.allocate(problem, bias_E[order]).experts_TK, True, axis=1)
    return mask_TE[:, order]


def negation(model: Model, *, broken: bool) -> object:
    """Some token drops k and picks up j with delta_j <= delta_k."""
    before, after = model.step(flip_ties_after=broken)
    return model.any(
        *(
            model.all(
                before[i][k],
                model.no(after[i][k]),
                model.no(before[i][j]),
                after[i][j],
                model.delta[j] <= model.delta[k],
            )
            for i in range(model.num_tokens)
            for k in range(model.num_experts)
            for j in range(model.num_experts)
            if j != k
        )
    )


PROOF = Proof(
    negation, sizes=lambda size: [(t, e, k) for t, e in size.shapes() for k in range(1, e + 1)], control=(1, 2, 1)
)
