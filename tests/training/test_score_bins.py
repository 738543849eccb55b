"""Quantile balancing in training: counts of scores on the device, summed like loads, give the bias of the rule."""

import numpy as np
import pytest

from alflb import make_stream, simulate
from alflb.rules import make_rule
from tests.training.models import (
    BATCH,
    LENGTH,
    NUM_EXPERTS,
    TOP_K,
    Feed,
    bias_tensors,
    enable_checkpointing,
    make_model,
    text_batches,
    torch,
    training,
)

LoadBalancer = training.LoadBalancer
BINS = 200


def next_biases(rule, traces, picks=TOP_K):
    """What the rule itself makes of captured scores."""
    biases = {}
    for name, trace in traces.items():
        scores_TE = trace.scores_TE.astype(float)
        bias_E = np.zeros(NUM_EXPERTS) if trace.bias_E is None else trace.bias_E
        target_E = np.full(NUM_EXPERTS, len(scores_TE) * picks / NUM_EXPERTS)
        biases[name] = rule.bias_of_counts(rule.count(scores_TE, bias_E, picks), bias_E, target_E)
    return biases


@pytest.mark.parametrize("name", ["glm4_moe", "afmoe", "ernie4_5_moe", "qwen3_moe"])
def test_a_step_is_that_of_the_rule_on_all_micro_batches(name):
    """Also under recomputation. Scores are float32 on the device, so a token may fall into the next bin."""
    rule = make_rule("binned_qb", bins=BINS)
    model = make_model(name)
    for bias in bias_tensors(model).values():
        bias.data += torch.linspace(-0.01, 0.01, NUM_EXPERTS)
    balancer = LoadBalancer.attach(model, rule, add_bias=name == "qwen3_moe")
    batches = text_batches(3)
    expected = next_biases(rule, training.capture(model, batches))
    enable_checkpointing(model, use_reentrant=False)
    for batch in batches:
        model(input_ids=batch, labels=batch).loss.backward()
    report = balancer.step()
    assert [layer.name for layer in report.layers] == list(expected)
    for layer in report.layers:
        assert layer.load_E.sum() == 3 * BATCH * LENGTH * TOP_K
        assert np.abs(layer.bias_E - expected[layer.name]).max() < 2.1 / BINS


def test_the_next_batch_is_balanced():
    model = make_model("glm4_moe")
    gate = model.model.layers[1].mlp.gate
    with torch.no_grad():
        gate.weight.normal_(std=0.3)
    balancer = LoadBalancer.attach(model, "binned_qb")
    (batch,) = text_batches(1, batch=16)
    reports = []
    for _ in range(4):
        model(batch)
        reports.append(balancer.step().layers[0])
    assert reports[0].max_vio > 0.5
    assert reports[-1].max_vio < 0.25


def test_simulated_it_is_close_to_exact_quantiles():
    stream = make_stream("logistic", num_tokens=2048, num_experts=16, population_seed=1)
    runs = [simulate(stream, make_rule(name), top_k=2, num_steps=12) for name in ("qb", "binned_qb")]
    assert np.abs(runs[0].bias_NE[-1] - runs[1].bias_NE[-1]).max() < 0.02


def test_what_shows_no_scores_is_refused():
    with pytest.raises(ValueError, match=r"sees scores, but 0 do not choose by torch.topk"):
        LoadBalancer.attach(torch.nn.Sequential(Feed()), "binned_qb")
    with pytest.raises(ValueError, match="a balancer without a model does not"):
        LoadBalancer.for_layers([4], top_k=1, rule="binned_qb")
