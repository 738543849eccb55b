"""Real classes of transformers, tiny and random, trained on real text: what is found, counted, moved and left alone."""

import numpy as np
import pytest

from alflb.rules import Observation, make_rule
from tests.training.models import (
    BATCH,
    BIASED,
    LENGTH,
    NUM_EXPERTS,
    TOP_K,
    bias_tensors,
    make_model,
    text_batches,
    torch,
    train,
    training,
)

LoadBalancer = training.LoadBalancer

PARAMETERS = {"afmoe", "laguna", "ernie4_5_moe"}
"""Models that keep the bias in a parameter, not in a buffer."""


@pytest.fixture(params=BIASED)
def name(request):
    return request.param


def gate_picks(model, balancer):
    """What the gates themselves return as indices, recorded independently of the balancer's hooks."""
    picks = {layer: [] for layer in balancer.layer_names}
    for layer in balancer.layer_names:
        block = model.get_submodule(layer)
        gate = block.router if hasattr(block, "router") else block.gate
        gate.register_forward_hook(lambda module, args, output, layer=layer: picks[layer].append(output[2]))
    return picks


def test_every_bias_is_found_where_the_model_keeps_it(name):
    model = make_model(name)
    balancer = LoadBalancer.attach(model, rule="sign")
    tensors = bias_tensors(model)
    assert len(balancer.layer_names) == len(tensors) >= 2
    for layer, tensor_name in zip(balancer.layer_names, tensors):
        assert tensor_name.startswith(f"{layer}.")
    assert {isinstance(tensor, torch.nn.Parameter) for tensor in tensors.values()} == {name in PARAMETERS}


@pytest.mark.parametrize("training", [True, False])
def test_attaching_and_detaching_leave_outputs_and_gradients_as_they_are(name, training):
    def outputs(model):
        model.train(training)
        model.zero_grad()
        result = model(input_ids=batch, labels=batch)
        result.loss.backward()
        return [result.logits, *(p.grad for p in model.parameters() if p.grad is not None)]

    (batch,) = text_batches(1)
    model = make_model(name)
    before = outputs(model)
    keys = list(model.state_dict())
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    balancer = LoadBalancer.attach(model, rule="sign")
    attached = outputs(model)
    balancer.detach()
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    detached = outputs(model)
    assert list(model.state_dict()) == keys
    for one, other, third in zip(before, attached, detached, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


def test_training_moves_every_bias_by_the_rule_and_the_loads(name):
    """Loads are what the gates picked; replaying them through the rule gives every bias, bit for bit."""
    model = make_model(name)
    balancer = LoadBalancer.attach(model, rule="sign", schedule=1e-3)
    picks = gate_picks(model, balancer)
    reports = train(model, balancer, text_batches(3))

    rule = make_rule("sign", 1e-3)
    target_E = np.full(NUM_EXPERTS, BATCH * LENGTH * TOP_K / NUM_EXPERTS)
    for index, layer in enumerate(balancer.layer_names):
        bias_E, state = np.zeros(NUM_EXPERTS), rule.init(NUM_EXPERTS)
        for t, report in enumerate(reports, start=1):
            picked_E = np.bincount(picks[layer][t - 1].flatten().numpy(), minlength=NUM_EXPERTS)
            assert report.layers[index].name == layer
            assert report.layers[index].load_E.tolist() == picked_E.tolist()
            assert report.layers[index].load_E.dtype == np.int64
            bias_E, state = rule.step(bias_E, Observation(t, target_E, load_E=picked_E), state)
            assert report.layers[index].bias_E.tobytes() == bias_E.tobytes()
        assert np.ptp(bias_E) > 0
        (tensor,) = (tensor for path, tensor in bias_tensors(model).items() if path.startswith(f"{layer}."))
        assert tensor.flatten().tolist() == bias_E.astype(np.float32).tolist()


def test_a_planted_imbalance_is_balanced_away():
    """Every token of layer 1 picks expert 5 at first, since its bias says so."""
    model = make_model("glm4_moe")
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    bias[5] = 0.1
    reports = train(model, LoadBalancer.attach(model, schedule=0.005, rule="sign"), [text_batches(1)[0]] * 15)
    first, last = reports[0].layers[0], reports[-1].layers[0]
    assert first.load_E[5] == BATCH * LENGTH
    assert first.max_vio == NUM_EXPERTS / TOP_K - 1
    assert last.max_vio < 0.5 * first.max_vio
    assert bias[5] < 0.1
