"""Steps that do not wait for the device: bias and memory stay there, and errors are raised when numbers are read.

A number that decides something on the host makes it wait for all that the device has still to do. So nothing is decided
there: both outcomes of a step are computed, and the device keeps the right one. What would be an error is written down,
and the biases stay as they are.
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


@dataclass(eq=False)
class _Placed:
    """A layer's numbers as tensors."""

    layer: Layer
    weight_E: torch.Tensor
    bias_E: torch.Tensor
    total_E: torch.Tensor
    state: Any


@dataclass(frozen=True, eq=False)
class _Move:
    """Where a step would take a layer."""

    placed: _Placed
    load_E: torch.Tensor
    bias_E: torch.Tensor
    state: Any
    wrong_R: torch.Tensor
    """One number for each of the reasons not to go there; 0 for none."""


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
        self._placed: list[_Placed] = []
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
            Where the layers' numbers are put together.

        Returns
        -------
        callable
            What reads the layers' reports, waiting for the device; it raises what the step would have raised.
        """
        if not self._placed:
            self._placed = [_place(layer, device) for layer in self._layers]
        moves = [_move(self._rule, placed, counts[placed.layer.name], t) for placed in self._placed]
        wrong_R = torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *(m.wrong_R.to(device) for m in moves)])
        refused = wrong_R.any() | ~any_token
        evidence = torch.cat([(refused * t).long()[None], wrong_R])
        if self._first_refusal is not None:
            evidence_so_far = torch.where(self._first_refusal[0] > 0, self._first_refusal, evidence)
        else:
            evidence_so_far = evidence
        self._first_refusal = evidence_so_far
        before = [placed.bias_E for placed in self._placed]
        for move in moves:
            _take(move, refused)
        after = [(placed.bias_E, placed.total_E) for placed in self._placed]

        def read() -> tuple[LayerReport, ...]:
            _raise_refusal(self._layers, evidence)
            biases = _on_host([*before, *(bias_E for bias_E, _ in after)])
            loads = _on_host([*(move.load_E for move in moves), *(total_E for _, total_E in after)])
            rows = zip(self._layers, loads, loads[len(moves) :], biases[len(moves) :], biases)
            return tuple(layer.describe(*numbers) for layer, *numbers in rows if numbers[0].any())

        return read

    def fetch(self) -> None:
        """Bring the layers on the host up to date, waiting for the device.

        Raises
        ------
        RuntimeError, ValueError
            If a step since the last look has been refused: what the first such step would have raised.
        """
        if not self._placed:
            return
        states: list[torch.Tensor] = []
        for placed in self._placed:
            map_arrays(states.append, placed.state)
        numbers = iter(_on_host([*(placed.bias_E for placed in self._placed), *states]))
        totals = _on_host([placed.total_E for placed in self._placed])
        for placed, total_E in zip(self._placed, totals):
            placed.layer.bias_E, placed.layer.total_E = next(numbers), total_E
        for placed in self._placed:
            placed.layer.state = map_arrays(lambda _: next(numbers), placed.state)
        evidence, self._first_refusal = self._first_refusal, None
        if evidence is not None:
            _raise_refusal(self._layers, evidence)

    def biases(self) -> dict[str, torch.Tensor]:
        """The biases where they are; empty before the first step."""
        return {placed.layer.name: placed.bias_E for placed in self._placed}


def _place(layer: Layer, device: torch.device) -> _Placed:
    """A layer's numbers where its bias is; where its counts go, for a layer without a model."""
    if layer.slot is not None:
        device = layer.slot.device

    def placed(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device, copy=True)

    return _Placed(
        layer, placed(layer.weight_E), placed(layer.bias_E), placed(layer.total_E), map_arrays(placed, layer.state)
    )


def _move(rule: Rule, placed: _Placed, counts: torch.Tensor, t: int) -> _Move:
    """One step of the rule, and what is wrong with it."""
    layer, bias_E, state = placed.layer, placed.bias_E, placed.state
    counts = counts.to(bias_E.device)
    load_E, num_faulty = counts[: layer.num_experts], counts[layer.num_experts]
    if not layer.frozen:
        whole_E: Any = load_E.double()
        target_E: Any = whole_E.sum() * placed.weight_E / float(layer.weight_E.sum())
        bias_E, state = rule.step(bias_E, Observation(t, target_E, load_E=whole_E), state)
    infinite = ~bias_E.isfinite().all() & load_E.any()
    changed = (
        torch.zeros_like(infinite) if layer.slot is None else layer.slot.is_changed(layer.slot.current(bias_E.device))
    )
    return _Move(placed, load_E, bias_E, state, torch.stack([num_faulty, changed.long(), infinite.long()]))


def _take(move: _Move, refused: torch.Tensor) -> None:
    """The new numbers of a layer that saw tokens, if nothing is wrong; the old ones otherwise."""
    placed, refused = move.placed, refused.to(move.load_E.device)
    moves = move.load_E.any() & ~refused
    placed.bias_E = torch.where(moves, move.bias_E, placed.bias_E)
    placed.state = map_arrays(lambda new, old: torch.where(moves, new, old), move.state, placed.state)
    placed.total_E = placed.total_E + move.load_E * ~refused
    if placed.layer.slot is not None:
        placed.layer.slot.write(placed.bias_E)


def _raise_refusal(layers: Sequence[Layer], evidence: torch.Tensor) -> None:
    """Raise what a refused step would have raised on the host; nothing for a step that was taken."""
    step, *wrong = evidence.tolist()
    if not step:
        return
    wrong_LR = np.array(wrong, dtype=np.int64).reshape(-1, _REASONS)
    for layer, (num_faulty, changed, infinite) in zip(layers, wrong_LR):
        layer.refuse_faulty(int(num_faulty))
        if changed and layer.slot is not None:
            raise layer.slot.foreign_change()
        if infinite:
            raise ValueError(f"the bias of {layer.name} after step {step} is not finite; use a smaller step size")
    raise RuntimeError(NO_TOKENS)


def _on_host(vectors: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
    """Vectors of one dtype as arrays; one copy for those of a device."""
    if not vectors:
        return []
    flat = torch.cat([vector.to(vectors[0].device) for vector in vectors]).cpu()
    return [part.numpy().copy() for part in flat.split([len(vector) for vector in vectors])]
