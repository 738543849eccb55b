"""A rule's memory as tensors and numbers, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from alflb.rules import State


def pack(state: State) -> Any:
    """A rule's memory in types that ``torch.load(weights_only=True)`` accepts.

    Parameters
    ----------
    state : State
        Arrays, numbers, None, and tuples and dataclasses of these.

    Raises
    ------
    ValueError
        For anything else.

    Examples
    --------
    >>> pack((np.zeros(2), 3))
    {'items': [tensor([0., 0.], dtype=torch.float64), 3]}
    """
    if is_dataclass(state) and not isinstance(state, type):
        return {"fields": {field.name: pack(getattr(state, field.name)) for field in fields(state)}}
    if isinstance(state, tuple):
        return {"items": [pack(value) for value in state]}
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, np.generic):
        return state.item()
    if state is None or isinstance(state, (bool, int, float)):
        return state
    raise ValueError(
        f"the rule keeps a {type(state).__name__}, which cannot be saved; use arrays, numbers, tuples and dataclasses"
    )


def map_arrays(function: Callable[..., Any], *states: State) -> State:
    """A function of the arrays of one memory, or of those at the same places of several; an array or a tuple of them.

    Examples
    --------
    >>> map_arrays(np.add, (np.zeros(2), np.ones(2)), (np.ones(2), np.ones(2)))
    (array([1., 1.]), array([2., 2.]))
    """
    if isinstance(states[0], tuple):
        return tuple(map_arrays(function, *parts) for parts in zip(*states))
    return function(*states)


def unpack(packed: Any, like: State) -> State:
    """The memory again, in the tuples and dataclasses of `like`, a memory of the same rule.

    Raises
    ------
    ValueError
        If arrays have another shape, tuples another length, or dataclasses other fields.

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
    if is_dataclass(like) and not isinstance(like, type):
        kinds = {field.name: getattr(like, field.name) for field in fields(like)}
        values = packed.get("fields", {})
        if set(values) == set(kinds):
            return replace(like, **{name: unpack(values[name], kind) for name, kind in kinds.items()})
    if isinstance(like, tuple) and len(packed.get("items", ())) == len(like):
        items = [unpack(value, kind) for value, kind in zip(packed["items"], like)]
        return type(like)(*items) if hasattr(like, "_fields") else tuple(items)  # a named tuple keeps its names
    raise ValueError(f"the rule's saved memory {packed} does not fit the one it has here, {like!r}")
