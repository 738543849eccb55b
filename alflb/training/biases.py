"""Biases in a file of their own, beside a checkpoint: for inference, for adapters, and for models given a bias."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from alflb.io import atomic_write
from alflb.traces.arrays import TraceError, read_arrays
from alflb.training.bias_slot import BiasSlot
from alflb.training.routers import Router, add_bias, find_routers, has_added_bias

_FORMAT = "alflb-biases"
_VERSION = 1


def save_biases(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write every router's bias to a ``.npz`` file, as the model holds it.

    ``save_pretrained`` of a PEFT adapter leaves out the base model's biases, and ``from_pretrained`` drops those that
    `add_bias` has added: save them beside the checkpoint, and load them by `load_biases`.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `find_routers` knows.
    path : path
        Where to write; replaced atomically.

    Raises
    ------
    ValueError
        For a model without a router that has a bias.
    """
    routers = find_routers(model)
    facts = {"format": _FORMAT, "version": _VERSION, "added": [r.name for r in routers if has_added_bias(r.owner)]}
    arrays: dict[str, NDArray[Any]] = {_KEY + router.name: router.bias.detach().cpu().numpy() for router in routers}
    with atomic_write(path) as file:
        np.savez(file, metadata=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]


def load_biases(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Put the biases of `save_biases` into a model, which chooses by them from now on, also without a balancer.

    Parameters
    ----------
    model : torch.nn.Module
        The same model, from its own checkpoint; routers that had been given a bias are given one again.
    path : path

    Returns
    -------
    list of str
        Names of the layers that have been set.

    Raises
    ------
    ValueError
        If the file is not one of biases, or does not fit the model; no bias has been set then.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> class Gate(torch.nn.Linear):
    ...     num_experts, top_k = 4, 2
    ...     def forward(self, x):
    ...         return torch.topk(super().forward(x).softmax(-1), self.top_k)
    >>> trained, fresh = (torch.nn.Sequential(Gate(3, 4)) for _ in range(2))
    >>> _ = add_bias(trained)
    >>> trained[0].expert_bias[1] = 2.0
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "biases.npz"
    >>> save_biases(trained, file)
    >>> load_biases(fresh, file), fresh[0].expert_bias.tolist()
    (['0'], [0.0, 2.0, 0.0, 0.0])
    """
    facts, bias_of = _read(path)
    if facts["added"] and not any(has_added_bias(module) for module in model.modules()):
        add_bias(model)
    routers = {router.name: router for router in find_routers(model)}
    if set(routers) != set(bias_of):
        raise ValueError(
            f"{path} holds biases of other layers than the model: it lacks {sorted(set(routers) - set(bias_of))} and "
            f"has {sorted(set(bias_of) - set(routers))}"
        )
    slots = [(BiasSlot(router), _fitting(router, bias_of[name], path)) for name, router in routers.items()]
    for slot, bias_E in slots:
        slot.write(bias_E)
    return list(routers)


_KEY = "bias/"


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    arrays = read_arrays(path)
    try:
        facts = json.loads(str(arrays["metadata"]))
        known = facts["format"] == _FORMAT and facts["version"] == _VERSION and isinstance(facts["added"], list)
    except (KeyError, TypeError, json.JSONDecodeError):
        known = False
    if not known:
        raise TraceError(f"{path} is not a file of save_biases, version {_VERSION}")
    return facts, {key.removeprefix(_KEY): values for key, values in arrays.items() if key.startswith(_KEY)}


def _fitting(router: Router, bias: NDArray[Any], path: str | os.PathLike[str]) -> NDArray[np.float64]:
    if bias.size != router.bias.numel() or bias.dtype.kind != "f" or not np.isfinite(bias).all():
        raise ValueError(
            f"{path} has for layer {router.name!r} {bias.dtype} of shape {bias.shape}, or numbers that are not finite; "
            f"the model has {router.bias.numel()} experts there"
        )
    return bias.astype(np.float64).reshape(-1)
