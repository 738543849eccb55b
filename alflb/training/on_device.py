"""Steps that do not wait for the device: bias and memory stay there, and errors are raised when numbers are read.

A number that decides something on the host makes it wait for all that the device has still to do. So nothing is decided
there: both outcomes of a step are computed, and the device keeps the right one. What would be an error is written down,
and the biases stay as they are. Layers with equally many experts on one device are moved together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alflb.rules import Observation, Rule
from alflb.training.layer import NO_TOKENS, Layer
from alflb.training.memory import map_arrays
from alflb.training.step_report import LayerReport

_REASONS = 3
"""What can be wrong with a layer: faulty picks, a bias that somebody else has changed, a bias that is not finite."""


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What the layers of a stack keep, a row for each."""

    bias_LE: torch.Tensor
    total_LE: torch.Tensor
    state: Any


@dataclass(frozen=True, eq=False)
class _Move:
    """Where a step would take the layers of a stack."""

    load_LE: torch.Tensor
    bias_LE: torch.Tensor
    state: Any
    wrong_LR: torch.Tensor
    """A number for each reason not to go there; 0 for none."""


class _Stack:
    """Layers with equally many experts on one device."""

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        def placed(*rows: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.stack(rows)).to(device)

        self.layers = layers
        self.device = device
        self._weight_LE = placed(*(layer.weight_E for layer in layers))
        self._weight_sum_L1 = placed(*(layer.weight_E.sum(keepdims=True) for layer in layers))
        bias_LE, total_LE = placed(*(layer.bias_E for layer in layers)), placed(*(layer.total_E for layer in layers))
        self.now = _Numbers(bias_LE, total_LE, map_arrays(placed, *(layer.state for layer in layers)))

    def move(self, rule: Rule, counts: Mapping[str, torch.Tensor], t: int) -> _Move:
        """One step of the rule for every layer that is not frozen, and what is wrong with it."""
        counts_LE = torch.stack([counts[layer.name].to(self.device) for layer in self.layers])
        load_LE, num_faulty_L = counts_LE[:, :-1], counts_LE[:, -1]

        def step(bias_E: Any, load_E: Any, target_E: Any, state: Any) -> tuple[Any, Any]:
            return rule.step(bias_E, Observation(t, target_E, load_E=load_E), state)

        whole_LE = load_LE.double()
        target_LE = whole_LE.sum(dim=1, keepdim=True) * self._weight_LE / self._weight_sum_L1
        bias_LE, state = torch.vmap(step)(self.now.bias_LE, whole_LE, target_LE, self.now.state)
        moves_L1 = (load_LE.any(dim=1) & ~self._frozen_L())[:, None]
        bias_LE, state = _chosen(moves_L1, (bias_LE, state), (self.now.bias_LE, self.now.state))
        infinite_L = ~bias_LE.isfinite().all(dim=1)
        wrong_LR = torch.stack([num_faulty_L, self._changed_L().long(), infinite_L.long()], dim=1)
        return _Move(load_LE, bias_LE, state, wrong_LR)

    def take(self, move: _Move, refused: torch.Tensor) -> None:
        """The new numbers, unless the step is refused."""
        taken = ~refused.to(self.device)
        bias_LE, state = _chosen(taken, (move.bias_LE, move.state), (self.now.bias_LE, self.now.state))
        self.now = _Numbers(bias_LE, self.now.total_LE + move.load_LE * taken, state)
        for layer, bias_E in zip(self.layers, bias_LE):
            if layer.slot is not None:
                layer.slot.write(bias_E)

    def _frozen_L(self) -> torch.Tensor:
        yes = torch.ones((), dtype=torch.bool, device=self.device)
        return torch.stack([yes if layer.frozen else ~yes for layer in self.layers])

    def _changed_L(self) -> torch.Tensor:
        same = torch.zeros((), dtype=torch.bool, device=self.device)
        slots = [layer.slot for layer in self.layers]
        return torch.stack([same if slot is None else slot.is_changed(slot.current(self.device)) for slot in slots])


class DeviceSteps:
    """The layers of a balancer on their devices.

    Parameters
    ----------
    rule : Rule
        One that runs on tensors.
    layers : sequence of Layer
        Layers on the host; their numbers are taken at the first step, and brought up to date by `fetch`.
    """

    def __init__(self, rule: Rule, layers: Sequence[Layer]) -> None:
        self._rule = rule
        self._layers = layers
        self.forget()

    def forget(self) -> None:
        """Take the numbers of the layers anew at the next step: they have been changed on the host."""
        self._stacks: list[_Stack] = []
        self._first_refusal: torch.Tensor | None = None

    def step(
        self, counts: Mapping[str, torch.Tensor], any_token: torch.Tensor, t: int, device: torch.device
    ) -> Callable[[], tuple[LayerReport, ...]]:
        """Move all layers by what has been counted, or none of them.

        Parameters
        ----------
        counts : mapping of str to int64 torch.Tensor
            Loads of each layer, and its number of faulty picks.
        any_token : bool torch.Tensor
            Whether any rank has counted anything.
        t : int
            Number of the step.
        device : torch.device
            Where the layers' numbers are put together, and where those of a layer without a model are.

        Returns
        -------
        callable
            What reads the layers' reports, waiting for the device; it raises what the step would have raised.
        """
        if not self._stacks:
            self._stacks = _stacked(self._layers, device)
        stacks = self._stacks
        moves = [stack.move(self._rule, counts, t) for stack in stacks]
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        wrong = torch.cat([nothing, *(move.wrong_LR.flatten().to(device) for move in moves)])
        refused = wrong.any() | ~any_token
        evidence = torch.cat([(refused * t).long()[None], wrong])
        first = evidence if self._first_refusal is None else self._first_refusal
        self._first_refusal = torch.where(first[0] > 0, first, evidence)
        before = [stack.now for stack in stacks]
        for stack, move in zip(stacks, moves):
            stack.take(move, refused)
        after = [stack.now for stack in stacks]

        def read() -> tuple[LayerReport, ...]:
            _raise_refusal(stacks, evidence)
            loads = _rows(stacks, [move.load_LE for move in moves])
            totals = _rows(stacks, [now.total_LE for now in after])
            biases = _rows(stacks, [now.bias_LE for now in after])
            previous = _rows(stacks, [now.bias_LE for now in before])
            return tuple(
                layer.describe(loads[layer], totals[layer], biases[layer], previous[layer])
                for layer in self._layers
                if loads[layer].any()
            )

        return read

    def fetch(self) -> None:
        """Bring the layers on the host up to date, waiting for the device.

        Raises
        ------
        RuntimeError, ValueError
            If a step since the last look has been refused: what the first such step would have raised.
        """
        biases = _rows(self._stacks, [stack.now.bias_LE for stack in self._stacks])
        totals = _rows(self._stacks, [stack.now.total_LE for stack in self._stacks])
        for stack in self._stacks:
            state = map_arrays(lambda rows_LE: rows_LE.cpu().numpy(), stack.now.state)
            for index, layer in enumerate(stack.layers):
                layer.bias_E, layer.total_E = biases[layer], totals[layer]
                layer.state = map_arrays(lambda rows_LE, index=index: rows_LE[index].copy(), state)
        evidence, self._first_refusal = self._first_refusal, None
        if evidence is not None:
            _raise_refusal(self._stacks, evidence)

    def biases(self) -> dict[str, torch.Tensor]:
        """The biases where they are; empty before the first step."""
        rows = ((stack.layers, stack.now.bias_LE.clone()) for stack in self._stacks)
        return {layer.name: bias_E for layers, bias_LE in rows for layer, bias_E in zip(layers, bias_LE)}


def _stacked(layers: Sequence[Layer], device: torch.device) -> list[_Stack]:
    """The layers by number of experts and device."""
    alike: dict[tuple[int, torch.device], list[Layer]] = {}
    for layer in layers:
        place = device if layer.slot is None else layer.slot.device
        alike.setdefault((layer.num_experts, place), []).append(layer)
    return [_Stack(members, place) for (_, place), members in alike.items()]


def _chosen(condition: torch.Tensor, new: Any, old: Any) -> Any:
    """`new` where the condition holds, `old` elsewhere."""
    return map_arrays(lambda one, other: torch.where(condition, one, other), new, old)


def _rows(stacks: Sequence[_Stack], numbers: Sequence[torch.Tensor]) -> dict[Layer, NDArray[Any]]:
    """Each layer's row of a stack's numbers, as an array of its own."""
    on_host = [numbers_LE.cpu().numpy() for numbers_LE in numbers]
    rows = zip(stacks, on_host)
    return {layer: row_E.copy() for stack, rows_LE in rows for layer, row_E in zip(stack.layers, rows_LE)}


def _raise_refusal(stacks: Sequence[_Stack], evidence: torch.Tensor) -> None:
    """Raise what a refused step would have raised on the host; nothing for a step that was taken."""
    step, *wrong = evidence.tolist()
    if not step:
        return
    layers = [layer for stack in stacks for layer in stack.layers]
    for layer, (num_faulty, changed, infinite) in zip(layers, np.reshape(wrong, (-1, _REASONS))):
        layer.refuse_faulty(int(num_faulty))
        if changed and layer.slot is not None:
            raise layer.slot.foreign_change()
        if infinite:
            raise ValueError(f"the bias of {layer.name} after step {step} is not finite; use a smaller step size")
    raise RuntimeError(NO_TOKENS)
