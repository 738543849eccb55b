"""What may be counted: indices and routing maps, whatever their dtype and shape; everything else is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.models import NUM_EXPERTS, Feed, feeds, torch, training

LoadBalancer = training.LoadBalancer


def balanced():
    block = Feed()
    return block, LoadBalancer.attach(block, "none")


def draw_picks(seed, tokens, top_k):
    return np.random.default_rng(seed).random((tokens, NUM_EXPERTS)).argsort(axis=1)[:, :top_k].copy()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, NUM_EXPERTS),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]),
    batched=st.booleans(),
)
def test_right_picks_are_counted_however_they_are_written(seed, tokens, top_k, dtype, batched):
    picks = draw_picks(seed, tokens, top_k)
    truth_E = np.bincount(picks.ravel(), minlength=NUM_EXPERTS)
    tensor = torch.from_numpy(picks)
    if dtype == torch.bool:
        tensor = torch.zeros(tokens, NUM_EXPERTS, dtype=torch.bool).scatter_(1, tensor, True)
    else:
        tensor = tensor.to(dtype)
    block, balancer = balanced()
    block(tensor[None] if batched else tensor)
    assert balancer.step().layers[0].load_E.tolist() == truth_E.tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    fault=st.sampled_from(["too large", "negative", "twice", "odd row"]),
    expert=st.integers(0, 10**4),
)
def test_picks_that_cannot_be_right_are_refused_at_the_step(seed, fault, expert):
    picks = torch.from_numpy(draw_picks(seed, 20, 3))
    token = seed % 20
    if fault == "too large":
        picks[token, 1] = NUM_EXPERTS + expert
    elif fault == "negative":
        picks[token, 1] = -1 - expert
    elif fault == "twice":
        picks[token, 1] = picks[token, 0]
    else:
        picks = torch.zeros(20, NUM_EXPERTS, dtype=torch.bool).scatter_(1, picks, True)
        picks[token] ^= torch.arange(NUM_EXPERTS) == expert % NUM_EXPERTS
    model = feeds()
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    model(picks)
    with pytest.raises(ValueError, match="of the picks counted for 0 cannot be right: a token picks different experts"):
        balancer.step()
    assert balancer.num_steps == 0
    assert not any(bias_E.any() for bias_E in balancer.biases.values())
    balancer.discard()
    model(torch.from_numpy(draw_picks(seed, 20, 3)))
    assert balancer.step().layers[0].load_E.sum() == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_weights_and_scores_are_no_picks(dtype):
    block, _ = balanced()
    with pytest.raises(ValueError, match=f"the picks of  are {dtype} of shape .*describe_router points at the wrong"):
        block(torch.rand(5, 2).to(dtype))


def test_a_map_of_other_experts_and_another_k_are_refused_at_once():
    block, _ = balanced()
    with pytest.raises(ValueError, match="a routing map has one column per expert, here 8"):
        block(torch.ones(8, 5, dtype=torch.bool))
    block(torch.zeros(5, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 per token, after 1 per token before"):
        block(torch.arange(6).view(3, 2))


@pytest.mark.parametrize("loads", [[1, 2, 3], [[1, 2, 3, 4]], [True, False, True, True]])
def test_loads_of_another_shape_are_refused(loads):
    balancer = LoadBalancer.for_layers([4], top_k=1, rule="sign")
    with pytest.raises(ValueError, match=r"loads of layer_00 are .*; pass 4 counts of tokens"):
        balancer.add_loads("layer_00", loads)


@pytest.mark.parametrize("wrong", [0.5, -1.0, float("nan"), float("inf")])
def test_loads_that_are_no_counts_are_refused_at_the_step(wrong):
    balancer = LoadBalancer.for_layers([4], top_k=1, rule="sign")
    balancer.add_loads("layer_00", torch.tensor([3.0, 1.0, 2.0, wrong]))
    with pytest.raises(ValueError, match="add_loads got whole numbers"):
        balancer.step()


def test_a_balancer_without_a_model_takes_the_steps_of_one_with():
    """Also from float32 counts, as Megatron-Core and torchtitan keep them."""
    model = feeds()
    attached = LoadBalancer.attach(model, "ema", 0.01)
    free = LoadBalancer.for_layers([NUM_EXPERTS] * 2, top_k=2, rule="ema", schedule=0.01)
    for step in range(4):
        picks = draw_picks(step, 30, 2)
        model(torch.from_numpy(picks))
        load_E = torch.bincount(torch.from_numpy(picks).flatten(), minlength=NUM_EXPERTS)
        for part in (load_E.float() - 1, torch.ones(NUM_EXPERTS, dtype=torch.int32)):
            for name in free.layer_names:
                free.add_loads(name, part)
        assert [layer.load_E.tolist() for layer in attached.step().layers] == [
            layer.load_E.tolist() for layer in free.step().layers
        ]
    for one, other in zip(attached.biases.values(), free.biases.values()):
        assert one.tobytes() == other.tobytes()
    with pytest.raises(ValueError, match="layer is 'layer_07'; this balancer has layer_00, layer_01"):
        free.add_loads("layer_07", [1])


def test_unequal_targets_are_reached():
    """An expert that costs nothing may get three times the load of the others."""
    rng = np.random.default_rng(0)
    target_E = np.array([3.0, 1, 1, 1, 1, 1])
    balancer = LoadBalancer.for_layers([6], top_k=1, rule="sign", schedule=0.01, target=target_E)
    for _ in range(400):
        scores = rng.random((600, 6)) + balancer.biases["layer_00"]
        balancer.add_loads("layer_00", np.bincount(scores.argmax(axis=1), minlength=6))
        report = balancer.step()
    layer = report.layers[0]
    assert layer.max_vio == pytest.approx((layer.load_E / (600 * target_E / 8)).max() - 1)
    assert layer.max_vio < 0.25
    assert layer.load_E[0] > 180


@pytest.mark.parametrize("target", [[1.0, 2.0], [1.0] * 7 + [0.0], [1.0] * 7 + [float("nan")], [1.0] * 7 + [-1.0]])
def test_targets_that_do_not_fit_are_refused(target):
    with pytest.raises(ValueError, match=r"target of layer '0' is .*; pass 8 positive numbers"):
        LoadBalancer.attach(feeds(), target=target, rule="sign")


def test_what_is_no_list_of_layers_or_no_function_is_refused():
    with pytest.raises(ValueError, match="num_experts is 8; pass one number per layer"):
        LoadBalancer.for_layers(8, top_k=1, rule="sign")
    with pytest.raises(ValueError, match="num_experts of layer_00 is 0"):
        LoadBalancer.for_layers([0], top_k=1, rule="sign")
    with pytest.raises(ValueError, match="top_k is 9"):
        LoadBalancer.for_layers([8], top_k=9, rule="sign")
    with pytest.raises(ValueError, match="on_step is 3; pass a function"):
        LoadBalancer.attach(feeds(), on_step=3, rule="sign")
    with pytest.raises(ValueError, match="loads of layer_00 cannot be read as numbers"):
        LoadBalancer.for_layers([2], top_k=1, rule="sign").add_loads("layer_00", ["a", "b"])


def test_targets_by_layer():
    balancer = LoadBalancer.attach(feeds(), schedule=1.0, target={"1": np.arange(1, 9)}, rule="sign")
    assert balancer._layers["0"].weight_E.tolist() == [1.0] * 8
    assert balancer._layers["1"].weight_E.tolist() == list(range(1, 9))
    with pytest.raises(ValueError, match=r"target names the layers \['2'\]; there are 0, 1"):
        LoadBalancer.attach(feeds(), target={"2": np.ones(8)}, rule="sign")
