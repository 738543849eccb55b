"""Megatron-Core's expert bias update and its routing, imported and run, against ours, bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from _extras import require
from _parity import EXACT_PICKS, assert_same_bits, load_sequences, our_biases, our_rule, our_step, tie_free
from hypothesis import given
from hypothesis import strategies as st

from alflb import route

torch = require("torch")
moe_utils = require("megatron.core.transformer.moe.moe_utils")
router = require("megatron.core.transformer.moe.router")
finalize = require("megatron.core.distributed.finalize_model_grads")
megatron_module = require("megatron.core.transformer.module")
parallel_state = require("megatron.core.parallel_state")


@pytest.fixture(scope="module", autouse=True)
def model_parallel(process_group):
    parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()


def their_step(load_E, bias_E, step_size):
    load = torch.tensor(load_E, dtype=torch.float32)  # the dtype of the router's local_tokens_per_expert
    return moe_utils.get_updated_expert_bias(load, torch.from_numpy(bias_E), step_size).numpy()


def their_biases(step_size, load_NE):
    bias_E, biases = np.zeros(load_NE.shape[1], dtype=np.float32), []
    for load_E in load_NE:
        bias_E = their_step(load_E, bias_E, step_size)
        biases.append(bias_E)
    return np.array(biases)


@given(load_NE=load_sequences(), step_size=st.sampled_from([1e-3, 1e-4, 0.1, 2.0**-10, 1.0]))
def test_the_update_is_our_sign_rule(load_NE, step_size):
    assert_same_bits(their_biases(step_size, load_NE), our_biases("sign", step_size, load_NE))


def test_ten_thousand_steps_stay_together():
    rng = np.random.default_rng(0)
    load_NE = rng.multinomial(4096 * 8, rng.dirichlet(np.full(64, 20.0)), size=10_000)
    ours = our_biases("sign", 1e-3, load_NE)
    assert_same_bits(their_biases(1e-3, load_NE), ours)
    assert np.abs(ours[-1]).max() > 1.0  # far enough for float32 to round


def test_an_expert_at_the_mean_does_not_move():
    assert their_step([3, 1, 2], np.zeros(3, np.float32), 0.5).tolist() == [-0.5, 0.5, 0.0]


def test_beyond_2_to_the_24_picks_float32_means_misjudge_balanced_experts():
    """Where bit equality ends: the sum of these loads, 6 m, lies between two float32, so their mean is not m."""
    m = 2**23 - 1
    load_E = np.array([m, m + 8, m - 8, m, m, m])
    assert load_E.sum() > EXACT_PICKS
    assert our_step(our_rule("sign", 1.0), np.zeros(6, np.float32), load_E).tolist() == [0.0, -1.0, 1.0, 0.0, 0.0, 0.0]
    theirs = their_step(load_E, np.zeros(6, np.float32), 1.0)
    assert 0.0 not in theirs
    assert theirs[1:3].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("micro_batches", "read_as", "direction"), [(9, 41_216, -1.0), (5, 40_704, 1.0)])
def test_bf16_counts_reverse_signs(micro_batches, read_as, direction):
    """40,840 tokens, below the mean of 40,960, as a bf16 counter reads them: in one of two cases as an overload."""
    mean, load = 40_960, 40_840
    counts = torch.zeros(2, dtype=torch.bfloat16)
    for part in np.array_split(np.arange(load), micro_batches):
        counts[0] += len(part)
    assert counts[0] == read_as
    counts[1] = 2 * mean - read_as
    assert moe_utils.get_updated_expert_bias(counts, torch.zeros(2), 1.0)[0] == direction
    exact = torch.tensor([load, 2 * mean - load], dtype=torch.float32)
    assert moe_utils.get_updated_expert_bias(exact, torch.zeros(2), 1.0)[0] == 1.0


@pytest.mark.parametrize(("half", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_in_0_16_1_the_counter_of_a_model_in_16_bits_is_in_16_bits(half, dtype):
    """Their wrapper casts every buffer. The router takes its bias back to float32, and not its counter."""

    class Router(torch.nn.Module):
        config = None
        _maintain_float32_expert_bias = router.TopKRouter._maintain_float32_expert_bias

        def __init__(self):
            super().__init__()
            self.register_buffer("local_tokens_per_expert", torch.zeros(4), persistent=False)
            self.register_buffer("expert_bias", torch.zeros(4))

    class Config:
        fp16, bf16, virtual_pipeline_model_parallel_size = half == "fp16", half == "bf16", None

    wrapped = Router()
    megatron_module.Float16Module(Config(), wrapped)
    wrapped._maintain_float32_expert_bias()
    assert wrapped.expert_bias.dtype == torch.float32
    assert wrapped.local_tokens_per_expert.dtype == dtype


def test_the_update_of_a_model_is_that_of_each_layer():
    """`_update_router_expert_bias`, which finalize_model_grads calls: all layers at once, biases changed in place."""

    class Router(torch.nn.Module):
        def __init__(self, load_E):
            super().__init__()
            self.register_buffer("local_tokens_per_expert", torch.tensor(load_E, dtype=torch.float32))
            self.register_buffer("expert_bias", torch.zeros(len(load_E)))

    class Config:
        moe_router_bias_update_rate = 1e-3

    rng = np.random.default_rng(1)
    load_LE = rng.multinomial(512, rng.dirichlet(np.ones(8)), size=3)
    model = torch.nn.Sequential(*map(Router, load_LE))
    finalize._update_router_expert_bias([model], Config())
    for router, load_E in zip(model, load_LE):
        assert_same_bits(router.expert_bias.numpy(), our_biases("sign", 1e-3, load_E[None])[0])


# -------------------------------------------------------------------------------------- which tokens are counted


def count(routing_map_TE, **options):
    """Their counter after one batch. It is compiled when called; here it runs as written."""
    counter = SimpleNamespace(enable_expert_bias=True, local_tokens_per_expert=torch.zeros(routing_map_TE.shape[1]))
    with torch.compiler.set_stance("force_eager"):
        router.TopKRouter._apply_expert_bias(counter, routing_map_TE, **options)
    return counter.local_tokens_per_expert.tolist()


def test_tokens_are_counted_where_gradients_are_taken():
    map_TE = torch.tensor([[True, False, True], [False, False, True]])
    assert count(map_TE) == [1.0, 0.0, 2.0]
    with torch.no_grad():  # evaluation, and the first of two forwards under their recomputation
        assert count(map_TE) == [0.0, 0.0, 0.0]


def test_in_0_16_1_a_padding_mask_breaks_the_count():
    """The mask, one entry a token, is applied along experts: an error, unless there are as many tokens as experts."""
    padding_T = torch.tensor([False, False, False, True])
    with pytest.raises(RuntimeError, match="must match the size"):
        count(torch.ones(4, 3, dtype=torch.bool), padding_mask=padding_T)
    assert count(torch.ones(4, 4, dtype=torch.bool), padding_mask=padding_T) == [4.0, 4.0, 4.0, 0.0]  # not 3, 3, 3, 3


def test_dropped_tokens_are_not_counted_which_can_reverse_a_sign():
    """With a capacity factor the counter sees what is left: its mean falls, and expert 1 passes for overloaded."""
    load_E = [100, 40, 30, 30]
    map_TE = torch.nn.functional.one_hot(torch.repeat_interleave(torch.arange(4), torch.tensor(load_E)), 4).bool()
    _, left_TE = moe_utils.apply_router_token_dropping(map_TE.float(), map_TE, 1, 1.0, "probs", False)
    assert count(left_TE) == [50.0, 40.0, 30.0, 30.0]
    zero = np.zeros(4, dtype=np.float32)
    assert their_step(count(left_TE), zero, 1.0).tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert our_step(our_rule("sign", 1.0), zero, np.array(load_E)).tolist() == [-1.0, 1.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------------------------ routing


def their_choice(logits_TE, bias_E, top_k, **groups):
    _, map_TE = moe_utils.topk_routing_with_score_function(
        logits_TE, top_k, score_function="sigmoid", expert_bias=torch.from_numpy(bias_E), **groups
    )
    return map_TE.numpy()


def as_map(experts_TK, num_experts):
    map_TE = np.zeros((len(experts_TK), num_experts), dtype=bool)
    np.put_along_axis(map_TE, experts_TK.astype(np.int64), True, axis=1)
    return map_TE


def random_batch(seed, num_tokens, num_experts):
    rng = np.random.default_rng(seed)
    logits_TE = torch.from_numpy(rng.standard_normal((num_tokens, num_experts)).astype(np.float32))
    return logits_TE, rng.normal(0, 0.1, num_experts).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 6), (256, 8)])
def test_top_k_is_ours(num_experts, top_k, seed):
    logits_TE, bias_E = random_batch(seed, 500, num_experts)
    scores_TE = torch.sigmoid(logits_TE).numpy()
    decided_T = tie_free(scores_TE, bias_E, top_k)
    assert decided_T.mean() > 0.99
    ours = as_map(route(scores_TE, bias_E, top_k).experts_TK, num_experts)
    np.testing.assert_array_equal(their_choice(logits_TE, bias_E, top_k)[decided_T], ours[decided_T])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("num_experts", "top_k", "n_group", "topk_group"), [(16, 4, 4, 2), (64, 6, 8, 3), (256, 8, 8, 4), (160, 7, 8, 3)]
)
def test_group_limited_routing_is_ours_where_its_group_score_is_the_top_two(
    num_experts, top_k, n_group, topk_group, seed
):
    assert top_k // topk_group == 2
    logits_TE, bias_E = random_batch(seed, 500, num_experts)
    scores_TE = torch.sigmoid(logits_TE).numpy()
    decided_T = tie_free(scores_TE, bias_E, top_k, n_group, topk_group)
    assert decided_T.mean() > 0.99
    ours = as_map(route(scores_TE, bias_E, top_k, n_group=n_group, topk_group=topk_group).experts_TK, num_experts)
    theirs = their_choice(logits_TE, bias_E, top_k, num_groups=n_group, group_topk=topk_group)
    np.testing.assert_array_equal(theirs[decided_T], ours[decided_T])


def test_group_scores_differ_elsewhere():
    """Their group score is the sum of the top K // group_topk, DeepSeek-V3's always of the top 2."""
    logits_TE, bias_E = random_batch(0, 2000, 64)
    scores_TE = torch.sigmoid(logits_TE).numpy()
    for top_k, topk_group, at_least in ((8, 2, 0.2), (4, 4, 0.05)):
        ours = as_map(route(scores_TE, bias_E, top_k, n_group=8, topk_group=topk_group).experts_TK, 64)
        theirs = their_choice(logits_TE, bias_E, top_k, num_groups=8, group_topk=topk_group)
        assert (ours != theirs).any(axis=1).mean() > at_least


def test_with_fewer_picks_than_groups_their_groups_ignore_the_scores():
    """K // group_topk = 0 experts make up a group's score, so all groups tie at 0: the best expert may be left out."""
    logits_TE, bias_E = random_batch(0, 2000, 64)
    best_TE = as_map(route(torch.sigmoid(logits_TE).numpy(), bias_E, 1).experts_TK, 64)
    theirs = their_choice(logits_TE, bias_E, 2, num_groups=8, group_topk=4)
    kept_groups_T = {tuple(np.unique(np.flatnonzero(row) // 8)) for row in theirs}
    assert len({group for kept in kept_groups_T for group in kept}) <= 4  # the same 4 of 8 groups for every token
    assert (best_TE & theirs).any(axis=1).mean() < 0.9


def test_closed_loop():
    """Their routing with their bias, counted and updated by them, against `route` and our rule, 100 steps."""
    rng = np.random.default_rng(5)
    offset_E = rng.normal(0, 0.5, 32)
    theirs, ours, rule = np.zeros(32, np.float32), np.zeros(32, np.float32), our_rule("sign", 1e-2)
    first_load_E = load_E = None
    for _ in range(100):
        logits_TE = torch.from_numpy((rng.standard_normal((256, 32)) + offset_E).astype(np.float32))
        their_load_E = their_choice(logits_TE, theirs, 4).sum(axis=0)
        theirs = their_step(their_load_E, theirs, 1e-2)
        load_E = route(torch.sigmoid(logits_TE).numpy(), ours, 4).load_E
        ours = our_step(rule, ours, load_E)
        np.testing.assert_array_equal(their_load_E, load_E)
        assert_same_bits(theirs, ours)
        first_load_E = load_E if first_load_E is None else first_load_E
    assert load_E.max() < first_load_E.max() / 1.5  # it balanced something
