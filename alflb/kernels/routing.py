"""Routing one batch: biased top-K for arrays from anywhere, with the expert groups that some models use."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from alflb.kernels import Allocation, get_kernels
from alflb.problem import check_bias, check_count, check_scores, check_top_k


def route(
    scores: ArrayLike,
    bias: ArrayLike,
    top_k: int,
    *,
    n_group: int = 1,
    topk_group: int | None = None,
    backend: str = "numba",
) -> Allocation:
    r"""Choose top_k experts for each token by scores + bias, as the routers of DeepSeek-V3 and its kin do.

    Without groups this is :math:`x_i = \operatorname{topK}(\gamma_i + p)`. With groups the experts
    0..E/G - 1 form group 0, the next E/G group 1, and so on; a token's score of a group is the sum of its two
    largest :math:`\gamma_{ik} + p_k` in it, and the token chooses from its `topk_group` best groups only.

    Parameters
    ----------
    scores : array_like of float32 or float64, shape (T, E)
        Token-expert affinities. -inf forbids a pair.
    bias : array_like, shape (E,)
        Added to the scores, in their dtype and units; an overloaded expert's bias should fall.
    top_k : int
        Experts for each token, 1 <= K <= E.
    n_group : int
        Groups G of equal size, a divisor of E. 1 means no groups.
    topk_group : int, optional
        Groups a token may use, 1 <= topk_group <= n_group; together they must hold K experts. Default: all of them.
    backend : str
        Kernels to use (`alflb.kernels.backend_names`); all give the same integers.

    Returns
    -------
    Allocation
        experts_TK (int32, ascending in each row), load_E (int64, tokens for each expert), and dual_sum, the sum of
        all picked biased scores (float64).

    Raises
    ------
    ValueError
        On input outside these bounds, and if a token is left with fewer than K experts that are not forbidden.

    Notes
    -----
    Ties go to the lowest index, of groups and of experts. ``torch.topk`` promises no order among ties, so on tied
    scores a model may choose other experts of the same score.

    **Groups are outside the theory of this package.** A token's choice then no longer maximizes
    :math:`\sum_k (\gamma_{ik} + p_k) x_{ik}` over its K-subsets, nor over the K-subsets within `topk_group` groups
    (two good experts open a group, the other picks may be poor). So the bias is no longer the dual variable of the
    plain assignment problem: `dual_sum` - <target, p> does not bound its optimum, and of the claims C0..C10 none
    that speaks of D(p) or of the preference between two experts applies. That is why `simulate` and the rules that
    see scores know no groups. Rules that see loads only run unchanged (see the example).

    References
    ----------
    DeepSeek-V3, arXiv 2412.19437, section 2.1.2 (node-limited routing); names of the arguments as in the
    configuration of its implementation in Hugging Face transformers. Comparison with production code: docs/parity.md.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.75, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]])
    >>> route(scores_TE, np.zeros(8), 4).experts_TK.tolist()
    [[0, 1, 4, 5]]
    >>> route(scores_TE, np.zeros(8), 4, n_group=2, topk_group=1).experts_TK.tolist()
    [[0, 1, 2, 3]]

    A rule on group-limited loads:

    >>> import alflb
    >>> rule, bias_E = alflb.make_rule("sign", schedule=0.25), np.zeros(8)
    >>> load_E = route(scores_TE, bias_E, 4, n_group=2, topk_group=1).load_E
    >>> seen = alflb.rules.Observation(1, np.full(8, 0.5), load_E=load_E)
    >>> bias_E, _ = rule.step(bias_E, seen, rule.init(8))
    >>> route(scores_TE, bias_E, 4, n_group=2, topk_group=1).experts_TK.tolist()
    [[4, 5, 6, 7]]
    """
    scores_TE = check_scores(scores)
    num_experts = scores_TE.shape[1]
    bias_E = check_bias(bias, num_experts)
    top_k = check_top_k(top_k, num_experts)
    n_group, topk_group = _check_groups(n_group, topk_group, num_experts, top_k)
    kernels = get_kernels(backend)
    if topk_group == n_group:
        allocation = kernels.allocate(scores_TE, bias_E, top_k)
    else:
        allocation = kernels.allocate_in_groups(scores_TE, bias_E, top_k, n_group, topk_group)
    if allocation.dual_sum == -np.inf:
        picked_TK = np.take_along_axis(scores_TE, allocation.experts_TK, axis=1)
        token = int(np.argmax(np.isneginf(picked_TK).any(axis=1)))
        raise ValueError(
            f"scores leaves token {token} fewer than top_k = {top_k} experts that are not forbidden (-inf); "
            "forbid fewer pairs, or lower top_k"
        )
    return allocation


def _check_groups(n_group: object, topk_group: object, num_experts: int, top_k: int) -> tuple[int, int]:
    """Both as ints such that the groups are of equal size and those a token may use hold its top_k experts."""
    groups = check_count(n_group, "n_group")
    if num_experts % groups:
        raise ValueError(f"n_group is {groups} but there are {num_experts} experts; choose a divisor of {num_experts}")
    kept = groups if topk_group is None else check_count(topk_group, "topk_group")
    if kept > groups:
        raise ValueError(f"topk_group is {kept} but n_group is {groups}; choose 1 <= topk_group <= {groups}")
    size = num_experts // groups
    if kept < groups and size < 2:
        raise ValueError(
            f"n_group is {groups}, one expert in each group; a group's score is the sum of its two best experts, "
            f"so choose n_group <= {num_experts // 2}"
        )
    if kept * size < top_k:
        raise ValueError(
            f"topk_group is {kept}, and {kept} groups of {size} experts do not hold top_k = {top_k} experts; "
            f"choose topk_group >= {-(-top_k // size)}"
        )
    return groups, kept
