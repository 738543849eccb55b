"""Kernels in torch, on the CPU or a CUDA device: the same integers as the reference, wherever they run.

`route` works on tensors and never waits for the device. `TorchKernels` is the backend around it: numpy arrays in,
numpy arrays out, and of a run of `alflb.simulate` only the E loads and the dual sum come back each step, in one copy.

``torch.topk`` and ``torch.bincount`` are not enough: which of several equal experts the first returns is not defined
and differs between devices, and the second makes the host wait. Here ``topk`` only says *how large* the K-th largest
biased score is, which no order of ties can change; who gets in is then decided by comparison, lowest index first.
On CUDA a Triton kernel does all of it in one pass (`alflb.kernels.triton_`), where Triton is installed, for float32
and bfloat16 scores, up to 512 experts and 16 picks.

Drawn scores (`alflb.kernels.draws`) are made on the device, and are the same bits as elsewhere: their formulas consist
of integer operations and exactly rounded float32 operations, one torch operation each, so that none are fused.
"""

from __future__ import annotations

import importlib.util
import warnings
import weakref
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation, laws
from alflb.kernels.draws import Draw
from alflb.problem import FloatArray, check_top_k

try:
    import torch
except ImportError:
    raise ValueError("backend 'torch' needs torch; install it with: pip install 'alflb[torch]'") from None

CHUNK = 1024
"""Tokens whose dual values are added up together; part of the result's definition."""
_SCORES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Scores whose intermediate results exist at one time: what fits into cache, or leaves room in memory."""

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Tensor: TypeAlias = torch.Tensor


class Routed(NamedTuple):
    """An allocation as tensors of the scores' device."""

    experts_TK: Tensor
    """Chosen experts of each token, ascending; int32."""
    load_E: Tensor
    """Tokens per expert; int64."""
    dual_sum: Tensor
    """Sum of all picked biased scores; a float64 scalar."""


def check_tensor(scores_TE: Tensor, *, name: str = "scores") -> Tensor:
    """Return `scores_TE`, or say what is wrong with it; the counterpart of `alflb.problem.check_scores`.

    Reads the scores once and waits for the device, so check where scores enter, not at each step.

    Raises
    ------
    ValueError
        If the tensor is not 2-D, empty, not of a floating dtype, or holds NaN or +inf.

    Examples
    --------
    >>> check_tensor(torch.tensor([[0.5, float("nan")]]))
    Traceback (most recent call last):
    ...
    ValueError: scores holds NaN or +inf at token 0, expert 1; only -inf, a forbidden expert, is allowed
    """
    if scores_TE.dtype not in _FLOATS:
        raise ValueError(f"{name} has dtype {scores_TE.dtype}; pass float32, float64, bfloat16 or float16")
    if scores_TE.ndim != 2 or scores_TE.numel() == 0:
        shape = tuple(scores_TE.shape)
        raise ValueError(f"{name} has shape {shape}; pass at least one token and one expert, shape (tokens, experts)")
    if not bool(scores_TE.amax() < torch.inf):  # amax passes NaN on
        token, expert = (~(scores_TE < torch.inf)).nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds NaN or +inf at token {token}, expert {expert}; only -inf, a forbidden expert, is allowed"
        )
    return scores_TE


def route(scores_TE: Tensor, bias_E: Tensor, top_k: int) -> Routed:
    """Top-K of scores + bias for each token, ties to the lowest expert index, on the scores' device.

    Parameters
    ----------
    scores_TE : Tensor, shape (T, E)
        float32, float64, bfloat16 or float16; trusted not to hold NaN or +inf (`check_tensor`).
    bias_E : Tensor, shape (E,)
        On the same device. It is rounded to the dtype of the scores, in which sums and comparisons happen.
    top_k : int
        K, 1 <= K <= E.

    Returns
    -------
    Routed
        Nothing in it has been waited for.

    Raises
    ------
    ValueError
        If top_k or a shape, dtype or device does not fit.

    Examples
    --------
    >>> scores_TE = torch.tensor([[0.9, 0.1, 0.5], [0.5, 0.5, 0.5]])
    >>> experts_TK, load_E, dual_sum = route(scores_TE, torch.zeros(3), 2)
    >>> experts_TK.tolist(), load_E.tolist()
    ([[0, 2], [0, 1]], [2, 1, 1])
    """
    if scores_TE.ndim != 2 or scores_TE.dtype not in _FLOATS:
        raise ValueError(f"scores has shape {tuple(scores_TE.shape)} and dtype {scores_TE.dtype}; pass floats, 2-D")
    if bias_E.shape != scores_TE.shape[1:] or bias_E.device != scores_TE.device:
        raise ValueError(
            f"bias has shape {tuple(bias_E.shape)} on {bias_E.device}; pass one number for each expert, "
            f"shape ({scores_TE.shape[1]},), on {scores_TE.device}"
        )
    parts = _route(scores_TE, bias_E, check_top_k(top_k, scores_TE.shape[1]))
    return Routed(parts.experts_TK, parts.load_E, _sum_in_order(parts.dual_C))


class TorchKernels:
    """The backend "torch" on one device (see `alflb.kernels.Kernels`).

    Examples
    --------
    >>> kernels = TorchKernels(torch.device("cpu"))
    >>> kernels.loads(np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.5]]), np.zeros(3), 2)[0].tolist()
    [2, 1, 1]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: tuple[weakref.ref[FloatArray], Tensor] | None = None

    @property
    def routes_lazily(self) -> bool:
        """Whether routing a few tokens again is cheaper than all; on a GPU it is not, they come from host memory."""
        return self.device.type == "cpu"

    def allocate(self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
        """Top-K of scores + bias for each token, ties to the lowest expert index."""
        parts = _route(self._scores(scores_TE), self._bias(bias_E), top_k)
        return Allocation(parts.experts_TK.cpu().numpy(), *_fetch(parts.load_E, parts.dual_C))

    def loads(self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
        """Loads and dual sum of the same allocation; nothing else leaves the device."""
        parts = _route(self._scores(scores_TE), self._bias(bias_E), top_k, experts=False)
        return _fetch(parts.load_E, parts.dual_C)

    def allocate_with_margins(
        self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int
    ) -> tuple[Allocation, NDArray[np.float64]]:
        """The allocation, and each token's K-th minus (K+1)-th biased score (NaN if both are -inf)."""
        scores, bias = self._scores(scores_TE), self._bias(bias_E)
        margin_T = torch.cat([_margins(block_TE, bias, top_k) for block_TE in _blocks(scores)])
        return self.allocate(scores_TE, bias_E, top_k), margin_T.cpu().numpy()

    def allocate_in_groups(
        self, scores_TE: FloatArray, bias_E: FloatArray, top_k: int, n_group: int, topk_group: int
    ) -> Allocation:
        """Top-K of scores + bias from each token's best groups of experts; all ties to the lowest index."""
        scores, bias = self._scores(scores_TE), self._bias(bias_E)
        blocks = [_forbid_other_groups(block_TE, bias, n_group, topk_group) for block_TE in _blocks(scores)]
        parts = _route(torch.cat(blocks), bias, top_k)
        return Allocation(parts.experts_TK.cpu().numpy(), *_fetch(parts.load_E, parts.dual_C))

    def drawn_loads(self, draw: Draw, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
        """Loads and dual sum of scores that are made on the device, a block at a time."""
        bias, num_experts = self._bias(bias_E), draw.offset_E.size
        load_E = torch.zeros(num_experts, dtype=torch.int64, device=self.device)
        duals = []
        for first, last in _spans(draw.num_tokens, num_experts, self.device):
            parts = _route(_draw(draw, first, last, self.device), bias, top_k, experts=False)
            load_E += parts.load_E
            duals.append(parts.dual_C)
        return _fetch(load_E, torch.cat(duals))

    def draw_scores(self, draw: Draw) -> Tensor:
        """The scores of a draw as a tensor on the device: the bits of ``draw.scores()``."""
        spans = _spans(draw.num_tokens, draw.offset_E.size, self.device)
        return torch.cat([_draw(draw, first, last, self.device) for first, last in spans])

    def _scores(self, scores_TE: FloatArray) -> Tensor:
        """The scores on the device; an array that nobody can write to is copied there once."""
        if self._held is not None and self._held[0]() is scores_TE:
            return self._held[1]
        scores = _as_tensor(scores_TE).to(self.device)
        if self.device.type != "cpu" and not scores_TE.flags.writeable:
            self._held = weakref.ref(scores_TE), scores
        return scores

    def _bias(self, bias_E: FloatArray) -> Tensor:
        return _as_tensor(bias_E).to(self.device, non_blocking=True)


@lru_cache
def kernels_on(device: str) -> TorchKernels:
    """The kernels on a device by its torch name; an empty name means the GPU if there is one, else the CPU.

    Examples
    --------
    >>> kernels_on("cpu").device
    device(type='cpu')
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(chosen)
    except RuntimeError:
        raise ValueError(f"backend 'torch:{device}' names no torch device; try 'torch:cpu' or 'torch:cuda:0'") from None
    if place.type not in _SCORES_AT_ONCE:
        raise ValueError(f"backend 'torch:{device}': scores are routed on 'cpu' and 'cuda' only")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"backend 'torch:{device}': torch sees {torch.cuda.device_count()} CUDA devices here")
    return TorchKernels(place)


# ------------------------------------------------------------------------------------- routing


class _Parts(NamedTuple):
    """An allocation whose dual sum is yet to be added up."""

    experts_TK: Tensor
    """No rows if they were not wanted."""
    load_E: Tensor
    dual_C: Tensor


def _route(scores_TE: Tensor, bias_E: Tensor, top_k: int, *, experts: bool = True) -> _Parts:
    scores_TE = scores_TE if scores_TE.stride(1) == 1 else scores_TE.contiguous()
    bias_E = bias_E.to(scores_TE.dtype)
    if suits_triton(scores_TE, top_k):
        return route_by_triton(scores_TE, bias_E, top_k, experts=experts)
    return route_by_torch(scores_TE, bias_E, top_k, experts=experts)


def suits_triton(scores_TE: Tensor, top_k: int) -> bool:
    """Whether the Triton kernel takes these scores: on CUDA, of its dtypes, within its sizes, and installed."""
    if scores_TE.device.type != "cuda" or not _has_triton():
        return False
    from alflb.kernels.triton_ import MOST_EXPERTS, MOST_PICKS

    fits = scores_TE.shape[1] <= MOST_EXPERTS and top_k <= MOST_PICKS
    return fits and scores_TE.dtype in (torch.float32, torch.bfloat16)


@lru_cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def route_by_triton(scores_TE: Tensor, bias_E: Tensor, top_k: int, *, experts: bool = True) -> _Parts:
    """One pass over the scores; bias_E in their dtype."""
    from alflb.kernels import triton_

    num_tokens, num_experts = scores_TE.shape
    device = scores_TE.device
    experts_TK = torch.empty((num_tokens if experts else 0, top_k), dtype=torch.int32, device=device)
    load_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
    dual_C = torch.empty(-(-num_tokens // triton_.TOKENS), dtype=torch.float64, device=device)
    with torch.cuda.device_of(scores_TE):
        triton_.launch(scores_TE, bias_E, top_k, experts_TK if experts else None, load_E, dual_C)
    return _Parts(experts_TK, load_E, dual_C)


def route_by_torch(scores_TE: Tensor, bias_E: Tensor, top_k: int, *, experts: bool = True) -> _Parts:
    """A block at a time, so that intermediate results stay small; bias_E in the dtype of the scores."""
    load_E = torch.zeros(scores_TE.shape[1], dtype=torch.int64, device=scores_TE.device)
    found, duals = [], []
    for block_TE in _blocks(scores_TE):
        experts_TK, dual_C = _route_block(block_TE, bias_E, top_k)
        picks = experts_TK.flatten().long()
        load_E.scatter_add_(0, picks, torch.ones_like(picks))  # unlike bincount, does not make the host wait
        duals.append(dual_C)
        if experts:
            found.append(experts_TK)
    none = torch.empty((0, top_k), dtype=torch.int32, device=scores_TE.device)
    return _Parts(torch.cat(found) if experts else none, load_E, torch.cat(duals))


def _route_block(scores_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Experts, and the dual sum of each chunk."""
    biased_TE = scores_TE + bias_E
    rank_TE = _is_best(biased_TE, top_k).cumsum(dim=1, dtype=torch.int32)
    pick_K = torch.arange(1, top_k + 1, dtype=torch.int32, device=scores_TE.device)
    experts_TK = torch.searchsorted(rank_TE, pick_K.repeat(len(rank_TE), 1), out_int32=True)
    return experts_TK, _dual_of_chunks(biased_TE.gather(1, experts_TK.long()))


def _is_best(values_TE: Tensor, count: int) -> Tensor:
    """Which are the `count` largest of each row, ties to the lowest index."""
    best_TK = values_TE.topk(count, dim=1).values
    bar_T1 = best_TK[:, -1:]
    tied_TE = values_TE == bar_T1
    room_T1 = (best_TK == bar_T1).sum(dim=1, keepdim=True)
    first_tied_TE = tied_TE & (tied_TE.cumsum(dim=1, dtype=torch.int32) <= room_T1)
    return (values_TE > bar_T1) | first_tied_TE


def _forbid_other_groups(scores_TE: Tensor, bias_E: Tensor, n_group: int, topk_group: int) -> Tensor:
    """The scores, -inf outside each token's best groups (see `alflb.kernels`)."""
    biased_TGS = (scores_TE + bias_E.to(scores_TE.dtype)).unflatten(1, (n_group, -1))
    best_two_TG2 = biased_TGS.topk(2, dim=2).values
    is_kept_TG = _is_best(best_two_TG2[..., 1] + best_two_TG2[..., 0], topk_group)
    is_kept_TE = is_kept_TG.repeat_interleave(scores_TE.shape[1] // n_group, dim=1)
    return scores_TE.masked_fill(~is_kept_TE, -torch.inf)


def _margins(scores_TE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    biased_TE = scores_TE + bias_E.to(scores_TE.dtype)
    if top_k == biased_TE.shape[1]:
        return biased_TE.amin(dim=1).double() - (-torch.inf)
    best_TK = biased_TE.topk(top_k + 1, dim=1).values
    return (best_TK[:, -2] - best_TK[:, -1]).double()


def _blocks(scores_TE: Tensor) -> list[Tensor]:
    num_tokens, num_experts = scores_TE.shape
    return [scores_TE[first:last] for first, last in _spans(num_tokens, num_experts, scores_TE.device)]


def _spans(num_tokens: int, num_experts: int, device: torch.device) -> list[tuple[int, int]]:
    """Where blocks begin and end: whole chunks, so that the dual sum does not depend on the blocks."""
    rows = max(1, _SCORES_AT_ONCE[device.type] // (num_experts * CHUNK)) * CHUNK
    return [(first, min(first + rows, num_tokens)) for first in range(0, num_tokens, rows)]


# ------------------------------------------------------------------------------------- sums in a fixed order
#
# torch adds up in an order that depends on the device, the shape and the number of threads. Written as sums of whole
# tensors the order is ours.


def _dual_of_chunks(value_TK: Tensor) -> Tensor:
    """The sum of each `CHUNK` tokens' values, in float64."""
    dual_T = value_TK[:, 0].double()
    for k in range(1, value_TK.shape[1]):
        dual_T += value_TK[:, k]
    num_chunks = -(-len(dual_T) // CHUNK)
    padded = torch.nn.functional.pad(dual_T, (0, num_chunks * CHUNK - len(dual_T)))
    return _fold(padded.view(num_chunks, CHUNK))


def _sum_in_order(dual_C: Tensor) -> Tensor:
    length = 1 << (len(dual_C) - 1).bit_length()
    return _fold(torch.nn.functional.pad(dual_C, (0, length - len(dual_C))))


def _fold(values: Tensor) -> Tensor:
    """Sum over the last axis, whose length is a power of two: halves are added until one number is left."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def _fetch(load_E: Tensor, dual_C: Tensor) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum on the host, by one copy."""
    dual_sum = _sum_in_order(dual_C).reshape(1)
    words = torch.cat([load_E, dual_sum.view(torch.int64)]).cpu().numpy()
    return words[:-1].copy(), float(words[-1:].view(np.float64)[0])


def _as_tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # we only read
        return torch.from_numpy(array)


# ------------------------------------------------------------------------------------- drawn scores
#
# The formulas of `alflb.kernels.laws`. An operation of torch is one rounding, on every device, and so is its division.


def _draw(draw: Draw, first: int, last: int, device: torch.device) -> Tensor:
    """Scores of tokens first..last - 1."""
    num_experts = draw.offset_E.size
    words = -(-num_experts // 16) * 8
    token_T1 = torch.arange(first, last, dtype=torch.int64, device=device)[:, None]
    word_W = torch.arange(words, dtype=torch.int64, device=device)
    counter_TW = (token_T1 * words + word_W) * _GOLDEN + _signed(draw.key)
    half_TE = _hash(counter_TW).view(torch.int32)[:, :num_experts]
    return _LAWS[draw.distribution](half_TE, _as_tensor(draw.offset_E).to(device))


def _signed(word: int) -> int:
    """The int64 with the bits of a uint64."""
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN, _MIX_1, _MIX_2 = (_signed(word) for word in (laws.GOLDEN, laws.MIX_1, laws.MIX_2))


def _hash(z: Tensor) -> Tensor:
    """The last steps of splitmix64; products wrap around as they do in uint64."""
    first, second, third = laws.SHIFTS
    z = (z ^ _shift_right(z, first)) * _MIX_1
    z = (z ^ _shift_right(z, second)) * _MIX_2
    return z ^ _shift_right(z, third)


def _shift_right(z: Tensor, places: int) -> Tensor:
    """Zeros come in from the left, as for unsigned integers."""
    return (z >> places) & ((1 << (64 - places)) - 1)


def _uniform(half: Tensor, offset_E: Tensor) -> Tensor:
    return ((half >> 8) & 0xFFFFFF).float() * laws.TWO_TO_MINUS_24 + offset_E


def _logistic(half: Tensor, offset_E: Tensor) -> Tensor:
    return _mirrored(_log(laws.odds(_tail(half))), half) + offset_E


def _gumbel(half: Tensor, offset_E: Tensor) -> Tensor:
    v = _tail(half)
    upper = _is_upper(half)
    near_one = -laws.log_of_one_plus(-v)
    elsewhere = -_log(torch.where(upper, laws.ONE - v, v))
    return offset_E - _log(torch.where(upper & (v < laws.QUARTER), near_one, elsewhere))


def _normal(half: Tensor, offset_E: Tensor) -> Tensor:
    v = _tail(half)
    w = -_log(laws.four_v_times_one_minus_v(v))
    root = w.double().sqrt().float()  # the root of a float32 alone is not exactly rounded on the CPU
    quotient = torch.where(w < laws.SIX, laws.normal_center(w), laws.normal_tail(root))
    return _mirrored(laws.normal_distance(v, quotient), half) + offset_E


_LAWS = {"uniform": _uniform, "logistic": _logistic, "gumbel": _gumbel, "normal": _normal}


def _is_upper(half: Tensor) -> Tensor:
    return (half & 1) != 0


def _tail(half: Tensor) -> Tensor:
    return laws.tail_probability(((half >> 1) & 0x7FFFFFFF).float())


def _mirrored(distance: Tensor, half: Tensor) -> Tensor:
    return torch.where(_is_upper(half), distance, -distance)


def _log(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    exponent = (bits - laws.SQRT_HALF_BITS) >> 23
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    return laws.log_of_parts(mantissa, exponent.float())
