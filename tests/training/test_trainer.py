"""The callback in real runs of transformers.Trainer."""

import json

import numpy as np
import pytest

from tests._extras import require
from tests.training.models import (
    BATCH,
    LENGTH,
    TOP_K,
    bias_tensors,
    make_model,
    text_batches,
    torch,
    training,
    transformers,
)

LoadBalancer = training.LoadBalancer

require("accelerate")  # of transformers.Trainer
BalancerCallback = require("alflb.training.trainer").BalancerCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own, of many packages


class LogsAsReportersSeeThem(transformers.TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def make_trainer(folder, max_steps, accumulate=1, model=None, **options):
    """A Trainer on consecutive pieces of text, with a balancer, and what reporting callbacks would log."""
    model = model or make_model()
    reporter = LogsAsReportersSeeThem()
    pieces = text_batches(8, 1)[:, 0]
    dataset = [{"input_ids": piece, "labels": piece} for piece in pieces]
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=max_steps, per_device_train_batch_size=BATCH, learning_rate=1e-3,
        gradient_accumulation_steps=accumulate, logging_steps=1, save_steps=2, report_to=[], use_cpu=True,
        disable_tqdm=True, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=args, train_dataset=dataset, eval_dataset=dataset[:2], callbacks=[reporter]
    )
    callback = BalancerCallback(LoadBalancer.attach(model, "ema", 0.01))
    callback.add_to(trainer)
    return trainer, callback, reporter


def from_checkpoint(folder):
    """The model of a Trainer's checkpoint.

    Resuming alone does not do: transformers 5.23 saves the experts' weights one by one, and its Trainer then loads
    the file without putting them together again (it warns of missing keys).
    """
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoint-2")


def biases(callback):
    return np.stack(list(callback.balancer.biases.values()))


def test_one_step_an_optimizer_step_with_numbers_in_every_log(tmp_path):
    """Gradient accumulation and checkpointing on, an evaluation after every step."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "gradient_checkpointing": True}
    trainer, callback, reporter = make_trainer(tmp_path, 3, accumulate=2, save_strategy="no", **options)
    trainer.train()
    assert callback.balancer.num_steps == 3
    assert callback.report.layers[0].load_E.sum() == 2 * BATCH * LENGTH * TOP_K
    assert np.ptp(biases(callback)) > 0
    training = [log for log in trainer.state.log_history if "loss" in log]
    seen = [log for log in reporter.logs if "loss" in log]
    assert len(training) == len(seen) == 3
    for log, other in zip(training, seen):
        assert log["alflb/layer_01/max_vio"] == log["alflb/layer_01/max_vio_global"] > 0
        assert other["alflb/layer_01/max_vio"] == log["alflb/layer_01/max_vio"]
    assert not any("alflb/max_vio_mean" in log for log in reporter.logs if "eval_loss" in log)


def test_a_resumed_trainer_has_the_bias_path_of_an_undisturbed_one(tmp_path):
    whole, whole_callback, _ = make_trainer(tmp_path / "whole", 4)
    whole.train()
    first, _, _ = make_trainer(tmp_path / "parts", 2)
    first.train()
    second, callback, _ = make_trainer(tmp_path / "parts", 4, model=from_checkpoint(tmp_path / "parts"))
    second.train(resume_from_checkpoint=True)
    assert callback.balancer.num_steps == 4
    assert biases(callback).tobytes() == biases(whole_callback).tobytes()
    assert all(
        torch.equal(one, other)
        for one, other in zip(bias_tensors(whole.model).values(), bias_tensors(second.model).values(), strict=True)
    )


def test_a_checkpoint_made_without_a_balancer_gives_its_biases(tmp_path):
    first, _, _ = make_trainer(tmp_path, 2)
    first.train()
    file = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["BalancerCallback"]
    file.write_text(json.dumps(state))
    saved = [tensor.double() for tensor in bias_tensors(first.model).values()]
    second, callback, _ = make_trainer(tmp_path, 4, model=make_model(seed=1))
    second.train(resume_from_checkpoint=True)
    assert callback.balancer.num_steps == 2
    moved = biases(callback) - torch.stack(saved).numpy()
    assert 0 < np.abs(moved).max() < 0.05


def test_a_callback_without_a_balancer_says_what_to_do():
    with pytest.raises(
        ValueError, match="pass a LoadBalancer, and leave restore_callback_states_from_checkpoint False"
    ):
        BalancerCallback()
