"""What a model's routers said on some text: scores, bias and groups of every layer, confirmed by the picks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alflb.kernels.routing import route
from alflb.traces import RouterTrace
from alflb.training.hooks import TopKWatcher
from alflb.training.routers import Chooser, find_choosers

CONFIRMED = 0.999
"""Share of tokens whose picks the scores must reproduce."""

SCORE_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sqrtsoftplus": lambda logits: nn.functional.softplus(logits).sqrt(),
}
"""What routers make of their logits before they choose."""


def capture(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor] | torch.Tensor]) -> dict[str, RouterTrace]:
    """Run a model on some batches and keep the scores of every router that chooses by ``torch.topk``.

    Nothing is assumed about a router: its score function is the one that gives the numbers it ranked, and the captured
    scores, bias and groups must reproduce its picks.

    Parameters
    ----------
    model : torch.nn.Module
        It is run in evaluation mode without gradients, and left in the mode it had.
    batches : iterable of mapping or torch.Tensor
        Keyword arguments of ``forward``, or token ids of shape (batch, length). Tokens where a two-dimensional
        ``attention_mask`` is 0 are padding and left out. Each row of a batch counts as a document.

    Returns
    -------
    dict of str to RouterTrace
        By path of the layer: float32 scores before the bias, the bias in force if there is one, K, groups, and as
        metadata the score function and the share of tokens whose picks were reproduced.

    Raises
    ------
    ValueError
        If no router chooses by ``torch.topk``, or the picks of less than 99.9% of the tokens are reproduced.
    """
    choosers = find_choosers(model)
    if not choosers:
        raise ValueError(f"{type(model).__name__} has no router that chooses by torch.topk among its experts")
    recorders = [_Recorder(chooser) for chooser in choosers]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        real_T, starts_D = _run(model, batches)
    finally:
        for module, was_training in modes:
            module.training = was_training
        for recorder in recorders:
            recorder.remove()
    called = [recorder for recorder in recorders if recorder.picks]
    return {recorder.chooser.name: recorder.trace(type(model).__name__, real_T, starts_D) for recorder in called}


class _Recorder:
    """What one router ranked, picked and returned, call by call."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.ranked: list[torch.Tensor] = []
        self.picks: list[torch.Tensor] = []
        self.outputs: list[list[torch.Tensor]] = []
        watcher = TopKWatcher(chooser.num_experts, self._see)
        self._handles = [*watcher.attach(chooser.module), chooser.module.register_forward_hook(self._keep_outputs)]

    def remove(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()

    def trace(self, model_name: str, real_T: NDArray[np.bool_], starts_D: NDArray[np.int64]) -> RouterTrace:
        """The trace of the real tokens, after its picks have been confirmed."""
        name, num_experts = self.chooser.name, self.chooser.num_experts
        ranked_TE = torch.cat(self.ranked)
        picks_TK = torch.cat(self.picks).numpy()
        if len(picks_TK) != len(real_T):
            raise ValueError(f"{name} routed {len(picks_TK)} tokens of {len(real_T)}; capture needs all of them")
        bias_E, unbiased_TE = np.zeros(num_experts), ranked_TE
        if self.chooser.bias is not None:
            bias = self.chooser.bias.detach().flatten().cpu()
            bias_E = bias.double().numpy()
            unbiased_TE = ranked_TE if self.chooser.bias_is_added else ranked_TE - bias
        function, scores_TE = self._score_function(unbiased_TE)
        top_k, groups = picks_TK.shape[1], self.chooser.groups
        chosen = route(
            scores_TE, bias_E, top_k, n_group=groups.get("n_group", 1), topk_group=groups.get("topk_group")
        ).experts_TK
        agreement = float(np.mean((np.sort(chosen, axis=1) == np.sort(picks_TK, axis=1)).all(axis=1)))
        if agreement < CONFIRMED:
            raise ValueError(
                f"{name}: {function} of its logits reproduces the picks of {agreement:.2%} of the tokens only, so the "
                f"captured scores would not be those it chooses by; at least {CONFIRMED:.1%} are needed"
            )
        metadata = {"model": model_name, "layer": name, "score_function": function, "picks_reproduced": agreement}
        kept_E = None if self.chooser.bias is None else bias_E
        return RouterTrace(scores_TE[real_T], top_k, kept_E, {**metadata, **groups}, starts_D)

    def _score_function(self, unbiased_TE: torch.Tensor) -> tuple[str, NDArray[np.float32]]:
        """Name and values of the function of an output that is closest to the numbers the router ranked.

        Numbers that a router has masked (groups it does not use) are left out of the comparison.
        """
        best = ("the ranked number", unbiased_TE, torch.inf if self.chooser.groups else 1e-3)
        for logits_TE in self._logits():
            for name, function in SCORE_FUNCTIONS.items():
                scores_TE = function(logits_TE)
                distance = _distance(scores_TE, unbiased_TE)
                if distance < best[2]:
                    best = (name, scores_TE, distance)
        return best[0], best[1].numpy()

    def _logits(self) -> list[torch.Tensor]:
        """Outputs of the router that hold one number per token and expert."""
        kept = [torch.cat(values) for values in zip(*self.outputs)] if all(self.outputs) else []
        return [value for value in kept if value.shape == torch.cat(self.ranked).shape]

    def _see(self, module: nn.Module, ranked: torch.Tensor, picks: torch.Tensor) -> None:
        self.ranked.append(ranked.float().reshape(-1, ranked.shape[-1]).cpu())
        self.picks.append(picks.reshape(-1, picks.shape[-1]).cpu())

    def _keep_outputs(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        values = output if isinstance(output, tuple) else (output,)
        numbers = [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
        fitting = [value for value in numbers if value.ndim and value.shape[-1] == self.chooser.num_experts]
        self.outputs.append([value.detach().float().reshape(-1, value.shape[-1]).cpu() for value in fitting])


def _distance(scores_TE: torch.Tensor, ranked_TE: torch.Tensor) -> float:
    """Median over tokens of the lower quartile of the deviations: masked groups do not count, a wrong function does."""
    deviation_TE = (scores_TE - ranked_TE).abs().nan_to_num(nan=torch.inf)
    return float(deviation_TE.kthvalue(max(1, deviation_TE.shape[1] // 4), dim=1).values.median())


def _run(
    model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor] | torch.Tensor]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Call the model on every batch; which tokens are real, and where each row starts among the real ones."""
    real, lengths = [], []
    for batch in batches:
        arguments = batch if isinstance(batch, Mapping) else {"input_ids": batch}
        ids = arguments["input_ids"]
        mask = arguments.get("attention_mask")
        real_BL = torch.ones(ids.shape, dtype=torch.bool) if mask is None or mask.ndim != 2 else mask.cpu() != 0
        with torch.no_grad():
            model(**arguments)
        real.append(real_BL.flatten())
        lengths += real_BL.sum(dim=1).tolist()
    if not lengths:
        raise ValueError("batches is empty; pass at least one batch")
    starts = np.cumsum([0, *lengths])[:-1]
    return torch.cat(real).numpy(), np.unique(starts[np.array(lengths) > 0])
