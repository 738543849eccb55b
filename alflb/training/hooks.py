"""Hooks that stay behind when a model is copied or saved: a copy is neither counted nor recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Seen = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]
"""Called with the router, the numbers it ranked, shape (..., E), and the indices it picked, shape (..., K)."""


class LocalHook:
    """A hook of one model only: ``copy.deepcopy`` and ``pickle`` replace it by one that does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """What the hook does."""
        return self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalHook, (_do_nothing,)


def _do_nothing(*args: Any) -> None:
    """What is left of a hook in a copy."""


class TopKWatcher:
    """Shows every choice a router makes by ``torch.topk`` over its experts, and nothing of its other calls.

    The last such call of a forward pass is the choice: routers with groups rank groups first.
    """

    def __init__(self, num_experts: int, seen: Seen) -> None:
        self._num_experts = num_experts
        self._seen = seen
        self._modes: list[_Watching] = []

    def attach(self, router: nn.Module) -> list[Any]:
        """Watch a module from now on; the handles of its hooks.

        The watcher is entered last and left first, so that it sees the picks after `BiasedTopK` has changed them.
        """
        return [
            router.register_forward_pre_hook(LocalHook(self._enter)),
            router.register_forward_hook(LocalHook(self._leave), prepend=True, always_call=True),
        ]

    def _enter(self, router: nn.Module, args: tuple[Any, ...]) -> None:
        self._modes.append(_Watching(self._num_experts))
        self._modes[-1].__enter__()

    def _leave(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mode = self._modes.pop()
        mode.__exit__(None, None, None)
        if mode.choice is not None:
            with torch._C.DisableTorchFunction():  # what looks on may call topk itself, unseen by the other hooks here
                self._seen(router, *mode.choice)


class BiasedTopK:
    """Makes a router choose by score + ``expert_bias`` and weight by the score alone.

    While the router's forward runs, each ``torch.topk`` over its E experts ranks the biased numbers, and returns the
    numbers without the bias at the chosen places. What the router makes of them (softmax, normalization, scaling) stays
    its own code. It holds no reference to the model, so a copy of the model keeps its biased choice.
    """

    def __init__(self) -> None:
        self._modes: list[_Biased] = []

    def attach(self, router: nn.Module) -> None:
        """Change the choice of a module that has a buffer ``expert_bias``."""
        router.register_forward_pre_hook(self.enter)
        router.register_forward_hook(self.leave, always_call=True)

    def enter(self, router: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the router's forward."""
        self._modes.append(_Biased(router.expert_bias))
        self._modes[-1].__enter__()

    def leave(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it, also if it failed."""
        self._modes.pop().__exit__(None, None, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return BiasedTopK, ()


class _Watching(TorchFunctionMode):  # type: ignore[misc]  # untyped in torch
    """Remembers the last choice among `num_experts`."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self._num_experts = num_experts
        self.choice: tuple[torch.Tensor, torch.Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _ranks(func, args, kwargs, self._num_experts):
            self.choice = _ranked(args, kwargs).detach(), result[1]
        return result


class _Biased(TorchFunctionMode):  # type: ignore[misc]  # untyped in torch
    """Ranks score + bias, returns the scores."""

    def __init__(self, bias_E: torch.Tensor) -> None:
        super().__init__()
        self._bias_E = bias_E

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _ranks(func, args, kwargs, self._bias_E.numel()):
            return func(*args, **kwargs)
        scores = _ranked(args, kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "input"}
        picks = func(scores.detach() + self._bias_E, *args[1:], **rest)[1]
        return torch.return_types.topk((scores.gather(-1, picks), picks))


def _ranks(func: Any, args: Any, kwargs: Any, num_experts: int) -> bool:
    return func in (torch.topk, torch.Tensor.topk) and bool(_ranked(args, kwargs).shape[-1] == num_experts)


def _ranked(args: Any, kwargs: Any) -> torch.Tensor:
    return args[0] if args else kwargs["input"]
