"""torchtitan's MoE layer, and its load balancing hook as its own optimizer container runs it, against ours.

The experts of the layer multiply in bf16; what routes and counts is in float32.
"""

import numpy as np
import pytest
from _extras import require
from _parity import assert_same_bits, load_sequences, our_biases, our_rule, our_step, tie_free
from hypothesis import given
from hypothesis import strategies as st

import alflb

torch = require("torch")
optimizer = require("torchtitan.components.optimizer")
moe = require("torchtitan.models.common.moe")
linear = require("torchtitan.models.common.linear")
dispatcher = require("torchtitan.models.common.token_dispatcher")
distributed = require("torchtitan.distributed")
wrapper = require("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")

pytestmark = [
    pytest.mark.usefixtures("process_group"),
    # their router asks for float32 autocast, which the CPU has not, and goes on in float32
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported"),
]


def their_moe(num_experts, step_size=1e-3, *, top_k=1, dim=1, n_group=None, topk_group=None):
    """An MoE layer of theirs."""
    router = moe.TokenChoiceTopKRouter.Config(
        num_experts=num_experts,
        top_k=top_k,
        gate=linear.Linear.Config(in_features=dim, out_features=num_experts),
        num_expert_groups=n_group,
        num_limited_groups=topk_group,
    )
    experts = moe.RoutedExperts.Config(
        inner_experts=moe.GroupedExperts.Config(dim=dim, hidden_dim=16, num_experts=num_experts),
        token_dispatcher=dispatcher.LocalTokenDispatcher.Config(num_experts=num_experts, top_k=top_k),
    )
    config = moe.MoE.Config(
        num_experts=num_experts, load_balance_coeff=step_size, router=router, routed_experts=experts
    )
    layer = config.build()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return layer


def model_with_layers(num_experts, step_size, num_layers):
    """A model as the hook expects it: `layers`, a ModuleDict of blocks with `moe_enabled` and `moe`."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleDict()
    for layer in range(num_layers):
        block = torch.nn.Module()
        block.moe_enabled, block.moe = True, their_moe(num_experts, step_size)
        model.layers[str(layer)] = block
    return model


class Hooked:
    """A model of their MoE layers with given counts, stepped by their optimizer container."""

    def __init__(self, num_experts, step_size, *, num_layers=1, dtype=torch.float32):
        self.model = model_with_layers(num_experts, step_size, num_layers).to(dtype)
        adamw = optimizer.ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 1e-3})
        config = optimizer.OptimizersContainer.Config(param_groups=[adamw], implementation="for-loop")
        self.container = optimizer.OptimizersContainer(config, model_parts=[self.model])
        one_process = distributed.ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, world_size=1)
        optimizer.register_moe_load_balancing_hook(self.container, [self.model], one_process)
        self.layers = [block.moe for block in self.model.layers.values()]

    def step(self, *load_LE):
        for layer, load_E in zip(self.layers, load_LE):
            layer.tokens_per_expert_E.add_(torch.from_numpy(np.asarray(load_E)))  # as their MoE.forward counts
        self.container.step()
        return self.layers[0].expert_bias_E.float().numpy().copy()


def their_biases(step_size, load_NE):
    hooked = Hooked(load_NE.shape[1], step_size)
    return np.array([hooked.step(load_E) for load_E in load_NE])


@given(
    load_NE=load_sequences(experts=st.sampled_from([2, 4, 8, 64, 256])),
    step_size=st.sampled_from([2.0**-10, 2.0**-13, 1.0]),
)
def test_the_hook_is_our_recentred_sign_rule(load_NE, step_size):
    """Bit for bit where float32 holds every number on the way: step size and number of experts powers of two."""
    assert_same_bits(their_biases(step_size, load_NE), our_biases("recentred_sign", step_size, load_NE))


@given(load_NE=load_sequences(), step_size=st.sampled_from([1e-3, 1e-4, 0.1]))
def test_elsewhere_one_step_is_ours_up_to_rounding(load_NE, step_size):
    """They subtract a float32 mean of float32 steps; ours is rounded once. No step is off by more than its rounding."""
    theirs, rule = their_biases(step_size, load_NE), our_rule("recentred_sign", step_size)
    before_E = np.zeros(load_NE.shape[1], dtype=np.float32)
    for load_E, after_E in zip(load_NE, theirs):
        ours = our_step(rule, before_E, load_E)
        rounding_E = np.spacing(np.maximum(np.abs(ours), np.abs(after_E))) + 4 * np.spacing(np.float32(step_size))
        assert np.all(np.abs(after_E - ours) <= rounding_E)
        before_E = after_E


def test_the_step_before_recentring_is_the_sign():
    """Their direction plus a constant: sign(mean - load), 0 at the mean."""
    theirs = Hooked(4, 1.0).step([3, 1, 2, 2])
    assert theirs.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert Hooked(4, 1.0).step([5, 1, 1, 1]).tolist() == [-1.5, 0.5, 0.5, 0.5]


def test_the_mean_bias_drifts_by_rounding_only():
    rng = np.random.default_rng(0)
    load_NE = rng.multinomial(4096 * 8, rng.dirichlet(np.full(48, 20.0)), size=5000)
    theirs, ours = their_biases(1e-3, load_NE), our_biases("recentred_sign", 1e-3, load_NE)
    assert np.abs(ours[-1]).max() > 1.0
    assert np.abs(theirs - ours).max() < 1e-3  # less than one step in 5000
    assert abs(theirs[-1].astype(np.float64).mean()) < 1e-4


def test_every_layer_is_updated_by_its_own_loads_and_its_counter_reset():
    rng = np.random.default_rng(1)
    load_LE = rng.multinomial(512, rng.dirichlet(np.ones(8)), size=3)
    hooked = Hooked(8, 2.0**-10, num_layers=3)
    hooked.step(*load_LE)
    for layer, load_E in zip(hooked.layers, load_LE):
        assert_same_bits(layer.expert_bias_E.numpy(), our_biases("recentred_sign", 2.0**-10, load_E[None])[0])
        assert not layer.tokens_per_expert_E.any()


@pytest.mark.parametrize(
    ("counted", "after"),
    [
        ([6, 4, 4, 2], [-1.0, 0.0, 0.0, 1.0]),  # every token counted twice: halved, they are the loads
        ([3, 2, 2, 1], [-0.5, -0.5, -0.5, 1.5]),  # counted once: [1, 1, 1, 0], experts at the mean look overloaded
    ],
)
def test_recomputation_is_undone_by_halving_and_halving_floors(counted, after):
    """Blocks wrapped for recomputation have their counts halved, `// 2`: right if every token was counted twice."""
    hooked = Hooked(4, 1.0)
    hooked.model.layers["0"].checkpoint_impl = wrapper.CheckpointImpl.NO_REENTRANT
    assert hooked.step(counted).tolist() == after
    assert our_biases("recentred_sign", 1.0, np.array([[3, 2, 2, 1]]))[0].tolist() == [-1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("micro_batches", "read_as", "direction"), [(9, 41_216, -1.0), (5, 40_704, 1.0)])
def test_counters_cast_to_bf16_reverse_signs(micro_batches, read_as, direction):
    """`model.to(torch.bfloat16)` casts the counters with the weights: 40,840 tokens against a mean of 40,960."""
    hooked = Hooked(2, 1.0, dtype=torch.bfloat16)
    counter = hooked.layers[0].tokens_per_expert_E
    for part in np.array_split(np.arange(40_840), micro_batches):
        counter.add_(torch.tensor([len(part), 0]))
    assert counter[0] == read_as
    counter[1] = 2 * 40_960 - read_as
    assert hooked.step([0, 0])[0] == direction
    assert Hooked(2, 1.0).step([40_840, 41_080])[0] == 1.0


def test_a_bias_cast_to_bf16_stops_at_a_half():
    """Beyond 0.5 a bf16 is 2^-8 from the next: a step of 1e-3 is rounded away, and the rule has stopped."""
    load_NE = np.tile([1, 3], (1000, 1))
    full, cast = Hooked(2, 1e-3), Hooked(2, 1e-3, dtype=torch.bfloat16)
    for load_E in load_NE:
        exact, stuck = full.step(load_E), cast.step(load_E)
    assert exact == pytest.approx([1.0, -1.0], abs=1e-3)
    assert stuck.tolist() == [0.5, -0.5]


def test_closed_loop():
    """Loads of `alflb.simulate` under our rule, replayed through the hook: the same biases at every step."""
    stream = alflb.make_stream("linear_router", num_tokens=512, num_experts=16)
    rule = alflb.make_rule("recentred_sign", schedule=2.0**-7)
    ours = alflb.simulate(stream, rule, top_k=2, num_steps=100, seed=0)
    theirs = their_biases(2.0**-7, ours.load_NE)
    np.testing.assert_array_equal(theirs, ours.bias_NE[1:])


# ------------------------------------------------------------------------------------------ routing and counting

SHAPES = [(64, 6, None, None), (256, 8, 8, 4), (16, 4, 4, 2)]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0])
def test_the_choice_is_ours_where_no_tie_decides(shape, spread):
    num_experts, top_k, n_group, topk_group = shape
    rng = np.random.default_rng(0)
    bias_E = rng.normal(0, spread, num_experts).astype(np.float32)
    logits_TE = rng.standard_normal((400, num_experts)).astype(np.float32)
    router = their_moe(num_experts, top_k=top_k, dim=num_experts, n_group=n_group, topk_group=topk_group).router
    router.gate.weight.copy_(torch.eye(num_experts))
    _, experts_BLK, scores_BLE = router(torch.from_numpy(logits_TE)[None], torch.from_numpy(bias_E))
    scores_TE, groups = scores_BLE[0].numpy(), (n_group or 1, topk_group or 1)
    ours_TK = alflb.route(scores_TE, bias_E, top_k, n_group=groups[0], topk_group=groups[1]).experts_TK
    decided_T = tie_free(scores_TE, bias_E, top_k, *groups)
    assert decided_T.mean() > 0.98
    np.testing.assert_array_equal(np.sort(experts_BLK[0].numpy(), axis=1)[decided_T], ours_TK[decided_T])


def test_training_forwards_are_counted_and_recomputed_ones_twice():
    layer, batch = their_moe(8, top_k=2, dim=16), torch.randn(2, 24, 16, requires_grad=True)
    layer.eval()(batch)
    assert not layer.tokens_per_expert_E.any()
    with torch.no_grad():
        layer.train()(batch)
    assert layer.tokens_per_expert_E.sum() == 96  # with or without gradients
    torch.utils.checkpoint.checkpoint(layer, batch, use_reentrant=False).sum().backward()
    assert layer.tokens_per_expert_E.sum() == 96 + 2 * 96


def test_our_balancer_moves_their_layer_by_the_tokens_they_count():
    training = require("alflb.training")
    training.describe_router(moe.MoE, bias="expert_bias_E", module="router", output=1)
    model = torch.nn.Sequential(their_moe(8, top_k=2, dim=16), their_moe(8, top_k=2, dim=16))
    balancer = training.LoadBalancer.attach(model, "recentred_sign", 1e-3)
    model(torch.randn(2, 24, 16))
    report = balancer.step()
    assert balancer.layer_names == ["0", "1"]
    for layer, block in zip(report.layers, model):
        assert layer.load_E.tolist() == block.tokens_per_expert_E.tolist()
        expected = our_biases("recentred_sign", 1e-3, layer.load_E[None])[0]
        np.testing.assert_allclose(block.expert_bias_E.numpy(), expected, atol=1e-9)
