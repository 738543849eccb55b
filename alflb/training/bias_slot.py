"""The tensor in a model that holds a router's bias: reading, writing, and noticing that somebody else wrote it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alflb.problem import check_bias
from alflb.training.routers import Router

_WIDE = (torch.float32, torch.float64)


class BiasSlot:
    """Where one router keeps its bias.

    A bias kept in 16 bits is replaced by a float32 one at once, so that whoever takes a reference to it afterwards,
    ``model.state_dict()`` included, sees every later step.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        bias_E = self.read()
        if self.router.bias.dtype not in _WIDE:
            self.write(bias_E)

    @property
    def device(self) -> torch.device:
        """Where the bias is now."""
        return self.router.bias.device

    @property
    def num_experts(self) -> int:
        """E."""
        return self.router.bias.numel()

    def read(self) -> NDArray[np.float64]:
        """The bias in the model, shape (E,); ValueError if it is not one, or not finite."""
        self._written = check_tensor(self.router).detach().cpu().clone()
        flat_E = self._written.double().flatten().numpy()
        return check_bias(flat_E, len(flat_E), name=self.router.path)

    def write(self, bias_E: NDArray[np.float64] | torch.Tensor) -> None:
        """Put a bias into the model, rounded to float32 (float64 where the model keeps that)."""
        bias = self.router.bias
        wide = bias.dtype in _WIDE
        self._written = torch.as_tensor(bias_E).to(bias.dtype if wide else torch.float32).view(bias.shape)
        if wide:
            with torch.no_grad():
                bias.copy_(self._written)
        elif isinstance(bias, nn.Parameter):
            bias.data = self._written.to(bias.device, copy=True)
        else:
            setattr(self.router.owner, self.router.attribute, self._written.to(bias.device, copy=True))

    def current(self, device: torch.device) -> torch.Tensor:
        """The bias as the model has it, flat, on a device."""
        return check_tensor(self.router).detach().flatten().to(device)

    def is_changed(self, now: torch.Tensor) -> torch.Tensor:
        """Whether `now`, the model's bias, is not what was written last, up to a cast of the model since then."""
        self._written = self._written.to(now.device)
        expected = self._written.flatten().to(self.router.bias.dtype)
        return (now.double() != expected.double()).any()

    def foreign_change(self) -> RuntimeError:
        """What to raise where somebody else has changed the bias."""
        return RuntimeError(
            f"{self.router.path} has been changed since the balancer wrote it: by an optimizer or a second "
            "balancer, which must not, or by loading a model, after which load the balancer's state as well "
            "(load_state_dict) or start from what was loaded (read_biases)"
        )


def check_tensor(router: Router) -> torch.Tensor:
    """The router's bias, if a balancer can own it; ValueError says why it cannot."""
    bias = router.bias
    if bias.requires_grad:
        raise ValueError(
            f"{router.path} requires grad, so an optimizer may move it; call .requires_grad_(False) on it before the "
            "optimizer is made"
        )
    if bias.is_meta:
        raise ValueError(f"{router.path} is on the meta device; load or initialize the model first, then attach")
    if _is_sharded(bias):
        raise ValueError(
            f"{router.path} is sharded; leave it out of sharding, so that every rank holds it whole (FSDP1: "
            "ignored_states; FSDP2: ignored_params; ZeRO-3: keep it in a buffer), then attach"
        )
    if not bias.is_floating_point() or bias.numel() != max(bias.shape, default=0):
        raise ValueError(
            f"{router.path} is {bias.dtype} of shape {tuple(bias.shape)}; a selection bias is one real number for each "
            "expert, shape (E,) or (1, E)"
        )
    return bias


def _is_sharded(bias: torch.Tensor) -> bool:
    """Whether this rank holds a part only: a DTensor, a view into FSDP1's flat parameter, or nothing (ZeRO-3)."""
    flattened = bool(getattr(bias, "_fsdp_flattened", False))
    return type(bias).__name__ == "DTensor" or flattened or bias.numel() == 0 or hasattr(bias, "ds_id")
