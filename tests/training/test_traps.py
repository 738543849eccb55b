"""What trainers do besides training: generation, skipped steps, frozen layers, copies, half a batch, adapters."""

import copy
import io

import numpy as np
import pytest

from tests._extras import require
from tests.training.models import (
    BATCH,
    LENGTH,
    NUM_EXPERTS,
    TOP_K,
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


def test_nothing_is_counted_while_paused():
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    (batch,) = text_batches(1)
    with balancer.paused():
        model.generate(batch[:, :4], max_new_tokens=3, do_sample=False)
        with balancer.paused():
            model(batch)
        model(batch)
    with pytest.raises(RuntimeError, match="no token was counted"):
        balancer.step()
    with pytest.raises(ZeroDivisionError), balancer.paused():
        raise ZeroDivisionError
    model(batch)
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K


def test_counts_of_a_skipped_step_are_discarded():
    model = feeds()
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    model(torch.zeros(50, 1, dtype=torch.int64))
    balancer.discard()
    model(torch.arange(8).view(8, 1))
    assert balancer.step().layers[0].load_E.tolist() == [1] * 8


def test_a_frozen_layer_is_counted_and_stays():
    model = feeds()
    balancer = LoadBalancer.attach(model, "ema", 0.1)
    balancer.freeze("1")
    (report,) = feed(model, balancer, range(1))
    assert report.layers[1].load_E.sum() > 0
    assert not balancer.biases["1"].any()
    assert balancer.biases["0"].any()
    resumed = LoadBalancer.attach(feeds(), "ema", 0.1)
    resumed.load_state_dict(balancer.state_dict())
    for one in (balancer, resumed):
        one.unfreeze("0")
    other = feeds()
    third = LoadBalancer.attach(other, "ema", 0.1)
    third.load_state_dict(balancer.state_dict())
    feed(other, third, [1])
    assert not third.biases["1"].any()
    third.unfreeze("1")
    feed(other, third, [2])
    assert third.biases["1"].any()
    with pytest.raises(ValueError, match="layer is '5'; this balancer has 0, 1"):
        balancer.freeze("5")


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_a_copy_of_an_attached_model_is_not_counted(way):
    """An exponential average of the weights, a reference model for preference tuning, a whole-model checkpoint."""
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    if way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    (batch,) = text_batches(1)
    other(batch)
    with pytest.raises(RuntimeError, match="no token was counted"):
        balancer.step()
    model(batch)
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K
    assert not any(tensor.any() for tensor in bias_tensors(other).values())
    assert len(LoadBalancer.attach(other, rule="sign").layer_names) == 2, "a copy can have a balancer of its own"


def test_a_step_between_accelerates_micro_batches_is_refused():
    require("accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    try:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model, optimizer = accelerator.prepare(model, optimizer)
        balancer = LoadBalancer.attach(model, rule="sign")
        for number, batch in enumerate(text_batches(4)):
            with accelerator.accumulate(model):
                accelerator.backward(model(input_ids=batch, labels=batch).loss)
                optimizer.step()
                optimizer.zero_grad()
                if number % 2 == 0:
                    with pytest.raises(
                        RuntimeError, match=r"call step.. only where accelerator.sync_gradients is true"
                    ):
                        balancer.step()
                if accelerator.sync_gradients:
                    report = balancer.step()
        assert balancer.num_steps == 2
        assert report.layers[0].load_E.sum() == 2 * BATCH * LENGTH * TOP_K
    finally:
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"modules_to_save": ["gate"]},
        {"target_modules": ["o_proj"]},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_adapters_of_peft(options, tmp_path):
    """Names, counts, and biases that the adapter's checkpoint leaves out."""
    peft = require("peft")
    names = LoadBalancer.attach(make_model(), rule="sign").layer_names
    config = peft.LoraConfig(r=2, **{"target_modules": ["o_proj"], **options})
    model = peft.get_peft_model(make_model(), config)
    balancer = LoadBalancer.attach(model, schedule=0.01, rule="sign")
    assert balancer.layer_names == names
    (batch,) = text_batches(1)
    model(input_ids=batch, labels=batch).loss.backward()
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K
    model.save_pretrained(tmp_path)
    training.save_biases(model, tmp_path / "biases.npz")
    fresh = peft.PeftModel.from_pretrained(make_model(), tmp_path)
    training.load_biases(fresh, tmp_path / "biases.npz")
    torch.testing.assert_close(fresh.eval()(batch).logits, model.eval()(batch).logits)


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_the_trainable_copy_of_a_gate_is_the_one_that_is_balanced():
    """PEFT keeps the original gate beside the copy that routes; the bias of the copy moves, the original's stays."""
    peft = require("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["gate"])
    model = peft.get_peft_model(make_model(), config)
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    train(model, balancer, text_batches(1))
    for name in balancer.layer_names:
        gate = model.get_base_model().get_submodule(f"{name}.gate")
        assert gate.modules_to_save["default"].e_score_correction_bias.any()
        assert not gate.original_module.e_score_correction_bias.any()


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_adapters_that_copy_the_gate_after_attaching_are_noticed():
    """The balancer would move the bias of the original, which routes no token any more."""
    peft = require("peft")
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["gate"]))
    (batch,) = text_batches(1)
    adapted(input_ids=batch)
    with pytest.raises(RuntimeError, match=r"the router of model.layers.1.mlp has been replaced since attach"):
        balancer.step()
    harmless = make_model()
    balancer = LoadBalancer.attach(harmless, rule="sign")
    peft.get_peft_model(harmless, peft.LoraConfig(r=2, target_modules=["o_proj"]))(input_ids=batch)
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_of_several_adapters_the_active_one_is_balanced():
    peft = require("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["gate"])
    model = peft.get_peft_model(make_model(), config)
    model.add_adapter("second", config)
    model.set_adapter("second")
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    train(model, balancer, text_batches(1))
    copies = model.get_base_model().get_submodule(f"{balancer.layer_names[0]}.gate").modules_to_save
    assert copies["second"].e_score_correction_bias.any()
    assert not copies["default"].e_score_correction_bias.any()


def test_a_block_described_with_a_bias_but_built_without_is_left_out():
    class Block(torch.nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.bias = bias

        def forward(self, picks):
            return picks

    training.describe_router(Block, bias="bias", argument="picks")
    model = torch.nn.Sequential(Block(None), Block(torch.nn.Buffer(torch.zeros(NUM_EXPERTS))))
    assert LoadBalancer.attach(model, rule="sign").layer_names == ["1"]
    with pytest.raises(ValueError, match="described, but their bias is None"):
        LoadBalancer.attach(torch.nn.Sequential(Block(None)), rule="sign")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-3, "1e-3", None])
def test_a_schedule_that_goes_wrong_is_refused_where_it_does_and_changes_nothing(value):
    model = feeds()
    balancer = LoadBalancer.attach(model, "sign", lambda t: 0.1 if t < 3 else value)
    feed(model, balancer, range(2))
    before = [tensor.clone() for tensor in (model[0].bias, model[1].bias)]
    with pytest.raises(ValueError, match=r"at step 3|step size|schedule"):
        feed(model, balancer, [2])
    assert torch.equal(model[0].bias, before[0])
    assert torch.equal(model[1].bias, before[1])
    assert balancer.num_steps == 2
    assert np.isfinite(balancer.biases["0"]).all()


def test_skipping_experts_are_counted_as_themselves():
    """zaya hands its experts index 0 where a token skips them; longcat_flash has experts that compute nothing."""
    from tests.training.families import build, moe_blocks

    blocks = {family: (cls, configs) for family, cls, configs in moe_blocks() if family in ("zaya", "longcat_flash")}
    for cls, configs in blocks.values():
        block = build(cls, configs)
        balancer = LoadBalancer.attach(torch.nn.ModuleDict({"mlp": block}), "none")
        with torch.no_grad():
            next(iter(balancer._layers.values())).slot.router.bias[-1] = 100.0
        balancer.read_biases()
        block(torch.randn(2, 12, 16))
        load_E = balancer.step().layers[0].load_E
        assert load_E[-1] == 24, "every token picks the last expert, which skips"
