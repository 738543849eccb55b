"""Whose the bias is: 32 bits or more whatever the model's dtype, and nobody's but the balancer's."""

import numpy as np
import pytest

from alflb.rules import RULES, Observation, Sight, make_rule, rule_names
from tests.training.models import (
    NUM_EXPERTS,
    bias_tensors,
    feed,
    feeds,
    make_model,
    text_batches,
    torch,
    train,
    training,
)

LoadBalancer = training.LoadBalancer
StepReport = training.StepReport

BF16 = torch.bfloat16


def dtypes(model):
    return {tensor.dtype for tensor in bias_tensors(model).values()}


@pytest.mark.parametrize("name", ["deepseek_v3", "minimax_m2", "lfm2_moe", "ernie4_5_moe"])
def test_a_bf16_model_gets_float32_biases_when_attached(name):
    """Buffers and parameters alike; the numbers, and so the outputs, are the same.

    All but lfm2_moe add the bias to float32 scores; there, a sum that 16 bits would round is no longer rounded.
    """
    model = make_model(name).to(BF16)
    (batch,) = text_batches(1)
    for bias in bias_tensors(model).values():
        bias.data += torch.linspace(-0.01, 0.01, NUM_EXPERTS).to(BF16) * (name != "lfm2_moe")
    before = model(batch).logits
    balancer = LoadBalancer.attach(model, schedule=1e-3, rule="sign")
    assert dtypes(model) == {torch.float32}
    assert torch.equal(model(batch).logits, before)
    state = model.state_dict()
    train(model, balancer, text_batches(2))
    assert dtypes(model) == {torch.float32}
    assert all(torch.equal(state[path], tensor) for path, tensor in bias_tensors(model).items()), "taken before step 1"
    for bias_E, tensor in zip(balancer.biases.values(), bias_tensors(model).values()):
        assert tensor.flatten().tolist() == bias_E.astype(np.float32).tolist()
    kinds = {isinstance(tensor, torch.nn.Parameter) for tensor in bias_tensors(model).values()}
    assert kinds == {name == "ernie4_5_moe"}
    assert set(model.state_dict()) == set(make_model(name).state_dict())


def test_small_steps_move_a_large_bias_of_a_bf16_model():
    """Near 0.5, bf16 numbers are 1/256 and 1/512 apart: u = 1e-3 would be rounded away forever."""
    model = make_model().to(BF16)
    bias = bias_tensors(model)["model.layers.1.mlp.gate.e_score_correction_bias"]
    bias.fill_(0.5)
    assert torch.tensor(0.5, dtype=BF16) + 1e-3 == 0.5
    balancer = LoadBalancer.attach(model, schedule=1e-3, rule="sign")
    train(model, balancer, text_batches(1))
    moved = bias_tensors(model)["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert set(moved.tolist()) <= {float(np.float32(x)) for x in (0.5 - 1e-3, 0.5, 0.5 + 1e-3)}
    assert len(set(moved.tolist())) > 1


def test_casting_the_model_between_steps_loses_nothing():
    model = make_model()
    balancer = LoadBalancer.attach(model, schedule=0.0123, rule="sign")
    train(model, balancer, text_batches(1))
    exact = balancer.biases
    model.to(BF16)
    assert dtypes(model) == {BF16}
    (report,) = train(model, balancer, text_batches(1))
    assert dtypes(model) == {torch.float32}
    for layer in report.layers:
        steps = (layer.bias_E - exact[layer.name]) / 0.0123
        assert np.abs(steps - np.rint(steps)).max() < 1e-12


def test_a_model_saved_in_16_bits_by_transformers_comes_back_with_float32_biases(tmp_path):
    """What deepseek_v3 keeps in float32 when loading, so that the bias on disk must be float32 too."""
    model = make_model().to(BF16)
    balancer = LoadBalancer.attach(model, schedule=1e-3, rule="sign")
    train(model, balancer, text_batches(2))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=BF16)
    assert loaded.lm_head.weight.dtype == BF16
    for ours, theirs in zip(bias_tensors(model).values(), bias_tensors(loaded).values(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["afmoe", "laguna", "ernie4_5_moe"])
def test_a_bias_in_a_parameter_is_not_the_optimizers(name):
    """With weight decay an optimizer would shrink it; without a gradient it leaves it alone."""
    model = make_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for bias in bias_tensors(model).values():
        bias.data += torch.linspace(-0.01, 0.01, NUM_EXPERTS)
    balancer = LoadBalancer.attach(model, schedule=0.0, rule="sign")
    before = [bias.clone() for bias in bias_tensors(model).values()]
    train(model, balancer, text_batches(2), optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, bias_tensors(model).values()))


def test_a_bias_that_requires_grad_is_refused_then_and_later():
    model = make_model("afmoe")
    balancer = LoadBalancer.attach(model, rule="sign")
    model.requires_grad_(True)
    message = r"model.layers.1.mlp.expert_bias requires grad.*call .requires_grad_\(False\) on it before the optimizer"
    with pytest.raises(ValueError, match=message):
        LoadBalancer.attach(model, rule="sign")
    with pytest.raises(ValueError, match=message):
        train(model, balancer, text_batches(1))


@pytest.mark.parametrize("culprit", ["optimizer", "second balancer", "loaded model"])
def test_a_bias_changed_by_somebody_else_is_noticed(culprit):
    model = make_model("afmoe")
    balancer = LoadBalancer.attach(model, rule="sign")
    train(model, balancer, text_batches(1))
    before = balancer.biases
    if culprit == "optimizer":
        model.model.layers[1].mlp.expert_bias.data *= 0.5
    elif culprit == "second balancer":
        second = LoadBalancer.attach(model, rule="sign")
        model(text_batches(1)[0])
        second.step()
    else:
        model.load_state_dict(make_model("afmoe").state_dict())
    model(text_batches(1)[0])
    with pytest.raises(RuntimeError, match=r"model.layers.1.mlp.expert_bias has been changed since the balancer wrote"):
        balancer.step()
    assert all((balancer.biases[name] == before[name]).all() for name in before)
    balancer.read_biases()
    balancer.step()
    assert balancer.num_steps == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.to("meta"), "meta device; load or initialize the model first"),
        (lambda model: bias_tensors(model).popitem()[1].fill_(float("nan")), "layers.2.*NaN or inf at expert 0"),
        (
            lambda model: setattr(model.model.layers[1].mlp.gate, "e_score_correction_bias", torch.zeros(2, 3)),
            r"torch.float32 of shape \(2, 3\); a selection bias is one real number for each expert",
        ),
        (
            lambda model: setattr(
                model.model.layers[1].mlp.gate, "e_score_correction_bias", torch.zeros(8, dtype=torch.int64)
            ),
            "is torch.int64 of shape",
        ),
        (
            lambda model: setattr(model.model.layers[1].mlp.gate, "e_score_correction_bias", torch.zeros(0)),
            "is sharded; leave it out of sharding",
        ),
    ],
)
def test_tensors_that_are_no_bias_are_refused(spoil, message):
    model = make_model()
    spoil(model)
    with pytest.raises(ValueError, match=message):
        LoadBalancer.attach(model, rule="sign")


@pytest.mark.parametrize(
    "rule", [name for name in rule_names() if RULES.get(name).sees is not Sight.LOADS and name != "binned_qb"]
)
def test_rules_that_see_scores_are_refused(rule):
    with pytest.raises(
        ValueError, match="sees the scores, and in training only counts leave the device; choose a load-"
    ):
        LoadBalancer.attach(feeds(), rule)


def test_rule_and_schedule_are_checked():
    model = feeds()
    with pytest.raises(ValueError, match="unknown rule 'sing': did you mean 'sign'"):
        LoadBalancer.attach(model, "sing")
    with pytest.raises(ValueError, match=r"schedule is 0\.1 but the rule Sign.* has its own"):
        LoadBalancer.attach(model, make_rule("sign"), 0.1)
    with pytest.raises(ValueError, match="schedule is -1"):
        LoadBalancer.attach(model, "sign", -1)
    with pytest.raises(ValueError, match="rule is 3; pass a name"):
        LoadBalancer.attach(model, 3)
    assert all(not module._forward_pre_hooks for module in model.modules()), "nothing was left behind"


@pytest.mark.parametrize("rule", [name for name in rule_names() if RULES.get(name).sees is Sight.LOADS])
def test_every_load_only_rule_steps_as_it_does_alone(rule):
    model = feeds()
    rule = make_rule(rule, *[lambda t: 0.01 / t] * RULES.get(rule).takes_schedule)
    reports = feed(model, LoadBalancer.attach(model, rule), range(6))
    bias_E, state = np.zeros(NUM_EXPERTS), rule.init(NUM_EXPERTS)
    for t, report in enumerate(reports, start=1):
        load_E = report.layers[0].load_E
        seen = Observation(t, np.full(NUM_EXPERTS, load_E.sum() / NUM_EXPERTS), load_E=load_E)
        bias_E, state = rule.step(bias_E, seen, state)
        assert report.layers[0].bias_E.tobytes() == bias_E.tobytes()
    assert model[1].bias.tolist() == bias_E.astype(np.float32).tolist()


def test_detaching_keeps_the_biases_and_ends_the_balancer():
    model = make_model()
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    train(model, balancer, text_batches(1))
    biases = [tensor.clone() for tensor in bias_tensors(model).values()]
    balancer.detach()
    balancer.detach()
    model(text_batches(1)[0])
    with pytest.raises(RuntimeError, match="detached; attach a new one"):
        balancer.step()
    assert all(torch.equal(one, other) for one, other in zip(biases, bias_tensors(model).values()))
    assert LoadBalancer.attach(model, rule="sign").biases["model.layers.1.mlp"].tolist() == biases[0].double().tolist()


def test_reports_hold_the_numbers_worked_out_by_hand():
    model, seen = feeds(), []
    balancer = LoadBalancer.attach(model, schedule=0.1, on_step=seen.append, rule="sign")
    reports = feed(model, balancer, range(3))
    assert seen == reports
    assert [report.step for report in reports] == [1, 2, 3]
    loads = np.array([[layer.load_E for layer in report.layers] for report in reports])
    flat = reports[2].as_dict()
    for index, layer in enumerate(["layer_00", "layer_01"]):
        mean = 50 * 2 / NUM_EXPERTS
        assert flat[f"alflb/{layer}/max_vio"] == pytest.approx(loads[2, index].max() / mean - 1)
        assert flat[f"alflb/{layer}/min_vio"] == pytest.approx(loads[2, index].min() / mean - 1)
        assert flat[f"alflb/{layer}/avg_vio"] == pytest.approx(np.abs(loads[2, index] / mean - 1).mean())
        assert flat[f"alflb/{layer}/max_vio_global"] == pytest.approx(loads[:, index].sum(axis=0).max() / mean / 3 - 1)
        assert flat[f"alflb/{layer}/dead_experts"] == (loads[2, index] == 0).sum()
        assert flat[f"alflb/{layer}/bias_spread"] == np.ptp(reports[2].layers[index].bias_E)
    vios = [flat["alflb/layer_00/max_vio"], flat["alflb/layer_01/max_vio"]]
    assert flat["alflb/max_vio_max"] == max(vios)
    assert flat["alflb/max_vio_p50"] == pytest.approx(np.mean(vios))
    assert max(vios) >= flat["alflb/max_vio_p95"] >= flat["alflb/max_vio_p75"]
    assert all(isinstance(value, (int, float)) and not isinstance(value, np.generic) for value in flat.values())
    assert next(iter(StepReport(3, reports[2].layers).as_dict("router"))) == "router/layer_00/min_vio"
    per_rank = reports[2].as_dict(num_ranks=2)["alflb/layer_01/max_vio_ranks"]
    assert per_rank == pytest.approx(loads[2, 1].reshape(2, -1).sum(axis=1).max() / 50 - 1)
    with pytest.raises(ValueError, match="num_ranks is 3, which does not divide 8 experts"):
        reports[2].as_dict(num_ranks=3)
    balancer.reset_totals()
    (report,) = feed(model, balancer, [3])
    assert report.layers[0].max_vio_global == report.layers[0].max_vio
