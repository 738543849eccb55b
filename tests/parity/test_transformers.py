"""The router of Hugging Face transformers' DeepSeek-V3, group-limited and plain, against `route`."""

import numpy as np
import pytest
from _extras import require
from _parity import tie_free

from alflb import route

torch = require("torch")
deepseek = require("transformers.models.deepseek_v3.modeling_deepseek_v3")

SHAPES = [  # E, K, n_group, topk_group
    (256, 8, 8, 4),  # DeepSeek-V3
    (64, 6, 1, 1),  # one group: no limit
    (64, 6, 8, 8),  # every group
    (16, 4, 4, 2),
    (12, 3, 6, 2),
    (160, 6, 8, 3),
    (16, 1, 8, 1),
]


def their_router(num_experts, top_k, n_group, topk_group, bias_E):
    """The router with logits as its input: hidden_size = num_experts, and the weights are the identity."""
    config = deepseek.DeepseekV3Config(
        hidden_size=num_experts,
        n_routed_experts=num_experts,
        num_experts_per_tok=top_k,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
    )
    router = deepseek.DeepseekV3TopkRouter(config)
    router.weight.data.copy_(torch.eye(num_experts))
    router.e_score_correction_bias.copy_(torch.from_numpy(bias_E))
    return router


@torch.no_grad()
def compare(logits_TE, bias_E, shape):
    """Both choices (T, K) in ascending order, the scores, and the weights they give to their choice, in its order."""
    logits, weights, experts = their_router(*shape, bias_E)(torch.from_numpy(logits_TE))
    np.testing.assert_array_equal(logits.numpy(), logits_TE)  # the identity changed no bit
    scores_TE = logits.sigmoid().numpy()
    _, top_k, n_group, topk_group = shape
    ours = route(scores_TE, bias_E, top_k, n_group=n_group, topk_group=topk_group).experts_TK
    order = experts.numpy().argsort(axis=1)
    return np.sort(experts.numpy(), axis=1), ours, scores_TE, np.take_along_axis(weights.numpy(), order, axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_choice_is_ours_where_no_tie_decides(shape, spread, seed):
    rng = np.random.default_rng(seed)
    bias_E = rng.normal(0, spread, shape[0]).astype(np.float32)
    logits_TE = rng.standard_normal((500, shape[0])).astype(np.float32)
    theirs, ours, scores_TE, weights = compare(logits_TE, bias_E, shape)
    decided_T = tie_free(scores_TE, bias_E, *shape[1:])
    assert decided_T.mean() > 0.98
    np.testing.assert_array_equal(theirs[decided_T], ours[decided_T])
    # The weights are the unbiased scores.
    np.testing.assert_array_equal(weights[decided_T], np.take_along_axis(scores_TE, ours, axis=1)[decided_T])


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] == shape[3]])
def test_among_ties_plain_choices_differ_in_index_only(shape):
    """`torch.topk` promises no order among equals; the chosen biased scores are the same numbers."""
    rng = np.random.default_rng(0)
    logits_TE = (rng.integers(-4, 5, (500, shape[0])) / 4).astype(np.float32)
    bias_E = np.zeros(shape[0], dtype=np.float32)
    theirs, ours, scores_TE, _ = compare(logits_TE, bias_E, shape)
    values = [np.sort(np.take_along_axis(scores_TE, chosen, axis=1), axis=1) for chosen in (theirs, ours)]
    np.testing.assert_array_equal(*values)
    assert (theirs != ours).any()  # ties were there, and resolved otherwise


def test_ties_between_groups_may_change_the_chosen_scores():
    """Two groups with equal top-2 sums and different members: which is kept decides what can be chosen."""
    rng = np.random.default_rng(0)
    shape = (12, 3, 6, 2)
    logits_TE = (rng.integers(-4, 5, (2000, 12)) / 4).astype(np.float32)
    bias_E = np.zeros(12, dtype=np.float32)
    theirs, ours, scores_TE, _ = compare(logits_TE, bias_E, shape)
    sums = [np.take_along_axis(scores_TE.astype(np.float64), chosen, axis=1).sum(axis=1) for chosen in (theirs, ours)]
    assert (sums[0] != sums[1]).any()
    decided_T = tie_free(scores_TE, bias_E, *shape[1:])
    assert 0 < decided_T.sum() < len(decided_T)
    np.testing.assert_array_equal(theirs[decided_T], ours[decided_T])


def test_a_group_of_one_expert_is_refused_by_both():
    bias_E = np.zeros(8, dtype=np.float32)
    with pytest.raises(RuntimeError, match="out of range"):
        their_router(8, 2, 8, 4, bias_E)(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="one expert in each group"):
        route(np.zeros((1, 8)), bias_E, 2, n_group=8, topk_group=4)


def test_too_few_experts_in_the_kept_groups_are_refused_by_us_and_filled_from_outside_by_them():
    """K = 3 from one group of two: their third pick has the score -inf, outside the group they kept."""
    bias_E = np.zeros(4, dtype=np.float32)
    logits_TE = np.array([[2.0, 1.0, 0.0, 0.0]], dtype=np.float32)
    experts = their_router(4, 3, 2, 1, bias_E)(torch.from_numpy(logits_TE))[2]
    assert set(experts[0].tolist()) & {2, 3}
    with pytest.raises(ValueError, match="topk_group is 1, and 1 groups of 2 experts do not hold top_k = 3"):
        route(logits_TE, bias_E, 3, n_group=2, topk_group=1)


def test_a_router_cast_to_bf16_loses_its_biases():
    """`from_pretrained` keeps e_score_correction_bias in float32; `.to(torch.bfloat16)` does not."""
    bias_E = (5.0 + np.random.default_rng(0).normal(0, 0.02, 256)).astype(np.float32)
    router = their_router(256, 8, 8, 4, bias_E)
    assert "e_score_correction_bias" in deepseek.DeepseekV3PreTrainedModel._keep_in_fp32_modules_strict
    kept = router.e_score_correction_bias.unique().numel()
    cast = router.to(torch.bfloat16).e_score_correction_bias.unique().numel()
    assert kept > 250
    assert cast < 10
