"""A rule's memory as tensors, numbers and text, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from alflb.rules import State


def pack(state: State) -> Any:
    """A rule's memory in types that ``torch.load(weights_only=True)`` accepts.

    Examples
    --------
    >>> pack((np.zeros(2), 3))
    {'items': [tensor([0., 0.], dtype=torch.float64), 3]}
    """
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {"fields": {field.name: pack(getattr(state, field.name)) for field in dataclasses.fields(state)}}
    if isinstance(state, dict):
        return {"entries": {name: pack(value) for name, value in state.items()}}
    if isinstance(state, (tuple, list)):
        return {"items": [pack(value) for value in state]}
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, np.generic):
        return state.item()
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise ValueError(f"the rule keeps a {type(state).__name__}, which cannot be saved; use arrays, numbers and tuples")


def unpack(packed: Any, like: State) -> State:
    """The memory again, in the containers of `like`, a memory of the same rule; arrays are checked for shape.

    Examples
    --------
    >>> unpack(pack((np.ones(2), 3)), like=(np.zeros(2), 0))
    (array([1., 1.]), 3)
    """
    if isinstance(packed, torch.Tensor):
        array = packed.cpu().numpy().copy()
        if isinstance(like, np.ndarray) and array.shape != like.shape:
            raise ValueError(f"the rule's saved memory has shape {array.shape}; here it has {like.shape}")
        return array
    if not isinstance(packed, dict):
        return packed
    if set(packed) == {"fields"} and dataclasses.is_dataclass(like) and not isinstance(like, type):
        values = {name: unpack(value, getattr(like, name, None)) for name, value in packed["fields"].items()}
        return dataclasses.replace(like, **values)
    if set(packed) == {"entries"} and isinstance(like, dict):
        return {name: unpack(value, like.get(name)) for name, value in packed["entries"].items()}
    if set(packed) == {"items"} and isinstance(like, (tuple, list)):
        return _sequence(packed["items"], like)
    raise ValueError(
        f"the rule's saved memory {sorted(packed)} does not fit the one it has here ({type(like).__name__})"
    )


def _sequence(items: list[Any], like: tuple[Any, ...] | list[Any]) -> Any:
    """A tuple, named tuple or list of the kind of `like`."""
    values = [unpack(value, like[n] if n < len(like) else None) for n, value in enumerate(items)]
    if hasattr(like, "_fields"):
        return type(like)(*values)
    return type(like)(values)
