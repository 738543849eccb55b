"""What a step of the balancer did, layer by layer, as numbers one logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb import metrics
from alflb.logs import percentiles


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One layer at one step: the loads its bias produced, and the bias the rule made of them.

    Examples
    --------
    >>> layer = LayerReport("mlp", "layer_00", np.array([3, 0, 3]), np.array([6, 6, 6]), np.array([-0.5, 0.5, -0.5]),
    ...                     np.zeros(3))
    >>> layer.numbers()  # doctest: +NORMALIZE_WHITESPACE
    {'min_vio': -1.0, 'avg_vio': 0.6666666666666666, 'max_vio': 0.5, 'max_vio_global': 0.0, 'bias_spread': 1.0,
    'dead_experts': 1, 'dead_experts_global': 0}
    """

    name: str
    """Path of the router's block in the model."""
    label: str
    """Short name for logs: "layer_03"."""
    load_E: NDArray[np.int64]
    """Tokens per expert in this step, over all micro-batches and ranks."""
    total_E: NDArray[np.int64]
    """The same summed over steps, since attach or the last `LoadBalancer.reset_totals`."""
    bias_E: NDArray[np.float64]
    """The bias after this step, score units."""
    previous_bias_E: NDArray[np.float64]
    """The bias that led to these loads."""
    target_E: NDArray[np.float64] | None = None
    """Loads wanted, up to a common factor; None for equal ones."""
    top_k: int | None = None
    """Experts per token, where it is known."""

    @property
    def max_vio(self) -> float:
        """MaxVio_batch: the largest load / target of this step, less 1 (Wang et al., arXiv 2408.15664)."""
        return float(metrics.max_vio(*self._against_target(self.load_E)))

    @property
    def min_vio(self) -> float:
        """MinVio of this step: the smallest load / target, less 1; -1 if an expert got no token."""
        return float(metrics.min_vio(*self._against_target(self.load_E)))

    @property
    def avg_vio(self) -> float:
        """AvgVio of this step: the mean of abs(load / target - 1)."""
        return float(metrics.avg_vio(*self._against_target(self.load_E)))

    @property
    def max_vio_global(self) -> float:
        """MaxVio_global: the same of the summed loads."""
        return float(metrics.max_vio(*self._against_target(self.total_E)))

    def max_vio_ranks(self, num_ranks: int) -> float:
        """MaxVio of the ranks of expert parallelism in this step, each with E / R consecutive experts."""
        load_E, target_E = self._against_target(self.load_E)
        targets = None if target_E is None else metrics.rank_loads(target_E, num_ranks)
        return float(metrics.max_vio(metrics.rank_loads(load_E, num_ranks), targets))

    @property
    def bias_spread(self) -> float:
        """max(bias) - min(bias), score units."""
        return float(np.ptp(self.bias_E))

    @property
    def dead_experts(self) -> int:
        """Experts without a token in this step."""
        return int(np.count_nonzero(self.load_E == 0))

    @property
    def dead_experts_global(self) -> int:
        """Experts without a token in all steps summed."""
        return int(np.count_nonzero(self.total_E == 0))

    def numbers(self) -> dict[str, float]:
        """All of them by name."""
        return {
            "min_vio": self.min_vio,
            "avg_vio": self.avg_vio,
            "max_vio": self.max_vio,
            "max_vio_global": self.max_vio_global,
            "bias_spread": self.bias_spread,
            "dead_experts": self.dead_experts,
            "dead_experts_global": self.dead_experts_global,
        }

    def _against_target(self, load_E: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Loads and the target they are measured by, in tokens."""
        return load_E, None if self.target_E is None else load_E.sum() * self.target_E / self.target_E.sum()


class StepReport:
    """One step of the balancer: its number t = 1, 2, ... and every layer that saw tokens in it.

    Parameters
    ----------
    step : int
    layers : tuple of LayerReport, or callable that returns one
        A callable is called when the layers are first looked at, which waits for the device they are on.
    """

    def __init__(self, step: int, layers: tuple[LayerReport, ...] | Callable[[], tuple[LayerReport, ...]]) -> None:
        self.step = step
        self._layers = layers

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """The layers that saw tokens; raises what the step has found wrong, if that has waited until now."""
        if callable(self._layers):
            self._layers = self._layers()
        return self._layers

    def __repr__(self) -> str:
        return f"StepReport(step={self.step})"

    def as_dict(self, prefix: str = "alflb", num_ranks: int | None = None) -> dict[str, float]:
        """A flat dict as TensorBoard and W&B take it: every layer's numbers, and how MaxVio is spread over layers.

        Parameters
        ----------
        prefix : str
            Begins every name.
        num_ranks : int, optional
            Ranks of expert parallelism, each with E / R consecutive experts: adds their MaxVio, which says how long the
            busiest rank takes, as ``max_vio_ranks``.

        Raises
        ------
        ValueError
            If the ranks do not divide the experts.

        Examples
        --------
        >>> layer = LayerReport("mlp", "layer_00", np.array([3, 1]), np.array([3, 1]), np.array([-0.5, 0.5]),
        ...                     np.zeros(2))
        >>> report = StepReport(1, (layer,)).as_dict()
        >>> report["alflb/layer_00/max_vio"], report["alflb/max_vio_mean"]
        (0.5, 0.5)
        """
        flat = {
            f"{prefix}/{layer.label}/{name}": value for layer in self.layers for name, value in layer.numbers().items()
        }
        for name in ("max_vio", "max_vio_global"):
            values = [getattr(layer, name) for layer in self.layers]
            if values:  # a pipeline stage may have no layer that saw tokens
                flat[f"{prefix}/{name}_mean"] = float(np.mean(values))
                flat[f"{prefix}/{name}_max"] = float(np.max(values))
        if self.layers:
            spread = percentiles(layer.max_vio for layer in self.layers)
            flat |= {f"{prefix}/max_vio_{name}": value for name, value in spread.items()}
        if num_ranks is not None:
            for layer in self.layers:
                flat[f"{prefix}/{layer.label}/max_vio_ranks"] = layer.max_vio_ranks(num_ranks)
        flat[f"{prefix}/dead_experts"] = sum(layer.dead_experts for layer in self.layers)
        return flat
