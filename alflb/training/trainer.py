"""The balancer as a callback of ``transformers.Trainer``."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "alflb.training.trainer needs transformers: pip install 'alflb[models]'", name="transformers"
    ) from None

from alflb.training.balancer import LoadBalancer
from alflb.training.step_report import StepReport


class BalancerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is untyped here
    """Steps a balancer after every optimizer step of a Trainer, logs its numbers, saves and restores its state.

    The Trainer calls ``on_optimizer_step`` right after ``optimizer.step()``, once for all micro-batches of a gradient
    accumulation; evaluations in between run the model in eval mode and are not counted. The state goes into each
    checkpoint's ``trainer_state.json`` and is taken up by ``train(resume_from_checkpoint=...)``.

    Parameters
    ----------
    balancer : LoadBalancer
        Attached to the model that is passed to the Trainer.

    Notes
    -----
    Every training log gets the numbers of the latest step, with MaxVio_global over the steps since the log before.
    They stand in ``trainer.state.log_history`` in any case; for TensorBoard, W&B and the like to see them, the
    callback must come before theirs, which `add_to` takes care of and ``callbacks=[...]`` does not.

    With ``restore_callback_states_from_checkpoint=True`` the Trainer makes new callbacks from their saved arguments,
    which no balancer could be among: leave it False, the balancer's state is restored all the same.

    Examples
    --------
    ::

        trainer = Trainer(model=model, args=args, train_dataset=dataset)
        BalancerCallback(LoadBalancer.attach(model)).add_to(trainer)
        trainer.train()
    """

    def __init__(self, balancer: LoadBalancer | None = None) -> None:
        if not isinstance(balancer, LoadBalancer):
            raise ValueError(
                f"balancer is {balancer!r}; pass a LoadBalancer, and leave "
                "restore_callback_states_from_checkpoint False"
            )
        self.balancer = balancer
        self.report: StepReport | None = None
        """The latest step's."""

    def add_to(self, trainer: Any) -> None:
        """Register with a Trainer, ahead of the callbacks that write logs elsewhere."""
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the state of the checkpoint the Trainer has resumed from, or else the biases of the loaded model."""
        if state.global_step == 0:
            return
        saved = state.stateful_callbacks.setdefault(type(self).__name__)
        if saved is None:
            self.balancer.read_biases()
        else:
            file = io.BytesIO(base64.b64decode(saved["attributes"]["balancer_state"]))
            self.balancer.load_state_dict(torch.load(file, weights_only=True))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the balancer."""
        self.report = self.balancer.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Add the latest numbers to a training log."""
        if self.report is None or logs is None or "loss" not in logs:
            return
        numbers = self.report.as_dict()
        logs.update(numbers)
        state.log_history[-1].update(numbers)
        self.balancer.reset_totals()

    def state(self) -> dict[str, Any]:
        """The balancer's state as text, for ``trainer_state.json``."""
        file = io.BytesIO()
        torch.save(self.balancer.state_dict(), file)
        return {"args": {}, "attributes": {"balancer_state": base64.b64encode(file.getvalue()).decode()}}
