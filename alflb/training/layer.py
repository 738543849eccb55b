"""One balanced layer: its counts on the device, the master bias and the rule's memory on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from alflb.problem import check_bias
from alflb.rules import Observation, Rule, State
from alflb.rules.binned_qb import BinnedQuantileBalancing
from alflb.training.bias_slot import BiasSlot
from alflb.training.hooks import LocalHook, TopKWatcher
from alflb.training.memory import pack, unpack
from alflb.training.padding import Padding
from alflb.training.picks import PickCounter
from alflb.training.routers import Chooser, Router, has_added_bias
from alflb.training.score_bins import ScoreBins
from alflb.training.step_report import LayerReport

NO_TOKENS = (
    "no token was counted since the last step: call step() once after each optimizer.step(), with the model in "
    "training mode during the forward passes (model.train())"
)


class Counted(NamedTuple):
    """What all ranks counted of one layer since the last step."""

    load_E: NDArray[np.int64]
    num_faulty: int
    """Picks that cannot be right."""
    counts_EB: NDArray[np.int64]
    """Tokens per expert and bin, for a rule that works on bins of scores; B = 0 for others."""


class Move(NamedTuple):
    """Where a step takes a layer; nothing has changed yet."""

    bias_E: NDArray[np.float64]
    state: State


class Layer:
    """Counts, bias and memory of one layer.

    Parameters
    ----------
    name, label : str
        Path in the model, and the short name for logs.
    bias : BiasSlot or int
        The tensor in a model that holds the bias; or the number of experts, for a layer whose model is not known here.
    rule : Rule
    target : array_like, shape (E,), optional
        Loads wanted, up to a common factor; equal ones if not given.
    """

    def __init__(self, name: str, label: str, bias: BiasSlot | int, rule: Rule, target: ArrayLike | None) -> None:
        self.name = name
        self.label = label
        self.slot = bias if isinstance(bias, BiasSlot) else None
        self.num_experts = bias.num_experts if isinstance(bias, BiasSlot) else bias
        self.weight_E = _check_target(target, self.num_experts, name)
        self.picks = PickCounter(name, self.num_experts)
        self.bins = ScoreBins(rule, self.num_experts) if isinstance(rule, BinnedQuantileBalancing) else None
        self.frozen = False
        self.state = rule.init(self.num_experts)
        self.total_E = np.zeros(self.num_experts, dtype=np.int64)
        self.bias_E = np.zeros(self.num_experts)
        self.read()
        self.previous_bias_E = self.bias_E

    def read(self) -> None:
        """Take the model's bias as the master bias."""
        if self.slot is not None:
            self.bias_E = self.slot.read()

    def count(self, module: nn.Module, picks: torch.Tensor, padding: Padding) -> None:
        """Add the picks of one forward pass, unless it is an evaluation or a recomputation."""
        if _counts_now(module, padding):
            self.picks.add(picks, padding.real_T)

    def count_scores(self, module: nn.Module, ranked: torch.Tensor, picks: torch.Tensor, padding: Padding) -> None:
        """Add the scores of one forward pass to the bins, from what the router ranked."""
        if self.bins is not None and _counts_now(module, padding):
            biased = ranked + module.expert_bias if has_added_bias(module) else ranked
            self.bins.add(biased, picks, self.bias_E, padding.real_T)

    def counts(self, device: torch.device) -> torch.Tensor:
        """What this rank has counted, one vector of integers."""
        loads = self.picks.total(device)
        return loads if self.bins is None else torch.cat([loads, self.bins.total(device)])

    def read_counts(self, counts: torch.Tensor) -> Counted:
        """The same, summed over ranks, in its parts."""
        loads, binned = counts[: self.num_experts + 1].numpy(), counts[self.num_experts + 1 :].numpy()
        return Counted(loads[:-1], int(loads[-1]), binned.reshape(self.num_experts, -1))

    def clear(self) -> None:
        """Forget what has been counted."""
        self.picks.clear()
        if self.bins is not None:
            self.bins.clear()

    def refuse_faulty(self, num_faulty: int) -> None:
        """ValueError if some of the picks cannot be right."""
        if num_faulty:
            raise ValueError(
                f"{num_faulty} of the picks counted for {self.name} cannot be right: a token picks different "
                f"experts, as many as every other token, numbered 0 to {self.num_experts - 1}. See whether "
                "describe_router points at the picks, or whether add_loads got whole numbers; discard() clears them"
            )

    def move(self, counted: Counted, rule: Rule, t: int) -> Move:
        """One step of the rule; ValueError if it leads to a bias that is not finite."""
        if self.frozen:
            return Move(self.bias_E, self.state)
        target_E = counted.load_E.sum() * self.weight_E / self.weight_E.sum()
        if isinstance(rule, BinnedQuantileBalancing):
            bias_E, state = rule.bias_of_counts(counted.counts_EB, self.bias_E, target_E), self.state
        else:
            bias_E, state = rule.step(self.bias_E, Observation(t, target_E, load_E=counted.load_E), self.state)
        return Move(check_bias(bias_E, self.num_experts, name=f"the bias of {self.name} after step {t}"), state)

    def apply(self, move: Move, counted: Counted) -> None:
        """Take a step, and put the bias into the model."""
        self.previous_bias_E = self.bias_E
        self.bias_E, self.state = move
        self.total_E = self.total_E + counted.load_E
        self.write()

    def write(self) -> None:
        """Put the master bias into the model, if there is one."""
        if self.slot is not None:
            self.slot.write(self.bias_E)

    def report(self, counted: Counted) -> LayerReport:
        """The layer's part of the report of the step just taken."""
        return self.describe(counted.load_E, self.total_E, self.bias_E.copy(), self.previous_bias_E)

    def describe(
        self,
        load_E: NDArray[np.int64],
        total_E: NDArray[np.int64],
        bias_E: NDArray[np.float64],
        previous_bias_E: NDArray[np.float64],
    ) -> LayerReport:
        """A report of this layer with these numbers."""
        return LayerReport(
            self.name,
            self.label,
            load_E,
            total_E,
            bias_E,
            previous_bias_E=previous_bias_E,
            target_E=self.weight_E,
            top_k=self.picks.top_k,
        )

    def save(self) -> dict[str, Any]:
        """What `restore` takes, in tensors, numbers and text."""
        return {
            "bias": torch.from_numpy(self.bias_E.copy()),
            "total_load": torch.from_numpy(self.total_E.copy()),
            "rule_state": pack(self.state),
            "frozen": self.frozen,
        }

    def check_saved(self, saved: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64], State, bool]:
        """Bias, summed loads, the rule's memory, whether it is frozen, as saved; ValueError if they do not fit."""
        refuse_missing({"bias", "total_load", "rule_state", "frozen"}, saved, f"state of layer {self.name!r}")
        bias_E = self._saved(saved, "bias", torch.float64)
        check_bias(bias_E, self.num_experts, name=f"the saved bias of layer {self.name!r}")
        total_E = self._saved(saved, "total_load", torch.int64)
        return bias_E, total_E, unpack(saved["rule_state"], self.state), bool(saved["frozen"])

    def restore(self, saved: tuple[NDArray[np.float64], NDArray[np.int64], State, bool]) -> None:
        """Go on from what `check_saved` returned; counts start from zero."""
        self.bias_E, self.total_E, self.state, self.frozen = saved
        self.clear()
        self.write()

    def _saved(self, saved: Mapping[str, Any], key: str, dtype: torch.dtype) -> NDArray[Any]:
        tensor = saved[key]
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.shape != (self.num_experts,):
            what = (
                f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else repr(tensor)
            )
            raise ValueError(
                f"{key} of layer {self.name!r} in state is {what}; this model has {self.num_experts} experts there, "
                f"and state_dict() saves {dtype} of shape ({self.num_experts},)"
            )
        return tensor.cpu().numpy().copy()


def watch(router: Router, layer: Layer, padding: Padding) -> list[Any]:
    """Count a router's picks from now on: hooks, first in line, so that they see what the router chose."""
    layout, module = router.layout, router.watched
    if layout.topk:
        return TopKWatcher(layer.num_experts, lambda module, _, picks: layer.count(module, picks, padding)).attach(
            module
        )
    if layout.argument is not None:

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            layer.count(module, router.picks(args, kwargs), padding)

        return [module.register_forward_pre_hook(LocalHook(before), prepend=True, with_kwargs=True)]

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layer.count(module, output[layout.output], padding)

    return [module.register_forward_hook(LocalHook(after), prepend=True)]


def watch_scores(chooser: Chooser, layer: Layer, padding: Padding) -> list[Any]:
    """Count the scores of a router that chooses by ``torch.topk`` from now on."""

    def see(module: nn.Module, ranked: torch.Tensor, picks: torch.Tensor) -> None:
        layer.count_scores(module, ranked, picks, padding)

    return TopKWatcher(layer.num_experts, see).attach(chooser.module)


def refuse_missing(expected: set[str], saved: Mapping[str, Any], name: str) -> None:
    """ValueError if a saved mapping lacks a key."""
    missing = sorted(expected - set(saved))
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; it was not saved whole")


def _check_target(target: ArrayLike | None, num_experts: int, name: str) -> NDArray[np.float64]:
    """The target, or equal loads."""
    if target is None:
        return np.ones(num_experts)
    target_E = np.asarray(target, dtype=np.float64)
    if target_E.shape != (num_experts,) or not np.isfinite(target_E).all() or target_E.min() <= 0:
        raise ValueError(
            f"target of layer {name!r} is {target_E.tolist()}; pass {num_experts} positive numbers, the loads "
            "wanted up to a common factor"
        )
    return target_E


def _counts_now(module: nn.Module, padding: Padding) -> bool:
    """Whether a forward pass is one to count: in training, not paused, and not a recomputation."""
    return module.training and not padding.paused and not _inside_backward()


def _inside_backward() -> bool:
    """Whether autograd is running a backward pass in this thread.

    A forward pass in there is a recomputation under activation checkpointing, whose tokens have been counted:
    with and without ``use_reentrant``, and in the checkpoint functions of other libraries. Gradient mode would not
    tell: the first pass of the reentrant kind runs without it, the recomputations of both with it. It is how
    ``torch.utils.checkpoint`` itself knows one backward pass from another.
    """
    return bool(torch._C._current_graph_task_id() != -1)
