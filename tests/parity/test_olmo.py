"""OLMo-core's two routers (`bias_gamma`), forward and update, against ours, bit for bit."""

import numpy as np
import pytest
from _extras import require
from _parity import assert_same_bits, load_sequences, olmo_module, our_biases, our_rule, our_step, tie_free
from hypothesis import given
from hypothesis import strategies as st

from alflb import route

torch = require("torch")
first, second = olmo_module("moe.router"), olmo_module("moe.v2.router")

ROUTERS = {"MoELinearRouter": first.MoELinearRouter, "MoERouterV2": second.MoERouterV2}
every_router = pytest.mark.parametrize("name", ROUTERS)


def make_router(name, num_experts, step_size, top_k=1, **options):
    """A router in training whose logits are its input: d_model = num_experts, and the weights are the identity."""
    sigmoid = first.MoERouterGatingFunction.sigmoid
    router = ROUTERS[name](
        d_model=num_experts,
        num_experts=num_experts,
        top_k=top_k,
        bias_gamma=step_size,
        gating_function=sigmoid,
        dtype=torch.float32,
        **options,
    )
    router.weight.data.copy_(torch.eye(num_experts).flatten())
    return router.train()


def forward(name, router, logits_TE):
    """Chosen experts (T, K); the router counts them."""
    x = torch.from_numpy(logits_TE)[None]
    outputs = router(x) if name == "MoELinearRouter" else router(x, False)
    experts_TK, load_E = outputs[1][0], outputs[2]
    if name == "MoERouterV2":  # counts where it adds the auxiliary losses
        router.compute_aux_loss(*outputs[3])
    return np.sort(experts_TK.numpy(), axis=1), load_E.numpy()


def scores_of(name, logits_TE):
    """Their scores, by their formula: only the first router adds 1e-7."""
    scores = torch.sigmoid(torch.from_numpy(logits_TE))
    return (scores + 1e-7 if name == "MoELinearRouter" else scores).numpy()


def their_biases(name, step_size, load_NE):
    router, biases = make_router(name, load_NE.shape[1], step_size), []
    for load_E in load_NE:
        router.score_bias_batch_size_per_expert += torch.from_numpy(load_E)
        router.post_batch()
        biases.append(router.score_bias.numpy().copy())
    return np.array(biases)


@every_router
@given(load_NE=load_sequences(), step_size=st.sampled_from([1e-3, 1e-4, 0.1, 2.0**-10, 1.0]))
def test_the_update_is_our_sign_rule(name, load_NE, step_size):
    assert_same_bits(their_biases(name, step_size, load_NE), our_biases("sign", step_size, load_NE))


@every_router
def test_ten_thousand_steps_stay_together(name):
    rng = np.random.default_rng(0)
    load_NE = rng.multinomial(4096 * 8, rng.dirichlet(np.full(64, 20.0)), size=10_000)
    assert_same_bits(their_biases(name, 1e-4, load_NE), our_biases("sign", 1e-4, load_NE))


@every_router
def test_closed_loop(name):
    """Their forward, counts and update against `route` and our rule, two micro-batches a step, 100 steps."""
    rng = np.random.default_rng(3)
    offset_E = rng.normal(0, 0.5, 32)
    router, rule, bias_E = make_router(name, 32, 1e-2, top_k=4), our_rule("sign", 1e-2), np.zeros(32, np.float32)
    loads = []
    for _ in range(100):
        load_E = np.zeros(32, dtype=np.int64)
        for _ in range(2):
            logits_TE = (rng.standard_normal((128, 32)) + offset_E).astype(np.float32)
            ours = route(scores_of(name, logits_TE), bias_E, 4)
            their_experts_TK, their_load_E = forward(name, router, logits_TE)
            np.testing.assert_array_equal(their_experts_TK, ours.experts_TK)
            np.testing.assert_array_equal(their_load_E, ours.load_E)
            load_E += ours.load_E
        router.post_batch()
        bias_E = our_step(rule, bias_E, load_E)
        assert_same_bits(router.score_bias.numpy(), bias_E)
        loads.append(load_E.max())
    assert loads[-1] < loads[0] / 1.5  # it balanced something


@every_router
def test_evaluation_is_not_counted_and_moves_nothing(name):
    router = make_router(name, 8, 1.0)
    logits_TE = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    with torch.no_grad():
        forward(name, router, logits_TE)
    forward(name, router.eval(), logits_TE)
    assert not router.score_bias_batch_size_per_expert.any()
    router.score_bias_batch_size_per_expert += torch.arange(8)
    router.post_batch()
    assert not router.score_bias.any()


@pytest.mark.parametrize(("then", "times"), [(torch.exp, 2), (lambda weights: weights, 1)])
def test_recomputation_counts_tokens_twice_if_it_gets_that_far(then, times):
    """Activation checkpointing runs the forward again, up to the last tensor that backward needs.

    In a model experts follow the router, and every token is counted twice. Alone, the router is not run to its end.
    All counts doubled have the same signs.
    """
    router, once = make_router("MoELinearRouter", 8, 1.0, top_k=2), make_router("MoELinearRouter", 8, 1.0, top_k=2)
    logits_TE = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    x = torch.from_numpy(logits_TE)[None].requires_grad_()
    torch.utils.checkpoint.checkpoint(lambda x: then(router(x)[0]), x, use_reentrant=False).sum().backward()
    forward("MoELinearRouter", once, logits_TE)
    counted = once.score_bias_batch_size_per_expert
    assert torch.equal(router.score_bias_batch_size_per_expert, times * counted)
    router.post_batch()
    once.post_batch()
    assert torch.equal(router.score_bias, once.score_bias)


def test_a_bias_cast_to_bf16_stops_at_a_half():
    """The bias is a buffer, so `.to(torch.bfloat16)` casts it; the counts are hidden from `.to` and stay float32."""
    router = make_router("MoELinearRouter", 2, 1e-3).to(torch.bfloat16)
    assert router.score_bias_batch_size_per_expert.dtype == torch.float32
    for _ in range(1000):
        router.score_bias_batch_size_per_expert += torch.tensor([1, 3])
        router.post_batch()
    assert router.score_bias.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("num_experts", "top_k", "n_group", "topk_group"), [(16, 2, 4, 2), (64, 6, 8, 3), (256, 8, 8, 4)]
)
def test_group_limited_routing_of_the_second_router_is_ours(num_experts, top_k, n_group, topk_group, seed):
    rng = np.random.default_rng(seed)
    router = make_router("MoERouterV2", num_experts, 1e-3, top_k, n_group=n_group, topk_group=topk_group)
    bias_E = rng.normal(0, 0.1, num_experts).astype(np.float32)
    router.score_bias.copy_(torch.from_numpy(bias_E))
    logits_TE = rng.standard_normal((500, num_experts)).astype(np.float32)
    scores_TE = scores_of("MoERouterV2", logits_TE)
    decided_T = tie_free(scores_TE, bias_E, top_k, n_group, topk_group)
    assert decided_T.mean() > 0.99
    ours = route(scores_TE, bias_E, top_k, n_group=n_group, topk_group=topk_group).experts_TK
    theirs, _ = forward("MoERouterV2", router, logits_TE)
    np.testing.assert_array_equal(theirs[decided_T], ours[decided_T])
