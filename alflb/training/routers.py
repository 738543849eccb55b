"""Where a model keeps its routers' selection biases, and where the routers' picks can be seen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

_BIAS_NAMES = ("e_score_correction_bias", "expert_bias")
"""What transformers calls a selection bias, wherever in the MoE block it lives."""

_PICKS_ARGUMENT = "top_k_index"
"""The argument of every experts module of transformers 5 that holds the chosen experts, shape (T, K)."""

_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Path components that torch.compile, checkpoint wrappers and FSDP put between a model's own names."""


@dataclass(frozen=True)
class RouterLayout:
    """How to find one router's bias and picks, starting from a module of a known class (the block).

    Parameters
    ----------
    bias : str
        Path from the block to the selection bias, E numbers that are added to the scores before top-K
        ("gate.e_score_correction_bias").
    module : str
        Path from the block to the module whose call shows the picks ("experts"); "" is the block itself.
    argument : str, optional
        Name of the argument of that module's ``forward`` that holds the picks, integers of any shape.
    output : int, optional
        Or where in the tuple that ``forward`` returns they stand. Give one of the two.

    Raises
    ------
    ValueError
        Unless exactly one of `argument` and `output` is given.

    Examples
    --------
    >>> RouterLayout(bias="gate.e_score_correction_bias", module="experts", argument="top_k_index")
    RouterLayout(bias='gate.e_score_correction_bias', module='experts', argument='top_k_index', output=None)
    """

    bias: str
    module: str = ""
    argument: str | None = None
    output: int | None = None

    def __post_init__(self) -> None:
        if (self.argument is None) == (self.output is None):
            raise ValueError(
                f"argument is {self.argument!r} and output is {self.output!r}; say where the picks are by one of them: "
                "the name of an argument of forward, or a position in what forward returns"
            )


_LAYOUTS: dict[type[Any], RouterLayout] = {}


def describe_router(block: type[Any], **layout: Any) -> RouterLayout:
    """Tell `LoadBalancer` about a router it does not know; see `RouterLayout` for the arguments.

    Parameters
    ----------
    block : type
        Class of the module that holds bias and picks, directly or further down. Subclasses are included; a second
        description of a class replaces the first.
    **layout
        The fields of `RouterLayout`.

    Raises
    ------
    ValueError
        If `block` is not a class of modules, or the layout is incomplete.

    Examples
    --------
    A gate that returns weights and indices, and keeps its own bias:

    >>> class Gate(torch.nn.Module):
    ...     def __init__(self, num_experts=4, top_k=2):
    ...         super().__init__()
    ...         self.top_k = top_k
    ...         self.bias = torch.nn.Parameter(torch.zeros(num_experts), requires_grad=False)
    ...
    ...     def forward(self, scores):
    ...         indices = torch.topk(scores + self.bias, self.top_k).indices
    ...         return scores.gather(-1, indices), indices
    >>> describe_router(Gate, bias="bias", output=1)
    RouterLayout(bias='bias', module='', argument=None, output=1)
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise ValueError(f"block is {block!r}; pass the class of a module, for example type(model.layers[0].mlp)")
    _LAYOUTS[block] = RouterLayout(**layout)
    return _LAYOUTS[block]


class Router(NamedTuple):
    """A router found in a model."""

    name: str
    """Path of its block in the model, without what wrappers add to it."""
    owner: nn.Module
    """The module that holds the bias ..."""
    attribute: str
    """... and under which name; the tensor itself may be replaced by ``model.to``."""
    watched: nn.Module
    """The module whose call shows the picks."""
    layout: RouterLayout

    @property
    def bias(self) -> torch.Tensor:
        """The bias tensor as it is now."""
        return getattr(self.owner, self.attribute)

    @property
    def path(self) -> str:
        """Path of the bias in the model, for messages."""
        return ".".join(filter(None, [self.name, self.layout.bias]))

    def picks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The picks among the arguments of a call."""
        if self.layout.argument in kwargs:
            return kwargs[self.layout.argument]
        return args[_arguments(type(self.watched)).index(str(self.layout.argument))]


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model: those of described classes, and the MoE blocks of transformers 5.

    In transformers, a block has an experts module whose ``forward`` takes ``top_k_index``, and keeps the bias under
    one of two names somewhere inside: in its gate (deepseek_v3, glm4_moe), in itself (minimax_m2, lfm2_moe, afmoe),
    or deeper (ernie4_5_moe). Blocks without such a tensor have no bias to move and are left out.

    Raises
    ------
    ValueError
        If there is none, or a description does not fit; the message says how to describe a router.

    Examples
    --------
    >>> find_routers(torch.nn.Linear(2, 2))
    Traceback (most recent call last):
    ...
    ValueError: found no router with a selection bias in Linear. If it has one, describe its block in three lines:
    from alflb.training import describe_router
    Block = type(model.get_submodule("path.of.one.moe.block"))
    describe_router(Block, bias="path.to.bias", module="path.to.experts", argument="name_of_indices")
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {model!r}; pass a torch.nn.Module")
    routers = list({(id(router.owner), router.attribute): router for router in _candidates(model)}.values())
    if not routers:
        raise ValueError(_how_to_describe(model))
    return routers


def _candidates(model: nn.Module) -> Iterator[Router]:
    """Routers in the order of the model; a described one replaces what would have been found in the same place."""
    for path, module in model.named_modules():
        if _PICKS_ARGUMENT in _arguments(type(module)) and path:
            yield from _router_of_experts(model, path)
    for path, module in model.named_modules():
        layout = next((_LAYOUTS[cls] for cls in type(module).__mro__ if cls in _LAYOUTS), None)
        if layout is not None:
            yield _described(path, module, layout)


def _router_of_experts(model: nn.Module, path_of_experts: str) -> Iterator[Router]:
    """The router that feeds a transformers experts module, if it has a bias."""
    block_parts = path_of_experts.split(".")
    experts_parts = [block_parts.pop()]
    while experts_parts[0] in _WRAPPERS:
        experts_parts.insert(0, block_parts.pop())
    block = model.get_submodule(".".join(block_parts))
    places = [
        (path, owner, name)
        for path, owner in block.named_modules()
        for name in _BIAS_NAMES
        if isinstance(getattr(owner, name, None), torch.Tensor)
    ]
    if len(places) > 1:
        found = ", ".join(".".join(filter(None, [path, name])) for path, _, name in places)
        raise ValueError(
            f"{type(block).__name__} at {'.'.join(block_parts)!r} has several tensors that may be its bias ({found}); "
            f"say which: describe_router(type(block), bias=..., module='experts', argument='{_PICKS_ARGUMENT}')"
        )
    for path, owner, name in places:
        bias_path = ".".join(filter(None, [path, name]))
        layout = RouterLayout(bias_path, ".".join(experts_parts), argument=_PICKS_ARGUMENT)
        yield Router(_clean(".".join(block_parts)), owner, name, model.get_submodule(path_of_experts), layout)


def _described(path: str, block: nn.Module, layout: RouterLayout) -> Router:
    """The router of a block whose class has been described."""
    where = f"{type(block).__name__} at {path!r} does not fit its description"
    *parts, attribute = layout.bias.split(".")
    try:
        owner = block.get_submodule(".".join(parts))
        watched = block.get_submodule(layout.module)
    except AttributeError as error:
        raise ValueError(f"{where} {layout}: {error}") from None
    bias = getattr(owner, attribute, None)
    if not isinstance(bias, torch.Tensor):
        raise ValueError(f"{where}: {layout.bias!r} is {bias!r}, not a tensor")
    if layout.argument is not None and layout.argument not in _arguments(type(watched)):
        raise ValueError(f"{where}: forward of {type(watched).__name__} has no argument {layout.argument!r}")
    return Router(_clean(path), owner, attribute, watched, layout)


def _arguments(cls: type[Any]) -> list[str]:
    """Names of forward's arguments, in order, without self.

    Of the class: parallel wrappers replace ``forward`` on instances, and keep its arguments.
    """
    return list(inspect.signature(cls.forward).parameters)[1:]


def _clean(path: str) -> str:
    """A module's own path: the same with and without DDP, FSDP, torch.compile and checkpoint wrappers."""
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == ["module"] else parts)


def _how_to_describe(model: nn.Module) -> str:
    """The one error for a model without a known router."""
    experts = sorted(
        {type(module).__name__ for module in model.modules() if _PICKS_ARGUMENT in _arguments(type(module))}
    )
    seen = f" ({', '.join(experts)} there, but no {' or '.join(_BIAS_NAMES)} next to them)" if experts else ""
    return (
        f"found no router with a selection bias in {type(model).__name__}{seen}. "
        "If it has one, describe its block in three lines:\n"
        "from alflb.training import describe_router\n"
        'Block = type(model.get_submodule("path.of.one.moe.block"))\n'
        'describe_router(Block, bias="path.to.bias", module="path.to.experts", argument="name_of_indices")'
    )
