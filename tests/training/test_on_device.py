"""A balancer on the device: the bits of the one on the host, no wait for the device, and errors that are not lost."""

import numpy as np
import pytest

from alflb.rules import RULES, make_rule, rule_names
from tests.training.models import NUM_EXPERTS, TOP_K, Feed, bias_tensors, make_model, text_batches, torch, training

LoadBalancer = training.LoadBalancer
ON_TENSORS = [name for name in rule_names() if RULES.get(name).on_tensors]
HUGE = make_rule("proportional", 2e307)


def picks(seed, num_experts=NUM_EXPERTS):
    """Two experts for each of 24 tokens, the first ones more often."""
    rng = np.random.default_rng(seed)
    share = np.arange(num_experts, 0, -1.0)
    rows = [rng.choice(num_experts, TOP_K, replace=False, p=share / share.sum()) for _ in range(24)]
    return torch.from_numpy(np.array(rows))


def make_pair(rule, **options):
    """Two models of two layers, one balanced on the host and one on the device."""
    models = [torch.nn.ModuleList([Feed(), Feed()]) for _ in range(2)]
    return models, [LoadBalancer.attach(m, rule, on_device=on, **options) for m, on in zip(models, (False, True))]


def run(models, balancers, steps, layers=(0, 1)):
    """Both count the same picks and step; the reports of the device are read at the end only."""
    reports = []
    for t in range(steps):
        for model in models:
            for index in layers:
                model[index](picks(100 * t + index))
        reports.append([balancer.step() for balancer in balancers])
    return reports


def assert_same(reports, models, balancers):
    for host, device in reports:
        assert host.step == device.step
        for one, other in zip(host.layers, device.layers, strict=True):
            assert (one.name, one.label, one.top_k) == (other.name, other.label, other.top_k)
            for field in ("load_E", "total_E", "bias_E", "previous_bias_E", "target_E"):
                assert getattr(one, field).dtype == getattr(other, field).dtype
                assert getattr(one, field).tobytes() == getattr(other, field).tobytes()
        assert host.as_dict() == device.as_dict()
    for name, bias_E in balancers[0].biases.items():
        assert balancers[1].biases[name].tobytes() == bias_E.tobytes()
        assert balancers[1].bias_tensors[name].numpy().tobytes() == bias_E.tobytes()
        assert balancers[0].bias_tensors[name].dtype == torch.float64
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("rule", ON_TENSORS)
@pytest.mark.parametrize("target", [None, [1.0, 2.0, 0.7, 1.0, 1.0, 3.1, 0.2, 1.0]])
def test_every_number_has_the_bits_of_the_host(rule, target):
    models, balancers = make_pair(rule, target=target)
    reports = run(models, balancers, 5)
    reports += run(models, balancers, 2, layers=(1,))  # a layer without tokens keeps its bias and is not reported
    balancers[0].freeze("0")
    balancers[1].freeze("0")
    reports += run(models, balancers, 2)
    assert_same(reports, models, balancers)


@pytest.mark.parametrize("name", ["deepseek_v3", "afmoe", "qwen3_moe"])
def test_models_in_training_get_the_same_biases(name):
    models = [make_model(name) for _ in range(2)]
    balancers = [
        LoadBalancer.attach(model, "ema", 0.01, add_bias=name == "qwen3_moe", on_device=on)
        for model, on in zip(models, (False, True))
    ]
    for batch in text_batches(3):
        for model, balancer in zip(models, balancers):
            model(input_ids=batch, labels=batch).loss.backward()
            balancer.step()
    for layer, bias_E in balancers[0].biases.items():
        assert np.ptp(bias_E) > 0
        assert balancers[1].biases[layer].tobytes() == bias_E.tobytes()
    if name != "qwen3_moe":
        tensors = [bias_tensors(model) for model in models]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_a_bias_in_16_bits_and_a_model_cast_later():
    models, balancers = make_pair("sign")
    for model in models:
        model.to(torch.bfloat16)
    reports = run(models, balancers, 3)
    assert_same(reports, models, balancers)
    assert models[1][0].bias.dtype == torch.float32


# ------------------------------------------------------------------------------------------ nothing waits


@pytest.fixture
def no_device(monkeypatch):
    """A device without numbers: kernels are launched in name only, and to read or copy a number out is an error."""
    monkeypatch.setattr("alflb.training.bias_slot.check_tensor", lambda router: router.bias)
    return torch.device("meta")


def on(device, rule, on_device=True):
    """Two layers whose biases are on a device, attached before they went there."""
    model = torch.nn.ModuleList([Feed(), Feed()])
    balancer = LoadBalancer.attach(model, rule, on_device=on_device)
    return model.to(device), balancer


def feed(model, device):
    for layer in model:
        layer(torch.zeros(24, TOP_K, dtype=torch.int64, device=device))


@pytest.mark.parametrize("rule", ON_TENSORS)
def test_a_step_waits_for_nothing(no_device, rule):
    model, balancer = on(no_device, rule)
    for _ in range(3):
        feed(model, no_device)
        report = balancer.step()
    assert report.step == 3
    assert all(bias_E.device == no_device for bias_E in balancer.bias_tensors.values())
    for read in (lambda: report.layers, lambda: balancer.biases, balancer.state_dict):
        with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
            read()


def test_the_step_on_the_host_does_wait(no_device):
    model, balancer = on(no_device, "sign", on_device=False)
    feed(model, no_device)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
        balancer.step()


# ------------------------------------------------------------------------------------------ errors


def spoil_picks(model):
    model[1](torch.tensor([[0, NUM_EXPERTS + 1]]))


def spoil_bias(model):
    model[1].bias += 1.0


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoil_picks, ValueError, "1 of the picks counted for 1 cannot be right"),
        (spoil_bias, RuntimeError, "1.bias has been changed since the balancer wrote it"),
    ],
)
def test_what_would_be_an_error_moves_nothing_and_is_raised_when_read(spoil, error, words):
    models, balancers = make_pair("sign")
    run(models, balancers, 2)
    before = {name: bias_E.tobytes() for name, bias_E in balancers[0].biases.items()}
    for model in models:
        model[0](picks(0))
        model[1](picks(1))
        spoil(model)
    with pytest.raises(error, match=words):
        balancers[0].step()
    report = balancers[1].step()
    for read in (lambda: report.layers, lambda: report.as_dict(), lambda: balancers[1].biases):
        with pytest.raises(error, match=words):
            read()
    assert {name: bias_E.tobytes() for name, bias_E in balancers[1].biases.items()} == before
    assert models[1][0].bias.double().numpy().tobytes() == np.float32(balancers[1].biases["0"]).astype(float).tobytes()


def test_a_report_nobody_reads_does_not_hide_an_error():
    models, balancers = make_pair("sign")
    model, balancer = models[1], balancers[1]
    model[0](picks(0))
    balancer.step()
    spoil_picks(model)
    balancer.step()
    for t in range(3):
        model[0](picks(t))
        balancer.step()
    with pytest.raises(ValueError, match="1 of the picks counted for 1 cannot be right"):
        balancer.state_dict()
    assert balancer.state_dict()["num_steps"] == 5


def test_a_bias_that_overflows():
    models, balancers = make_pair(HUGE)
    for t in range(3):
        models[1][0](torch.zeros(24, 1, dtype=torch.int64))
        report = balancers[1].step()
        if t < 1:
            assert np.isfinite(report.layers[0].bias_E).all()
    with pytest.raises(ValueError, match="the bias of 0 after step 3 is not finite"):
        _ = report.layers
    with pytest.raises(ValueError, match="the bias of 0 after step 2 is not finite"):
        _ = balancers[1].biases
    assert np.isfinite(balancers[1].biases["0"]).all()


def test_a_step_without_tokens():
    _, balancers = make_pair("sign")
    report = balancers[1].step()
    with pytest.raises(RuntimeError, match="no token was counted since the last step"):
        _ = report.layers


# ------------------------------------------------------------------------------------------ the rest of a balancer


def test_states_go_from_host_to_device_and_back():
    models, balancers = make_pair("ema")
    run(models, balancers, 3)
    states = [balancer.state_dict() for balancer in balancers]
    balancers[0].load_state_dict(states[1])
    balancers[1].load_state_dict(states[0])
    assert_same(run(models, balancers, 3), models, balancers)


def test_totals_start_anew_and_biases_are_read_from_the_model():
    models, balancers = make_pair("sign")
    run(models, balancers, 2)
    for model, balancer in zip(models, balancers):
        balancer.reset_totals()
        with torch.no_grad():
            model[0].bias.fill_(0.25)
        balancer.read_biases()
    reports = run(models, balancers, 2)
    assert reports[-1][0].layers[0].previous_bias_E.max() < 0.3
    assert_same(reports, models, balancers)


def test_discarded_and_paused_picks_do_not_count():
    models, balancers = make_pair("sign")
    for model, balancer in zip(models, balancers):
        model[0](picks(7))
        balancer.discard()
        with balancer.paused():
            model[0](picks(8))
    assert_same(run(models, balancers, 2), models, balancers)


def test_without_a_model():
    balancers = [LoadBalancer.for_layers([4, 3], 2, "recentred_sign", 0.1, on_device=on) for on in (False, True)]
    for t in range(3):
        for balancer in balancers:
            balancer.add_loads("layer_00", torch.tensor([5.0, t, 1, 2]))
            balancer.add_loads("layer_01", [t, 2, 4])
            balancer.step()
    assert balancers[0].biases["layer_00"].any()
    for name, bias_E in balancers[0].biases.items():
        assert balancers[1].bias_tensors[name].numpy().tobytes() == bias_E.tobytes()


def test_on_step_gets_the_report_of_every_step():
    seen = []
    model = torch.nn.ModuleList([Feed()])
    balancer = LoadBalancer.attach(model, "sign", on_device=True, on_step=seen.append)
    for t in range(2):
        model[0](picks(t))
        balancer.step()
    assert [report.step for report in seen] == [1, 2]
    assert [int(report.layers[0].load_E.sum()) for report in seen] == [24 * TOP_K] * 2


@pytest.mark.parametrize("rule", [name for name in rule_names() if not RULES.get(name).on_tensors])
def test_a_rule_that_computes_on_the_host_is_refused(rule):
    with pytest.raises(ValueError, match=r"sees the scores|computes on the host; leave it out, or choose .*sign"):
        LoadBalancer.attach(torch.nn.Sequential(Feed()), rule, on_device=True)
