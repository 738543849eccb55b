"""The load balancer: counts what the routers pick, and moves their biases after every optimizer step."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from alflb.problem import check_count, check_top_k
from alflb.rules import RULES, Rule, Sight, make_rule, rule_names
from alflb.rules.binned_qb import BinnedQuantileBalancing
from alflb.schedules import Schedule
from alflb.training.bias_slot import BiasSlot
from alflb.training.exchange import Exchange, unflatten
from alflb.training.layer import NO_TOKENS, Layer, refuse_missing, watch, watch_scores
from alflb.training.on_device import DeviceSteps
from alflb.training.padding import Padding
from alflb.training.routers import add_bias as add_bias_to
from alflb.training.routers import find_choosers, find_routers
from alflb.training.step_report import LayerReport, StepReport

_FORMAT = "alflb.training.LoadBalancer"
_VERSION = 2


class LoadBalancer:
    """Auxiliary-loss-free load balancing of a model in training; made by `attach` or `for_layers`.

    Between two calls of `step`, every forward pass in training mode adds its picks to int64 counts on the device
    (gradient accumulation needs nothing; recomputation under gradient checkpointing is recognized and not
    counted). `step` sums them over the process group and lets a rule of `alflb.rules`, the very code `simulate`
    runs, move a float64 master copy of each bias; what the model holds is that, rounded to float32.

    Padding is not counted where the model is called with an ``attention_mask`` of shape (batch, length).

    References
    ----------
    Wang et al., arXiv 2408.15664, Algorithm 1.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        rule: Rule,
        process_group: Any = None,
        on_step: Callable[[StepReport], None] | None = None,
        on_device: bool = False,
    ) -> None:
        if on_step is not None and not callable(on_step):
            raise ValueError(f"on_step is {on_step!r}; pass a function of a StepReport, or a TrainingLog")
        self.rule = rule
        self.on_step = on_step
        self.num_steps = 0
        """Steps taken so far; the next one is t = num_steps + 1 to the rule and its schedule."""
        self._layers = {layer.name: layer for layer in layers}
        self._exchange = Exchange(process_group)
        self._device_steps = DeviceSteps(rule, layers) if on_device else None
        self._padding = Padding()
        self._handles: list[Any] = []
        self._detached = False
        self._unchecked_model: nn.Module | None = None
        """The model until the first step, which sees whether its routers are still those found by `attach`."""

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        rule: str | Rule = "sign",
        schedule: Schedule | float | None = None,
        *,
        target: ArrayLike | Mapping[str, ArrayLike] | None = None,
        add_bias: bool = False,
        process_group: Any = None,
        on_step: Callable[[StepReport], None] | None = None,
        on_device: bool = False,
    ) -> LoadBalancer:
        """Find a model's routers, start from the biases they have, and count their loads from now on.

        Hooks never alter an output. A bias kept in 16 bits is replaced by the same numbers in float32.

        Parameters
        ----------
        model : torch.nn.Module
            A transformers model, or one whose router has been described (`describe_router`); wrapped in DDP or not.
            Attach to the module that the training loop calls, so that its ``attention_mask`` is seen.
        rule : str or Rule
            A load-only rule by name (`alflb.rule_names`) or as an object; or "binned_qb", whose counts of scores are
            summed with the loads. "self_tuning" needs no step size.
        schedule : float or Schedule, optional
            Step size in score units for a rule given by name; the rule's own default (1e-3 for most) if not given.
            A rule given as an object has its own.
        target : array_like of shape (E,), or mapping of layer name to array_like, optional
            Loads wanted, up to a common factor: for experts that cost less, such as the zero-compute experts of
            longcat_flash. Equal loads if not given, also for layers that a mapping leaves out.
        add_bias : bool
            Give routers without a selection bias one (`alflb.training.add_bias`); the model then chooses by score +
            bias. With False such routers are left out.
        process_group : optional
            The torch.distributed group over which loads are summed: the ranks that see different tokens. By default
            all ranks, if torch.distributed is initialized.
        on_step : callable, optional
            Called with the `StepReport` of every step.
        on_device : bool
            Keep biases and the rule's memory on the device, and let every `step` after the first return without
            waiting for it. Biases and loads are the same, bit for bit. A step that would be an error moves nothing, and
            the error is raised where numbers are next read: `StepReport.layers`, `biases`, `state_dict`. For rules
            with `on_tensors`.

        Raises
        ------
        ValueError
            For a model without a known router, a rule that needs scores or cannot run on the device, a target that
            does not fit, or a bias that an optimizer may move, that is sharded, on the meta device, or not finite.

        Examples
        --------
        >>> from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
        >>> model = DeepseekV3ForCausalLM(DeepseekV3Config(
        ...     vocab_size=64, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        ...     topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
        ...     qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=64))
        >>> balancer = LoadBalancer.attach(model.train(), rule="sign", schedule=1e-3)
        >>> balancer
        LoadBalancer(1 layer, rule=Sign(schedule=Constant(step_size=0.001)), num_steps=0)
        >>> _ = model(torch.arange(32)[None])
        >>> report = balancer.step()
        >>> int(report.layers[0].load_E.sum())
        64
        """
        rule = _checked_rule(rule, schedule, on_device)
        if add_bias:
            add_bias_to(model)
        routers = find_routers(model)
        names = [router.name for router in routers]
        layers = [
            Layer(name, label, BiasSlot(router), rule, target_E)
            for name, label, router, target_E in zip(names, _labels(names), routers, _targets(target, names))
        ]
        balancer = cls(layers, rule, process_group, on_step, on_device)
        for router, layer in zip(routers, layers):
            balancer._handles += watch(router, layer, balancer._padding)
        if rule.sees is not Sight.LOADS:
            balancer._watch_scores(model)
        balancer._handles += balancer._padding.watch(model)
        balancer._unchecked_model = model
        return balancer

    @classmethod
    def for_layers(
        cls,
        num_experts: Sequence[int] | Mapping[str, int],
        top_k: int,
        rule: str | Rule = "sign",
        schedule: Schedule | float | None = None,
        *,
        target: ArrayLike | Mapping[str, ArrayLike] | None = None,
        process_group: Any = None,
        on_step: Callable[[StepReport], None] | None = None,
        on_device: bool = False,
    ) -> LoadBalancer:
        """A balancer without a model, for any trainer: give it loads by `add_loads`, take its `biases` after `step`.

        Parameters
        ----------
        num_experts : sequence of int, or mapping of str to int
            Experts per layer, in order (layers are then called "layer_00", "layer_01", ...) or by name. An empty one
            is for a rank that has no such layer and takes part in the sums of a group.
        top_k : int
            Experts per token.
        rule, schedule, target, process_group, on_step, on_device
            As in `attach`. With `on_device`, biases are where the loads of the first step are; see `bias_tensors`.

        Raises
        ------
        ValueError
            For a value out of range.

        Examples
        --------
        >>> balancer = LoadBalancer.for_layers([4], top_k=1, rule="sign", schedule=0.5)
        >>> balancer.add_loads("layer_00", [3, 1, 2, 2])
        >>> _ = balancer.step()
        >>> balancer.biases["layer_00"].tolist()
        [-0.5, 0.5, 0.0, 0.0]
        """
        rule = _checked_rule(rule, schedule, on_device)
        if rule.sees is not Sight.LOADS:
            raise ValueError(
                f"{rule!r} sees scores, which a balancer without a model does not; choose a load-only rule"
            )
        layers = []
        sizes = _named_sizes(num_experts)
        for (name, size), target_E in zip(sizes.items(), _targets(target, list(sizes))):
            layer = Layer(name, name, size, rule, target_E)
            layer.picks.top_k = check_top_k(top_k, layer.num_experts)
            layers.append(layer)
        return cls(layers, rule, process_group, on_step, on_device)

    def add_loads(self, layer: str, loads: Any) -> None:
        """Add loads that something else has counted, on top of what hooks count.

        Parameters
        ----------
        layer : str
            One of `layer_names`.
        loads : torch.Tensor or array_like, shape (E,)
            Tokens per expert of this rank; whole numbers, of a float dtype as well. They may stay on the device.

        Raises
        ------
        ValueError
            For another layer or shape; for numbers that are not whole or negative, at the next `step`.
        """
        self._layer(layer).picks.add_loads(loads)

    def step(self) -> StepReport:
        """Move every bias by the loads since the last step; call it once after each ``optimizer.step()``.

        With torch.distributed this is a collective call: every rank of the group makes it, and all get the same
        loads. A layer that saw no token on any rank keeps its bias and its rule's memory and is not in the report.

        Returns
        -------
        StepReport
            Also passed to `on_step`.

        Raises
        ------
        RuntimeError
            If no forward pass in training mode has been counted, if something else has changed a bias since the
            last step or replaced a router since `attach`, between two micro-batches of accelerate's gradient
            accumulation, or after `detach`.
        ValueError
            If picks cannot be right, the ranks do not fit together, or the rule leads to a bias that is not finite.
            No bias has changed then.
        """
        if self._detached:
            raise RuntimeError("this balancer is detached; attach a new one")
        _refuse_half_a_batch()
        self._refuse_replaced_routers()
        flat, sizes = self._sum_counts()
        if self._device_steps is None:
            report = StepReport(self.num_steps + 1, self._step_on_host(unflatten(flat.cpu(), sizes)))
        else:
            counts = unflatten(flat, sizes)
            read = self._device_steps.step(counts, flat.any(), self.num_steps + 1, self._device)
            report = StepReport(self.num_steps + 1, read)
        self.num_steps += 1
        self.discard()
        if self.on_step is not None:
            self.on_step(report)
        return report

    def discard(self) -> None:
        """Forget what has been counted since the last step, as when an optimizer step was skipped (overflow)."""
        for layer in self._layers.values():
            layer.clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside a ``with`` block: generation and rollouts with the model in training mode.

        Examples
        --------
        >>> balancer = LoadBalancer.for_layers([4], top_k=1)
        >>> with balancer.paused():
        ...     pass  # model.generate(...)
        """
        before, self._padding.paused = self._padding.paused, True
        try:
            yield
        finally:
            self._padding.paused = before

    def freeze(self, *layers: str) -> None:
        """Keep the biases of these layers; their loads are still counted and reported."""
        for name in layers:
            self._layer(name).frozen = True

    def unfreeze(self, *layers: str) -> None:
        """Let these layers' biases move again."""
        for name in layers:
            self._layer(name).frozen = False

    def detach(self) -> None:
        """Remove every hook that counts; the model keeps the biases it has. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._detached = True

    @property
    def layer_names(self) -> list[str]:
        """Paths of the balanced routers' blocks in the model, in its order."""
        return list(self._layers)

    @property
    def biases(self) -> dict[str, NDArray[np.float64]]:
        """The master biases by layer name, copies."""
        self._fetch()
        return {name: layer.bias_E.copy() for name, layer in self._layers.items()}

    @property
    def bias_tensors(self) -> dict[str, torch.Tensor]:
        """The master biases by layer name as float64 tensors; with `on_device` there, and without waiting for it."""
        on_host = {name: torch.from_numpy(layer.bias_E.copy()) for name, layer in self._layers.items()}
        return on_host if self._device_steps is None else on_host | self._device_steps.biases()

    def read_biases(self) -> None:
        """Start over from the biases in the model: for a model loaded after `attach`, without a balancer's state.

        The rule's memory and the step number stay. With torch.distributed, every rank calls it.

        Raises
        ------
        ValueError
            For a bias that is not finite.
        """
        self._fetch()
        for layer in self._layers.values():
            layer.read()
        self._forget()

    def reset_totals(self) -> None:
        """Start the sums behind MaxVio_global anew."""
        self._fetch()
        for layer in self._layers.values():
            layer.total_E = np.zeros_like(layer.total_E)
        if self._device_steps is not None:
            self._device_steps.forget()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: master biases, the rule's memory, step number, summed loads, what is frozen.

        It holds tensors, numbers and text only, so ``torch.save`` and ``torch.load(weights_only=True)`` do. It is the
        state between two steps: counts of micro-batches whose `step` has not been taken are not in it, as their
        gradients are in no checkpoint either. It is the same on every rank that has the same layers, and not a
        collective call.
        """
        self._fetch()
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "num_steps": self.num_steps,
            "rule": _describe(self.rule),
            "layers": {name: layer.save() for name, layer in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; biases are written to the model, counts start from zero.

        With torch.distributed, every rank calls it.

        Raises
        ------
        ValueError
            For anything but the state of a balancer with the same rule, schedule, layers and numbers of experts; in
            that case nothing has changed. To go on under another rule, load the model only and attach anew: the
            biases are in the model.
        """
        self._check_state(state)
        num_steps = check_count(state["num_steps"], "num_steps in state", minimum=0)
        checked = {name: layer.check_saved(state["layers"][name]) for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            layer.restore(checked[name])
        self.num_steps = num_steps
        self._forget()

    def __repr__(self) -> str:
        count = f"{len(self._layers)} layer{'' if len(self._layers) == 1 else 's'}"
        return f"LoadBalancer({count}, rule={self.rule!r}, num_steps={self.num_steps})"

    def _fetch(self) -> None:
        """Bring the layers up to date with what the device has done."""
        if self._device_steps is not None:
            self._device_steps.fetch()

    def _forget(self) -> None:
        """Take the layers' numbers anew, and compare them between ranks, at the next step."""
        self._exchange.forget()
        if self._device_steps is not None:
            self._device_steps.forget()

    def _watch_scores(self, model: nn.Module) -> None:
        """Show every layer's scores to its bins."""
        choosers = {chooser.name: chooser for chooser in find_choosers(model)}
        blind = [name for name in self._layers if name not in choosers]
        if blind:
            self.detach()
            raise ValueError(f"{self.rule!r} sees scores, but {', '.join(blind)} do not choose by torch.topk")
        for name, layer in self._layers.items():
            self._handles += watch_scores(choosers[name], layer, self._padding)

    def _layer(self, name: str) -> Layer:
        if name not in self._layers:
            raise ValueError(f"layer is {name!r}; this balancer has {', '.join(self._layers) or 'no layers'}")
        return self._layers[name]

    def _sum_counts(self) -> tuple[torch.Tensor, dict[str, int]]:
        """What has been counted on all devices and ranks, one vector, and how much of it is whose: one all-reduce."""
        counts = {name: layer.counts(self._device) for name, layer in self._layers.items()}
        progress = f"{_describe(self.rule)}, step {self.num_steps}"
        return self._exchange.sum(counts, {name: layer.bias_E for name, layer in self._layers.items()}, progress)

    def _step_on_host(self, counts: Mapping[str, torch.Tensor]) -> tuple[LayerReport, ...]:
        """Move every layer that saw tokens, or none of them if something is wrong with any."""
        if not any(count.any() for count in counts.values()):
            raise RuntimeError(NO_TOKENS)
        seen = [(layer, layer.read_counts(counts[name])) for name, layer in self._layers.items() if counts[name].any()]
        for layer, counted in seen:
            layer.refuse_faulty(counted.num_faulty)
        self._refuse_foreign_changes()
        moves = [layer.move(counted, self.rule, self.num_steps + 1) for layer, counted in seen]
        for (layer, counted), move in zip(seen, moves):
            layer.apply(move, counted)
        return tuple(layer.report(counted) for layer, counted in seen)

    def _refuse_replaced_routers(self) -> None:
        """Raise at the first step if another module than the one found by `attach` routes now."""
        if self._unchecked_model is None:
            return
        now = {router.name: router.owner for router in find_routers(self._unchecked_model)}
        for name, layer in self._layers.items():
            if layer.slot is not None and now.get(name, layer.slot.router.owner) is not layer.slot.router.owner:
                raise RuntimeError(
                    f"the router of {name} has been replaced since attach, as PEFT's modules_to_save does, so the "
                    "model would not see its bias; attach the balancer after the model has got its adapters"
                )
        self._unchecked_model = None

    def _refuse_foreign_changes(self) -> None:
        """Raise if a bias in the model is not what was written last; one copy to the CPU for all layers."""
        slots = [layer.slot for layer in self._layers.values() if layer.slot is not None]
        if slots:
            flat = torch.cat([slot.current(self._device) for slot in slots]).cpu()
            for slot, now in zip(slots, flat.split([slot.num_experts for slot in slots])):
                if slot.is_changed(now):
                    raise slot.foreign_change()

    @property
    def _device(self) -> torch.device:
        """Where all layers' numbers are put together, for models spread over several devices."""
        places = [layer.slot.device if layer.slot else layer.picks.device for layer in self._layers.values()]
        return next((place for place in places if place is not None), torch.device("cpu"))

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise ValueError("state is not one of LoadBalancer.state_dict()")
        if state.get("version") != _VERSION:
            raise ValueError(f"state has version {state.get('version')!r}; this alflb reads version {_VERSION}")
        refuse_missing({"num_steps", "rule", "layers"}, state, "state")
        if state["rule"] != _describe(self.rule):
            raise ValueError(
                f"state is of the rule {state['rule']}, this balancer has {_describe(self.rule)}; attach with the same "
                "rule and schedule, or load the model only and attach anew to go on from its biases"
            )
        if set(state["layers"]) != set(self.layer_names):
            lacking = sorted(set(self.layer_names) - set(state["layers"]))
            unknown = sorted(set(state["layers"]) - set(self.layer_names))
            raise ValueError(f"state is of another model: it lacks layers {lacking} and has layers {unknown}")


def _refuse_half_a_batch() -> None:
    """Raise between two micro-batches of accelerate, whose optimizers do nothing there."""
    accelerate_state = sys.modules.get("accelerate.state")
    if accelerate_state is None or not accelerate_state.GradientState._shared_state:
        return
    if not accelerate_state.GradientState().sync_gradients:
        raise RuntimeError(
            "accelerate is accumulating gradients, so optimizer.step() has just done nothing; call step() only "
            "where accelerator.sync_gradients is true"
        )


def _checked_rule(rule: str | Rule, schedule: Schedule | float | None, on_device: bool) -> Rule:
    """The rule by name or as it is, unless it needs what is not there in training, or on the device."""
    if isinstance(rule, str):
        rule = make_rule(rule, schedule)
    elif schedule is not None:
        raise ValueError(
            f"schedule is {schedule!r} but the rule {rule!r} has its own; give the rule by name, or no schedule"
        )
    if not isinstance(rule, Rule):
        raise ValueError(f"rule is {rule!r}; pass a name (alflb.rule_names()) or a rule of alflb.rules")
    if rule.sees is not Sight.LOADS and not isinstance(rule, BinnedQuantileBalancing):
        raise ValueError(
            f"{rule!r} sees the scores, and in training only counts leave the device; choose a load-only rule such as "
            "'sign' or 'proportional', or 'binned_qb', which works on counts of scores"
        )
    if on_device and not rule.on_tensors:
        able = ", ".join(name for name in rule_names() if RULES.get(name).on_tensors)
        raise ValueError(f"on_device is {on_device}, but {rule!r} computes on the host; leave it out, or choose {able}")
    return rule


def _targets(target: ArrayLike | Mapping[str, ArrayLike] | None, names: list[str]) -> list[ArrayLike | None]:
    """The target of every layer."""
    if not isinstance(target, Mapping):
        return [target] * len(names)
    unknown = sorted(set(target) - set(names))
    if unknown:
        raise ValueError(f"target names the layers {unknown}; there are {', '.join(names) or 'none'}")
    return [target.get(name) for name in names]


def _named_sizes(num_experts: Any) -> dict[str, int]:
    """Experts per layer by name; ValueError if they are not counts."""
    if isinstance(num_experts, Mapping):
        named = dict(num_experts)
    elif isinstance(num_experts, Sequence):
        named = {f"layer_{n:02d}": count for n, count in enumerate(num_experts)}
    else:
        raise ValueError(f"num_experts is {num_experts!r}; pass one number per layer, in a list or by name")
    return {name: check_count(count, f"num_experts of {name}") for name, count in named.items()}


def _labels(names: list[str]) -> list[str]:
    """Short names for logs from the numbers in the paths, or the paths themselves where those are not unique."""
    numbers = [re.findall(r"(?<![^.])\d+(?![^.])", name) for name in names]
    labels = ["_".join(["layer", *(f"{int(number):02d}" for number in found)]) for found in numbers]
    return labels if all(numbers) and len(set(labels)) == len(labels) else names


def _describe(rule: Rule) -> str:
    """The rule's text, without the memory addresses of functions in it."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(rule))
