"""The load balancer: counts what the routers pick, and moves their biases after every optimizer step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alflb.problem import check_bias, check_count, target_load_E
from alflb.rules import Observation, Rule, Sight, State, make_rule
from alflb.schedules import Schedule
from alflb.training.memory import pack, unpack
from alflb.training.routers import Router, find_routers
from alflb.training.step_report import LayerReport, StepReport

_FORMAT = "alflb.training.LoadBalancer"
_VERSION = 1


class LoadBalancer:
    """Auxiliary-loss-free load balancing of a model in training; made by `LoadBalancer.attach`.

    Between two calls of `step`, every forward pass in training mode adds its picks to int64 counts on the device
    (gradient accumulation needs nothing; recomputation under gradient checkpointing is recognised and not
    counted). `step` sums them over the process group and lets a rule of `alflb.rules`, the very code `simulate`
    runs, move a float64 master copy of each bias; what the model holds is that, rounded to float32.

    The loads, and so the biases, are those of every token the model routes, padding included.

    References
    ----------
    Wang et al., arXiv 2408.15664, Algorithm 1.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        rule: Rule,
        process_group: Any = None,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.rule = rule
        self.process_group = process_group
        self.on_step = on_step
        self.num_steps = 0
        """Steps taken so far; the next one is t = num_steps + 1 to the rule and its schedule."""
        labels = _labels([router.name for router in routers])
        self._layers = [_Layer(router, label, rule) for router, label in zip(routers, labels)]
        self._handles = [layer.watch() for layer in self._layers]

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        rule: str | Rule = "sign",
        schedule: Schedule | float | None = None,
        *,
        process_group: Any = None,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> LoadBalancer:
        """Find a model's routers, start from the biases they have, and count their loads from now on.

        Nothing in the model changes but for the hooks, which never alter an output.

        Parameters
        ----------
        model : torch.nn.Module
            A transformers model, or one whose router has been described (`describe_router`); wrapped in DDP or not.
        rule : str or Rule
            A load-only rule by name (`alflb.rule_names`) or as an object.
        schedule : float or Schedule, optional
            Step size in score units for a rule given by name; the rule's own default (1e-3 for most) if not given.
            A rule given as an object has its own.
        process_group : optional
            The torch.distributed group over which loads are summed: the ranks that see different tokens. By default
            all ranks, if torch.distributed is initialised.
        on_step : callable, optional
            Called with the `StepReport` of every step.

        Raises
        ------
        ValueError
            For a model without a known router, a rule that needs scores, or a bias that an optimizer may move, that
            is sharded, on the meta device, or not finite.

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
        return cls(find_routers(model), _load_only(rule, schedule), process_group, on_step)

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
            last step, or after `detach`.
        """
        if not self._handles:
            raise RuntimeError("this balancer is detached; attach a new one")
        loads = self._sum_loads()
        if not any(load_E.any() for load_E in loads):
            raise RuntimeError(
                "no token was counted since the last step: call step() once after each optimizer.step(), with the "
                "model in training mode during the forward passes (model.train())"
            )
        self._refuse_foreign_changes()
        self.num_steps += 1
        moved = [(layer, load_E) for layer, load_E in zip(self._layers, loads) if load_E.any()]
        for layer, load_E in moved:
            layer.update(load_E, self.rule, self.num_steps)
        for layer in self._layers:
            layer.counts.clear()
        report = StepReport(self.num_steps, tuple(layer.report(load_E) for layer, load_E in moved))
        if self.on_step is not None:
            self.on_step(report)
        return report

    def detach(self) -> None:
        """Remove every hook; the model keeps the biases it has. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def layer_names(self) -> list[str]:
        """Paths of the balanced routers' blocks in the model, in its order."""
        return [layer.router.name for layer in self._layers]

    @property
    def biases(self) -> dict[str, NDArray[np.float64]]:
        """The master biases by layer name, copies."""
        return {layer.router.name: layer.bias_E.copy() for layer in self._layers}

    def read_biases(self) -> None:
        """Start over from the biases in the model: for a model loaded after `attach`, without a balancer's state.

        The rule's memory and the step number stay.

        Raises
        ------
        ValueError
            For a bias that is not finite.
        """
        for layer in self._layers:
            layer.read()

    def reset_totals(self) -> None:
        """Start the sums behind MaxVio_global anew."""
        for layer in self._layers:
            layer.total_E = np.zeros_like(layer.total_E)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: master biases, the rule's memory, step number and summed loads.

        It holds tensors, numbers and text only, so ``torch.save`` and ``torch.load(weights_only=True)`` do. It is the
        state between two steps: counts of micro-batches whose `step` has not been taken are not in it, as their
        gradients are in no checkpoint either. It is the same on every rank, and not a collective call.
        """
        layers = {
            layer.router.name: {
                "bias": torch.from_numpy(layer.bias_E.copy()),
                "total_load": torch.from_numpy(layer.total_E.copy()),
                "rule_state": pack(layer.state),
            }
            for layer in self._layers
        }
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "num_steps": self.num_steps,
            "rule": _describe(self.rule),
            "layers": layers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; biases are written to the model, counts start from zero.

        Raises
        ------
        ValueError
            For anything but the state of a balancer with the same rule, schedule, layers and numbers of experts; in
            that case nothing has changed. To go on under another rule, load the model only and attach anew: the
            biases are in the model.
        """
        num_steps, layers = self._check_state(state)
        for layer, (bias_E, total_E, rule_state) in zip(self._layers, layers):
            layer.bias_E, layer.total_E, layer.state = bias_E, total_E, rule_state
            layer.counts.clear()
            layer.write()
        self.num_steps = num_steps

    def __repr__(self) -> str:
        count = f"{len(self._layers)} layer{'s' if len(self._layers) > 1 else ''}"
        return f"LoadBalancer({count}, rule={self.rule!r}, num_steps={self.num_steps})"

    def _sum_loads(self) -> list[NDArray[np.int64]]:
        """Every layer's loads over all devices and ranks: one all-reduce, one copy to the CPU."""
        flat = torch.cat([layer.count_on(self._device) for layer in self._layers])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(flat, group=self.process_group)
        return [part.numpy() for part in self._split(flat.cpu())]

    def _refuse_foreign_changes(self) -> None:
        """Raise if a bias in the model is not what was written last; one copy to the CPU for all layers."""
        biases = [_check_tensor(layer.router).detach().flatten().to(self._device) for layer in self._layers]
        for layer, now in zip(self._layers, self._split(torch.cat(biases).cpu())):
            layer.refuse_foreign_change(now)

    @property
    def _device(self) -> torch.device:
        """Where all layers' numbers are put together, for models spread over several devices."""
        return self._layers[0].router.bias.device

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One vector for each layer."""
        return torch.split(flat, [layer.num_experts for layer in self._layers])

    def _check_state(
        self, state: Mapping[str, Any]
    ) -> tuple[int, list[tuple[NDArray[np.float64], NDArray[np.int64], State]]]:
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise ValueError("state is not one of LoadBalancer.state_dict()")
        if state.get("version") != _VERSION:
            raise ValueError(f"state has version {state.get('version')!r}; this alflb reads version {_VERSION}")
        _refuse_missing({"num_steps", "rule", "layers"}, state, "state")
        if state["rule"] != _describe(self.rule):
            raise ValueError(
                f"state is of the rule {state['rule']}, this balancer has {_describe(self.rule)}; attach with the same "
                "rule and schedule, or load the model only and attach anew to go on from its biases"
            )
        if set(state["layers"]) != set(self.layer_names):
            lacking = sorted(set(self.layer_names) - set(state["layers"]))
            unknown = sorted(set(state["layers"]) - set(self.layer_names))
            raise ValueError(f"state is of another model: it lacks layers {lacking} and has layers {unknown}")
        num_steps = check_count(state["num_steps"], "num_steps in state", minimum=0)
        return num_steps, [layer.check_state(state["layers"][layer.router.name]) for layer in self._layers]


class _Layer:
    """One router: its counts on the device, and the master bias and the rule's memory on the CPU."""

    def __init__(self, router: Router, label: str, rule: Rule) -> None:
        self.router = router
        self.label = label
        self.num_experts = _check_tensor(router).numel()
        self.counts: dict[torch.device, torch.Tensor] = {}
        self.read()
        self.state = rule.init(self.num_experts)
        self.total_E = np.zeros(self.num_experts, dtype=np.int64)

    def read(self) -> None:
        """Take the model's bias as the master bias."""
        self.written = _check_tensor(self.router).detach().cpu().clone()
        self.bias_E = check_bias(self.written.double().flatten().numpy(), self.num_experts, name=self.router.path)

    def watch(self) -> Any:
        """Hook the module that shows the picks; first in line, so that it sees what the router chose."""
        layout, module = self.router.layout, self.router.watched
        if layout.argument is not None:

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.count(module, self.router.picks(args, kwargs))

            return module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.count(module, output[layout.output])

        return module.register_forward_hook(after, prepend=True)

    def count(self, module: nn.Module, picks: torch.Tensor) -> None:
        """Add the picks of one forward pass, unless it is an evaluation or a recomputation."""
        if not module.training or _inside_backward():
            return
        flat = picks.detach().reshape(-1).long()
        if flat.device not in self.counts:
            self.counts[flat.device] = _zeros(self.num_experts, flat.device)
        # not bincount, which on CUDA waits for the device to know its size
        self.counts[flat.device].scatter_add_(0, flat, torch.ones_like(flat))

    def count_on(self, device: torch.device) -> torch.Tensor:
        """The counts of all devices, summed on one."""
        total = _zeros(self.num_experts, device)
        for counts in self.counts.values():
            total += counts.to(device)
        return total

    def update(self, load_E: NDArray[np.int64], rule: Rule, t: int) -> None:
        """One step of the rule, on the master bias and into the model."""
        target_E = target_load_E(int(load_E.sum()), self.num_experts, 1)
        bias_E, state = rule.step(self.bias_E, Observation(t, target_E, load_E=load_E), self.state)
        self.bias_E = check_bias(bias_E, self.num_experts, name=f"the bias of {self.label} after step {t}")
        self.state = state
        self.total_E = self.total_E + load_E
        self.write()

    def write(self) -> None:
        """Put the master bias into the model: rounded to float32, which replaces a bias kept in 16 bits."""
        bias = self.router.bias
        wide = bias.dtype in (torch.float32, torch.float64)
        self.written = torch.from_numpy(self.bias_E).to(bias.dtype if wide else torch.float32).view(bias.shape)
        if wide:
            with torch.no_grad():
                bias.copy_(self.written)
        elif isinstance(bias, nn.Parameter):
            bias.data = self.written.to(bias.device, copy=True)
        else:
            setattr(self.router.owner, self.router.attribute, self.written.to(bias.device, copy=True))

    def refuse_foreign_change(self, now: torch.Tensor) -> None:
        """Raise unless `now`, the model's bias, is what was written last, up to a cast of the model since then."""
        expected = self.written.flatten().to(self.router.bias.dtype)
        if not torch.equal(now.double(), expected.double()):
            raise RuntimeError(
                f"{self.router.path} has been changed since the balancer wrote it: by an optimizer or a second "
                "balancer, which must not, or by loading a model, after which load the balancer's state as well "
                "(load_state_dict) or start from what was loaded (read_biases)"
            )

    def report(self, load_E: NDArray[np.int64]) -> LayerReport:
        """The layer's part of a step's report."""
        return LayerReport(self.router.name, self.label, load_E, self.total_E, self.bias_E.copy())

    def check_state(self, saved: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64], State]:
        """Bias, summed loads and the rule's memory out of a saved state; ValueError if they do not fit."""
        name = self.router.name
        _refuse_missing({"bias", "total_load", "rule_state"}, saved, f"state of layer {name!r}")
        bias_E = self._saved(saved, "bias", torch.float64)
        check_bias(bias_E, self.num_experts, name=f"the saved bias of layer {name!r}")
        return bias_E, self._saved(saved, "total_load", torch.int64), unpack(saved["rule_state"], self.state)

    def _saved(self, saved: Mapping[str, Any], key: str, dtype: torch.dtype) -> NDArray[Any]:
        tensor = saved[key]
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.shape != (self.num_experts,):
            what = (
                f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else repr(tensor)
            )
            raise ValueError(
                f"{key} of layer {self.router.name!r} in state is {what}; this model has {self.num_experts} experts "
                f"there, and state_dict() saves {dtype} of shape ({self.num_experts},)"
            )
        return tensor.cpu().numpy().copy()


def _inside_backward() -> bool:
    """Whether autograd is running a backward pass in this thread.

    A forward pass in there is a recomputation under activation checkpointing, whose tokens have been counted:
    with and without ``use_reentrant``, and in the checkpoint functions of other libraries. Gradient mode would not
    tell: the first pass of the reentrant kind runs without it, the recomputations of both with it. It is how
    ``torch.utils.checkpoint`` itself knows one backward pass from another.
    """
    return bool(torch._C._current_graph_task_id() != -1)


def _zeros(num_experts: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be added to outside of it
        return torch.zeros(num_experts, dtype=torch.int64, device=device)


def _check_tensor(router: Router) -> torch.Tensor:
    """The router's bias, if the balancer can own it."""
    bias = router.bias
    if bias.requires_grad:
        raise ValueError(
            f"{router.path} requires grad, so an optimizer may move it; call .requires_grad_(False) on it before the "
            "optimizer is made"
        )
    if bias.is_meta:
        raise ValueError(f"{router.path} is on the meta device; load or initialise the model first, then attach")
    if type(bias).__name__ == "DTensor":
        raise ValueError(f"{router.path} is sharded; leave it out of sharding (FSDP: ignored_params), then attach")
    if not bias.is_floating_point() or bias.numel() != max(bias.shape, default=0):
        raise ValueError(
            f"{router.path} is {bias.dtype} of shape {tuple(bias.shape)}; a selection bias is one real number for each "
            "expert, shape (E,) or (1, E)"
        )
    return bias


def _load_only(rule: str | Rule, schedule: Schedule | float | None) -> Rule:
    """The rule by name or as it is, unless it needs what is not there in training."""
    if isinstance(rule, str):
        rule = make_rule(rule, schedule)
    elif schedule is not None:
        raise ValueError(
            f"schedule is {schedule!r} but the rule {rule!r} has its own; give the rule by name, or no schedule"
        )
    if not isinstance(rule, Rule):
        raise ValueError(f"rule is {rule!r}; pass a name (alflb.rule_names()) or a rule of alflb.rules")
    if rule.sees is not Sight.LOADS:
        raise ValueError(
            f"{rule!r} sees the scores, and in training only loads leave the device; choose a load-only rule such as "
            "'sign' or 'proportional'"
        )
    return rule


def _labels(names: list[str]) -> list[str]:
    """Short names for logs from the numbers in the paths, or the paths themselves where those are not unique."""
    numbers = [re.findall(r"(?<![^.])\d+(?![^.])", name) for name in names]
    labels = ["_".join(["layer", *(f"{int(number):02d}" for number in found)]) for found in numbers]
    return labels if all(numbers) and len(set(labels)) == len(labels) else names


def _refuse_missing(expected: set[str], saved: Mapping[str, Any], name: str) -> None:
    missing = sorted(expected - set(saved))
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; it was not saved whole")


def _describe(rule: Rule) -> str:
    """The rule's text, without the memory addresses of functions in it."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(rule))
