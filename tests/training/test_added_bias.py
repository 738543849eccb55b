"""Routers without a bias: they get one by opt-in, change nothing at zero, and keep it through copies and files."""

import copy
import io

import numpy as np
import pytest

from tests.training.models import (
    BATCH,
    LENGTH,
    NUM_EXPERTS,
    TOP_K,
    enable_checkpointing,
    make_model,
    text_batches,
    torch,
    train,
    training,
)

LoadBalancer = training.LoadBalancer
BIASLESS = ["qwen3_moe", "olmoe", "mixtral"]


def logits_and_gradients(model, batch):
    model.zero_grad()
    result = model(input_ids=batch, labels=batch)
    result.loss.backward()
    return [result.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BIASLESS)
def test_a_zero_bias_changes_no_bit(name, dtype):
    model = make_model(name).to(dtype)
    (batch,) = text_batches(1)
    before = logits_and_gradients(model, batch)
    balancer = LoadBalancer.attach(model, add_bias=True, rule="sign")
    after = logits_and_gradients(model, batch)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert len(balancer.layer_names) == len(model.model.layers)


@pytest.mark.parametrize("name", BIASLESS)
def test_a_bias_moves_the_choice_and_not_the_weights(name):
    """Picks are the top-K of score + bias, weights the scores without it, made up by the model's own code."""
    model = make_model(name).eval()
    training.add_bias(model)
    gate = model.model.layers[0].mlp.gate
    with torch.no_grad():
        gate.weight.normal_(std=0.5)
        gate.expert_bias.copy_(torch.linspace(-0.2, 0.2, NUM_EXPERTS))
        x = torch.randn(100, 32)
        logits, weights, picks = gate(x)
    scores = logits.softmax(-1)
    assert torch.equal(picks.sort().values, (scores + gate.expert_bias).topk(TOP_K).indices.sort().values)
    expected = scores.gather(1, picks)
    if name == "mixtral" or gate.norm_topk_prob:
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("name", BIASLESS)
def test_a_planted_imbalance_is_balanced_away(name):
    model = make_model(name)
    gate = model.model.layers[0].mlp.gate
    with torch.no_grad():
        gate.weight.normal_(std=0.3)
    balancer = LoadBalancer.attach(model, "proportional", 0.01, add_bias=True)
    (batch,) = text_batches(1)
    reports = []
    for _ in range(40):
        model(batch)
        reports.append(balancer.step())
    assert reports[0].layers[0].load_E.sum() == BATCH * LENGTH * TOP_K
    assert reports[-1].layers[0].max_vio < 0.5 * reports[0].layers[0].max_vio
    assert gate.expert_bias.tolist() == balancer.biases["model.layers.0.mlp.gate"].astype(np.float32).tolist()


@pytest.mark.parametrize("name", BIASLESS)
def test_recomputation_chooses_as_the_first_pass_did_and_is_not_counted(name):
    plain, checkpointed = make_model(name), make_model(name)
    enable_checkpointing(checkpointed, use_reentrant=False)
    reports = []
    for model in (plain, checkpointed):
        balancer = LoadBalancer.attach(model, schedule=0.01, add_bias=True, rule="sign")
        reports.append(
            [layer.load_E.tolist() for report in train(model, balancer, text_batches(3)) for layer in report.layers]
        )
    assert reports[0] == reports[1]


def test_a_model_that_has_been_given_a_bias_is_found_again_and_given_none_twice():
    model = make_model("olmoe")
    first = LoadBalancer.attach(model, schedule=0.1, add_bias=True, rule="sign")
    train(model, first, text_batches(1))
    first.detach()
    again = LoadBalancer.attach(model, rule="sign")
    assert again.layer_names == first.layer_names
    assert all((again.biases[name] == first.biases[name].astype(np.float32)).all() for name in again.biases)
    with pytest.raises(ValueError, match="no router to add a bias to: all of them have one"):
        training.add_bias(model)


@pytest.mark.parametrize("way", ["deepcopy", "torch.save", "save_biases", "state_dict"])
def test_the_bias_travels(way, tmp_path):
    """Copies and files choose as the model does, and a copy is not counted into the original."""
    model = make_model("qwen3_moe")
    balancer = LoadBalancer.attach(model, schedule=0.01, add_bias=True, rule="sign")
    train(model, balancer, text_batches(2))
    (batch,) = text_batches(1)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    elif way == "save_biases":
        training.save_biases(model, tmp_path / "biases.npz")
        model.save_pretrained(tmp_path)
        other = type(model).from_pretrained(tmp_path)
        assert not torch.equal(other.eval()(batch).logits, model.eval()(batch).logits), "transformers drops the bias"
        assert training.load_biases(other, tmp_path / "biases.npz") == balancer.layer_names
    else:
        other = make_model("qwen3_moe", seed=1)
        training.add_bias(other)
        other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(batch).logits, model.eval()(batch).logits)
    other.train()(batch)
    with pytest.raises(RuntimeError, match="no token was counted"):
        balancer.step()


def test_a_compiled_model_chooses_by_its_bias():
    model = make_model("qwen3_moe").eval()
    training.add_bias(model)
    for layer in model.model.layers:
        layer.mlp.gate.expert_bias.copy_(torch.linspace(-0.05, 0.05, NUM_EXPERTS))
    (batch,) = text_batches(1)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="eager")(batch).logits, model(batch).logits)


def test_a_logit_bias_is_recognized_and_not_offered():
    """gpt_oss's router.bias changes the weights; an added bias does not."""

    class Router(torch.nn.Linear):
        num_experts, top_k = 6, 2

        def forward(self, x):
            logits = super().forward(x)
            values, picks = torch.topk(logits, self.top_k, dim=-1)
            return values.softmax(-1), picks

    model = torch.nn.Sequential(Router(4, 6))
    with pytest.raises(ValueError, match=r"Router can be given one.*Its own 'bias' .* is not a selection bias"):
        LoadBalancer.attach(model, rule="sign")
    balancer = LoadBalancer.attach(model, schedule=0.5, add_bias=True, rule="sign")
    x = torch.randn(40, 4)
    _, picks = model(x)
    assert balancer.step().layers[0].load_E.tolist() == torch.bincount(picks.flatten(), minlength=6).tolist()
    weights, picks = model(x)
    torch.testing.assert_close(weights, model[0](x)[0])
    logits = torch.nn.functional.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(weights, logits.gather(1, picks).softmax(-1))


def test_routers_that_choose_otherwise_are_refused():
    class Grouped(torch.nn.Linear):
        num_experts, num_group, topk_group = 6, 2, 1

        def forward(self, x):
            return torch.topk(super().forward(x), 2)

    with pytest.raises(ValueError, match=r"0 \(Grouped\) chooses within groups of experts"):
        training.add_bias(torch.nn.Sequential(Grouped(4, 6)))
    with pytest.raises(ValueError, match=r"Linear has no router to add a bias to: no module that has num_experts"):
        training.add_bias(torch.nn.Linear(2, 2))


def test_biases_of_models_that_have_their_own_are_saved_as_well(tmp_path):
    """As for a PEFT adapter, whose checkpoint leaves the base model's biases out."""
    model, other = make_model("deepseek_v3"), make_model("deepseek_v3")
    train(model, LoadBalancer.attach(model, schedule=0.01, rule="sign"), text_batches(2))
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "correction_bias" not in k}, strict=False)
    training.save_biases(model, tmp_path / "biases.npz")
    training.load_biases(other, tmp_path / "biases.npz")
    (batch,) = text_batches(1)
    assert torch.equal(other.eval()(batch).logits, model.eval()(batch).logits)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda arrays: arrays.pop("metadata"), "is not a file of save_biases"),
        (lambda arrays: arrays.update(metadata=np.array("{}")), "is not a file of save_biases"),
        (lambda arrays: arrays.pop("bias/model.layers.1.mlp"), r"it lacks \['model.layers.1.mlp'\]"),
        (lambda arrays: arrays.update({"bias/model.layers.1.mlp": np.zeros(4)}), "the model has 8 experts there"),
        (lambda arrays: arrays.update({"bias/model.layers.1.mlp": np.full(8, np.nan)}), "not finite"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(spoil, message, tmp_path):
    model = make_model()
    train(model, LoadBalancer.attach(model, schedule=0.01, rule="sign"), text_batches(1))
    training.save_biases(model, tmp_path / "biases.npz")
    arrays = dict(np.load(tmp_path / "biases.npz"))
    spoil(arrays)
    np.savez(tmp_path / "biases.npz", **arrays)
    other = make_model()
    with pytest.raises(ValueError, match=message):
        training.load_biases(other, tmp_path / "biases.npz")
    assert not any(other.get_submodule(f"model.layers.{n}.mlp.gate").e_score_correction_bias.any() for n in (1, 2))
