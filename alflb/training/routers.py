"""Where a model keeps its routers' selection biases, and where the routers' picks can be seen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from alflb.training.hooks import BiasedTopK

_BIAS_NAMES = ("e_score_correction_bias", "expert_bias", "balancing_biases")
"""What transformers calls a selection bias, wherever in the MoE block it lives."""

_PICKS_ARGUMENT = "top_k_index"
"""The argument of every experts module of transformers 5 that holds the chosen experts, shape (T, K)."""

_SKIPPING = ("balancing_biases",)
"""Biases of routers with an expert that skips: what their experts are called with has lost those picks."""

_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer"}
"""Path components that torch.compile, checkpoint wrappers, FSDP and PEFT put between a model's own names."""

_PEFT_ORIGINAL, _PEFT_COPIES = "original_module", "modules_to_save"
"""Where PEFT keeps a module that trainable copies stand in for, and the copies, by adapter."""

_ADDED = "expert_bias"
"""The buffer that `add_bias` gives a router."""


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
        Name of the argument of that module's ``forward`` that holds the picks: integers (..., K), or a bool routing
        map (..., E).
    output : int, optional
        Or the position of the picks in the tuple that ``forward`` returns.
    topk : bool
        Or True: the picks are what that module chooses by ``torch.topk`` among E numbers. This is the way where they
        are a local variable, or changed before they are handed on.

    Raises
    ------
    ValueError
        Unless exactly one of `argument`, `output` and `topk` is given.

    Examples
    --------
    >>> RouterLayout(bias="gate.e_score_correction_bias", module="experts", argument="top_k_index").bias
    'gate.e_score_correction_bias'
    """

    bias: str
    module: str = ""
    argument: str | None = None
    output: int | None = None
    topk: bool = False

    def __post_init__(self) -> None:
        if (self.argument is not None) + (self.output is not None) + self.topk != 1:
            raise ValueError(
                f"argument is {self.argument!r}, output is {self.output!r} and topk is {self.topk!r}; say where the "
                "picks are by one of them: the name of an argument of forward, a position in what forward returns, or "
                "topk=True for a module that chooses by torch.topk"
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
    RouterLayout(bias='bias', module='', argument=None, output=1, topk=False)
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
        return _join(self.name, self.layout.bias)

    def picks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The picks among the arguments of a call."""
        if self.layout.argument in kwargs:
            return kwargs[self.layout.argument]
        return args[_arguments(type(self.watched)).index(str(self.layout.argument))]


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model: those of described classes, those given a bias by `add_bias`, and transformers' own.

    In transformers 5, a block has an experts module whose ``forward`` takes ``top_k_index``, and keeps the bias under
    one of a few names somewhere inside: in its gate (deepseek_v3, glm4_moe), in itself (minimax_m2, lfm2_moe, afmoe),
    or deeper (ernie4_5_moe). Blocks without such a tensor have no bias to move and are left out.

    Raises
    ------
    ValueError
        If there is none, or a description does not fit; the message says what to do.

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
    routers = _routers(model)
    if not routers:
        raise ValueError(_how_to_describe(model))
    return routers


def add_bias(model: nn.Module) -> list[Router]:
    """Give every router without a selection bias one, and choose by score + bias from now on.

    A router gets a float32 buffer ``expert_bias`` of zeros, which ``state_dict`` saves. Its ``torch.topk`` then ranks
    score + bias and returns the scores without it, so weights are made of the scores alone. With a bias of zero, every
    output is bit-identical to the model's before.

    Parameters
    ----------
    model : torch.nn.Module
        Its routers are the modules that call ``torch.topk`` and have ``num_experts``; those that belong to a block with
        a bias of its own are left alone.

    Returns
    -------
    list of Router
        Those that have been given a bias.

    Raises
    ------
    ValueError
        If there is no such router, or one limits the choice to groups of experts, whose masked scores a bias would
        lift.

    Examples
    --------
    >>> class Gate(torch.nn.Linear):
    ...     num_experts, top_k = 4, 2
    ...     def forward(self, x):
    ...         return torch.topk(super().forward(x).softmax(-1), self.top_k)
    >>> gate = Gate(3, 4)
    >>> [router.path for router in add_bias(torch.nn.Sequential(gate))]
    ['0.expert_bias']
    >>> gate.expert_bias[1] = 2.0  # larger than any softmax score: every token picks expert 1
    >>> gate(torch.rand(5, 3)).indices[:, 0].tolist()
    [1, 1, 1, 1, 1]
    """
    biasless = [chooser for chooser in find_choosers(model) if chooser.bias is None]
    if not biasless:
        raise ValueError(f"{type(model).__name__} has no router to add a bias to: {_why_none(model)}")
    for chooser in biasless:
        if chooser.groups:
            raise ValueError(
                f"{chooser.name} ({type(chooser.module).__name__}) chooses within groups of experts "
                f"({chooser.groups}); a bias cannot be added to such a router"
            )
    for chooser in biasless:
        device = next((tensor.device for tensor in chooser.module.parameters()), torch.device("cpu"))
        chooser.module.register_buffer(_ADDED, torch.zeros(chooser.num_experts, dtype=torch.float32, device=device))
        BiasedTopK().attach(chooser.module)
    return [_added(chooser.name, chooser.module) for chooser in biasless]


class Chooser(NamedTuple):
    """A module that chooses experts by ``torch.topk``."""

    name: str
    """Path of its layer in the model."""
    module: nn.Module
    num_experts: int
    bias: torch.Tensor | None
    """The selection bias it adds, if there is one."""

    @property
    def bias_is_added(self) -> bool:
        """Whether the bias is one of `add_bias`, which the module's own code does not see."""
        return has_added_bias(self.module)

    @property
    def groups(self) -> dict[str, int]:
        """``n_group`` and ``topk_group`` of a router that limits the choice to some groups of experts, else nothing."""
        num_group, topk_group = getattr(self.module, "num_group", None), getattr(self.module, "topk_group", None)
        if num_group is None or topk_group is None or topk_group >= num_group:
            return {}
        return {"n_group": num_group, "topk_group": topk_group}


def find_choosers(model: nn.Module) -> list[Chooser]:
    """Every module of a model that chooses experts by ``torch.topk``, with or without a bias."""
    routers = _routers(model)
    found = []
    for path, module in model.named_modules():
        if not calls_topk(module):
            continue
        router = next((router for router in routers if _serves(router, path, module)), None)
        num_experts = _num_experts(module) if router is None else router.bias.numel()
        if num_experts is not None:
            name = _clean(path) if router is None else router.name
            found.append(Chooser(name, module, num_experts, None if router is None else router.bias))
    return found


def has_added_bias(module: nn.Module) -> bool:
    """Whether `add_bias` has changed how a module chooses."""
    return any(isinstance(getattr(hook, "__self__", None), BiasedTopK) for hook in module._forward_pre_hooks.values())


def calls_topk(module: nn.Module) -> bool:
    """Whether a method of the module's class calls ``torch.topk``; mixins, such as that of generation, do not count."""
    own = [
        cls for cls in type(module).__mro__ if issubclass(cls, nn.Module) and not cls.__module__.startswith("torch.")
    ]
    functions = [inspect.unwrap(f) for cls in own for f in vars(cls).values() if callable(f)]
    return any("topk" in f.__code__.co_names for f in functions if hasattr(f, "__code__"))


def _routers(model: nn.Module) -> list[Router]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {model!r}; pass a torch.nn.Module")
    return list({(id(router.owner), router.attribute): router for router in _candidates(model)}.values())


def _candidates(model: nn.Module) -> Iterator[Router]:
    """Routers in the order of the model; a later one replaces what would have been found in the same place."""
    for path, module in model.named_modules():
        if _PICKS_ARGUMENT in _arguments(type(module)) and path:
            yield from _router_of_experts(model, path)
    for path, module in model.named_modules():
        if has_added_bias(module):
            yield _added(path, module)
    for path, module in model.named_modules():
        layout = _layout_of(module)
        if layout is not None:
            yield from _described(path, module, layout)


def _router_of_experts(model: nn.Module, path_of_experts: str) -> Iterator[Router]:
    """The router that feeds a transformers experts module, if it has a bias."""
    block_parts = path_of_experts.split(".")
    experts_parts = [block_parts.pop()]
    while experts_parts[0] in _WRAPPERS and block_parts:
        experts_parts.insert(0, block_parts.pop())
    block = model.get_submodule(".".join(block_parts))
    tensors = [
        (getattr(owner, name, None), (path, owner, name))
        for path, owner in block.named_modules()
        for name in _BIAS_NAMES
        if not _is_idle_copy(block, path)
    ]
    # a wrapper may answer for what it wraps: of places that show one tensor, the innermost is its own
    places = list({id(tensor): place for tensor, place in tensors if isinstance(tensor, torch.Tensor)}.values())
    if len(places) > 1:
        found = ", ".join(_join(path, name) for path, _, name in places)
        raise ValueError(
            f"{type(block).__name__} at {'.'.join(block_parts)!r} has several tensors that may be its bias ({found}); "
            f"say which: describe_router(type(block), bias=..., module='experts', argument='{_PICKS_ARGUMENT}')"
        )
    for path, owner, name in places:
        if name in _SKIPPING:
            layout, watched = RouterLayout(_join(path, name), path, topk=True), owner
        else:
            layout = RouterLayout(_join(path, name), ".".join(experts_parts), argument=_PICKS_ARGUMENT)
            watched = model.get_submodule(path_of_experts)
        yield Router(_clean(".".join(block_parts)), owner, name, watched, layout)


def _is_idle_copy(block: nn.Module, path: str) -> bool:
    """Whether a module is one that PEFT keeps but does not call: the original, or the copy of an inactive adapter."""
    parts = path.split(".")
    if _PEFT_COPIES not in parts:
        return _PEFT_ORIGINAL in parts
    place = parts.index(_PEFT_COPIES)
    wrapper = block.get_submodule(".".join(parts[:place]))
    return place + 1 < len(parts) and parts[place + 1] not in getattr(wrapper, "active_adapters", parts)


def _added(path: str, router: nn.Module) -> Router:
    """A router that `add_bias` has changed."""
    return Router(_clean(path), router, _ADDED, router, RouterLayout(_ADDED, topk=True))


def _layout_of(module: nn.Module) -> RouterLayout | None:
    """The description of a module's class, or of the nearest class it is derived from."""
    return next((_LAYOUTS[cls] for cls in type(module).__mro__ if cls in _LAYOUTS), None)


def _described(path: str, block: nn.Module, layout: RouterLayout) -> Iterator[Router]:
    """The router of a block whose class has been described; none if this block's bias is None."""
    where = f"{type(block).__name__} at {path!r} does not fit its description"
    *parts, attribute = layout.bias.split(".")
    try:
        owner = block.get_submodule(".".join(parts))
        watched = block.get_submodule(layout.module)
        bias = getattr(owner, attribute)
    except AttributeError as error:
        raise ValueError(f"{where} {layout}: {error}") from None
    if bias is None:  # a layer built without a bias, as torchtitan's are when balancing is off
        return
    if not isinstance(bias, torch.Tensor):
        raise ValueError(f"{where}: {layout.bias!r} is {bias!r}, not a tensor")
    if layout.argument is not None and layout.argument not in _arguments(type(watched)):
        raise ValueError(f"{where}: forward of {type(watched).__name__} has no argument {layout.argument!r}")
    yield Router(_clean(path), owner, attribute, watched, layout)


def _num_experts(module: nn.Module) -> int | None:
    """How many experts a module says there are; None if it says nothing, as one that chooses something else."""
    for holder in (module, getattr(module, "config", None), getattr(module, "experts", None)):
        num_experts = getattr(holder, "num_experts", None)
        if isinstance(num_experts, int):
            return num_experts
    return None


def _serves(router: Router, path: str, module: nn.Module) -> bool:
    """Whether a router that has been found is the one at `path`."""
    return module is router.owner or f"{_clean(path)}.".startswith(f"{router.name}.")


def _arguments(cls: type[Any]) -> list[str]:
    """Names of the arguments of ``forward``, in order, without self.

    They are those of the class: parallel wrappers replace ``forward`` on instances, and keep its arguments.
    """
    return list(inspect.signature(cls.forward).parameters)[1:]


def _clean(path: str) -> str:
    """A module's own path: the same with and without DDP, FSDP, PEFT, torch.compile and checkpoint wrappers."""
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    for prefix in (["module"], ["base_model", "model"]):
        parts = parts[len(prefix) :] if parts[: len(prefix)] == prefix else parts
    return ".".join(parts)


def _join(*paths: str) -> str:
    return ".".join(filter(None, paths))


def _why_none(model: nn.Module) -> str:
    if find_choosers(model):
        return "all of them have one (leave add_bias out)"
    return "no module that has num_experts chooses by torch.topk"


def _experts_classes(model: nn.Module) -> list[str]:
    return sorted({type(module).__name__ for module in model.modules() if _PICKS_ARGUMENT in _arguments(type(module))})


def _how_to_describe(model: nn.Module) -> str:
    """The one error for a model without a router that has a bias."""
    experts = _experts_classes(model)
    seen = f" ({', '.join(experts)} there, but no {' or '.join(_BIAS_NAMES)} next to them)" if experts else ""
    choosing = [chooser.module for chooser in find_choosers(model)]
    offer = (
        f"{type(choosing[0]).__name__} can be given one: LoadBalancer.attach(model, add_bias=True). "
        if choosing
        else ""
    )
    if any(isinstance(getattr(module, "bias", None), torch.Tensor) for module in choosing):
        offer += "(Its own 'bias' is added to the logits and changes the weights, so it is not a selection bias.) "
    if any(_layout_of(module) is not None for module in model.modules()):
        offer += "Some of its blocks have been described, but their bias is None: switch it on in the model's config. "
    return (
        f"found no router with a selection bias in {type(model).__name__}{seen}. {offer}"
        "If it has one, describe its block in three lines:\n"
        "from alflb.training import describe_router\n"
        'Block = type(model.get_submodule("path.of.one.moe.block"))\n'
        'describe_router(Block, bias="path.to.bias", module="path.to.experts", argument="name_of_indices")'
    )
