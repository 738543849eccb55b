"""Biased top-K allocation: the one operation everything else calls, in interchangeable backends.

A backend has the functions of `Kernels`, which agree in every integer with `alflb.kernels.reference`.
The contract:

* ``biased = scores + bias.astype(scores.dtype)``: sums and comparisons happen in the scores' own dtype;
* each token takes the K experts with the largest biased scores, ties to the lowest expert index;
* ``experts_TK`` lists them in ascending expert order; ``load_E`` counts them in int64;
* ``dual_sum`` is the sum of all picked biased scores, accumulated in float64. Its value may differ
  between backends by rounding, never between thread counts or runs.

Group-limited routing (`Kernels.allocate_in_groups`) is the same operation on scores in which the pairs outside each
token's best groups are forbidden, -inf:

* the experts form `n_group` groups of equal size, neighbors together;
* a group's score is the sum of its two largest biased scores, added in the scores' own dtype;
* each token keeps the `topk_group` groups with the largest scores, ties to the lowest group index.

Kernels trust their input; scores are checked once where they enter (`alflb.problem.check_scores`).
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alflb.kernels.draws import Draw
from alflb.problem import FloatArray
from alflb.registry import unknown_name


class Allocation(NamedTuple):
    """What top-K of scores + bias decided for one batch."""

    experts_TK: NDArray[np.int32]
    """Chosen experts of each token, ascending."""
    load_E: NDArray[np.int64]
    """Tokens per expert, A(p)."""
    dual_sum: float
    """Sum over tokens of S_K(gamma_i + p), so that D(p) = dual_sum - <target, p>."""


class Kernels(Protocol):
    """A backend: biased top-K, and what comes with it more cheaply than after it."""

    @property
    def routes_lazily(self) -> bool:
        """Whether `alflb.kernels.counting` may look at single tokens of a fixed batch; costly if it lies elsewhere."""

    def allocate(self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
        """Choose top_k experts for each token."""

    def loads(self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
        """The same, returning only (load_E, dual_sum)."""

    def allocate_with_margins(
        self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int
    ) -> tuple[Allocation, NDArray[np.float64]]:
        """The allocation, and each token's K-th minus (K+1)-th biased score (NaN if both are -inf)."""

    def allocate_in_groups(
        self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int, n_group: int, topk_group: int
    ) -> Allocation:
        """Choose top_k experts for each token, from its topk_group best groups of experts."""

    def drawn_loads(self, draw: Draw, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
        """``loads(draw.scores(), bias_E, top_k)``, bit for bit, with no need to store the scores."""


class _Backend(NamedTuple):
    module: str
    """Where its kernels are: the module itself or, on several devices, what its `kernels_on` returns."""
    has_devices: bool = False
    """Whether a device may follow the name, after a colon."""


_BACKENDS = {
    "reference": _Backend("alflb.kernels.reference"),
    "numba": _Backend("alflb.kernels.numba_"),
    "torch": _Backend("alflb.kernels.torch_", has_devices=True),
}


def backend_names() -> list[str]:
    """Names accepted as `backend`."""
    return sorted(_BACKENDS)


def get_kernels(backend: str) -> Kernels:
    """The kernels of a backend by name; imported on first use, so `import alflb` compiles nothing.

    Parameters
    ----------
    backend : str
        "numba", "reference" or "torch"; the last works on the GPU if torch sees one, else on the CPU, and on a
        device of your choice if that is named: "torch:cpu", "torch:cuda", "torch:cuda:1".

    Raises
    ------
    ValueError
        If there is no such backend or device, or torch is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> kernels = get_kernels("reference")
    >>> scores_TE = np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.5]])
    >>> experts_TK, load_E, dual_sum = kernels.allocate(scores_TE, np.zeros(3), 2)
    >>> experts_TK.tolist(), load_E.tolist()
    ([[0, 2], [0, 1]], [2, 1, 1])
    """
    name, colon, device = str(backend).partition(":")
    chosen = _BACKENDS.get(name)
    if chosen is None or (colon and not chosen.has_devices):
        raise unknown_name("backend", backend, _BACKENDS)
    module: Any = importlib.import_module(chosen.module)
    kernels: Kernels = module.kernels_on(device) if chosen.has_devices else module
    return kernels
