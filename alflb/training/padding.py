"""Which tokens of the forward pass in progress count: all but padding, or none while counting is paused."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from alflb.training.hooks import LocalHook


class Padding:
    """Remembers the ``attention_mask`` that a model is called with, until that call returns.

    Only masks of shape (batch, length), 0 for padding, say which tokens are real; others are ignored.
    """

    def __init__(self) -> None:
        self.real_T: torch.Tensor | None = None
        """False for padding, one entry per token of the call in progress; None if every token is real."""
        self.paused = False
        """Whether nothing is to be counted."""

    def watch(self, model: nn.Module) -> list[Any]:
        """Look at the mask of every call of a model from now on; the handles of the hooks."""
        return [
            model.register_forward_pre_hook(LocalHook(self._before), prepend=True, with_kwargs=True),
            model.register_forward_hook(LocalHook(self._after), always_call=True),
        ]

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = _mask_of(model, args, kwargs)
        two_dimensional = isinstance(mask, torch.Tensor) and mask.ndim == 2
        self.real_T = mask.detach().reshape(-1) != 0 if two_dimensional else None

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.real_T = None


def _mask_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument ``attention_mask`` of a call, by name or by place."""
    if "attention_mask" in kwargs:
        return kwargs["attention_mask"]
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    place = names.index("attention_mask") if "attention_mask" in names else len(args)
    return args[place] if place < len(args) else None
