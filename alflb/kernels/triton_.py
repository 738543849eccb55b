"""Biased top-K as one Triton kernel: reads the scores once; writes experts, loads and dual sums.

A program routes `TOKENS` tokens, a *tile* at a time. Floats are compared as integers that sort like them. The
K-th largest key of a token is found by K rounds of "the largest one below the last", which needs distinct keys:

* bfloat16 scores leave room in an int32 for the expert's index: no two keys are equal, ties go to the lowest index.
* float32 scores fill the int32. If more than K experts reach the bar then two of them tie, and only then the tile
  is done again with keys of 64 bits that hold the index too.

`alflb.kernels.torch_` launches it. With TRITON_INTERPRET=1 in the environment it runs on the CPU, which is how it
is tested where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

MOST_EXPERTS, MOST_PICKS = 512, 16
"""Beyond these the rounds would be many or the tile large; torch itself is used then."""
TOKENS = 32
"""Tokens a program routes; each program adds up its own dual values, so this is part of the result's definition.

Few, so that there are programs for a whole GPU; not one by one, since each program adds E loads to memory."""
_TILE = 512
"""Scores a program holds at a time."""
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
"""How the kernel is compiled. With one warp a row never leaves it, so nothing waits at a barrier."""

_LOWEST_32 = tl.constexpr(-(2**31))
_LOWEST_64 = tl.constexpr(-(2**63))


def launch(scores_TE: Any, bias_E: Any, top_k: int, experts_TK: Any | None, load_E: Any, dual_P: Any) -> None:
    """Start the kernel on tensors of one device.

    Parameters
    ----------
    scores_TE : tensor of float32 or bfloat16, shape (T, E)
        Its rows must be contiguous.
    bias_E : tensor of the same dtype, shape (E,)
    top_k : int
    experts_TK : tensor of int32, shape (T, K), or None
        Filled if given.
    load_E : tensor of int64, shape (E,)
        Loads are added to it.
    dual_P : tensor of float64, shape (ceil(T / TOKENS),)
        The dual sum of each `TOKENS` tokens.
    """
    num_tokens, num_experts = scores_TE.shape
    route_tokens[(len(dual_P),)](
        scores_TE,
        bias_E,
        load_E if experts_TK is None else experts_TK,
        load_E,
        dual_P,
        num_tokens,
        scores_TE.stride(0),
        **constants(num_experts, top_k, write_experts=experts_TK is not None),
        **OPTIONS,
    )


def constants(num_experts: int, top_k: int, *, write_experts: bool) -> dict[str, int]:
    """What the kernel is compiled for."""
    block_experts = triton.next_power_of_2(num_experts)
    block_tokens = min(TOKENS, max(1, _TILE // block_experts))
    return {
        "NUM_EXPERTS": num_experts,
        "TOP_K": top_k,
        "WRITE_EXPERTS": write_experts,
        "BLOCK_T": block_tokens,
        "BLOCK_E": block_experts,
        "TILES": TOKENS // block_tokens,
    }


@triton.jit
def route_tokens(
    scores,
    bias,
    experts,
    load,
    dual,
    num_tokens,
    row_stride,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    WRITE_EXPERTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILES: tl.constexpr,
):
    """Route `TILES` times `BLOCK_T` tokens; see `launch` for the arguments."""
    program = tl.program_id(0)
    expert_E = tl.arange(0, BLOCK_E)
    exists_E = expert_E < NUM_EXPERTS
    bias_E = tl.load(bias + expert_E, mask=exists_E, other=0.0)
    load_TE = tl.zeros([BLOCK_T, BLOCK_E], tl.int32)
    dual_T = tl.zeros([BLOCK_T], tl.float64)
    for tile in range(TILES):
        token_T = (program * TILES + tile) * BLOCK_T + tl.arange(0, BLOCK_T)
        exists_TE = (token_T < num_tokens)[:, None] & exists_E[None, :]
        row_T = token_T.to(tl.int64)
        score_TE = tl.load(scores + row_T[:, None] * row_stride + expert_E[None, :], mask=exists_TE, other=0.0)
        biased_TE = _add(score_TE, bias_E[None, :])
        hit_TE = _top_k(biased_TE, expert_E[None, :], exists_TE, TOP_K, score_TE.dtype)
        load_TE += hit_TE.to(tl.int32)
        dual_T += tl.sum(tl.where(hit_TE, biased_TE, 0.0).to(tl.float64), axis=1)
        if WRITE_EXPERTS:
            pick_TE = tl.cumsum(hit_TE.to(tl.int32), axis=1) - 1
            place_TE = row_T[:, None] * TOP_K + pick_TE
            tl.store(experts + place_TE, tl.broadcast_to(expert_E[None, :], [BLOCK_T, BLOCK_E]), mask=hit_TE)
    load_E = tl.sum(load_TE, axis=0)
    tl.atomic_add(load + expert_E, load_E.to(tl.int64), mask=exists_E, sem="relaxed")
    tl.store(dual + program, tl.sum(dual_T, axis=0))


@triton.jit
def _add(score, bias):
    """Score + bias as a float32, rounded to the type of the scores; -0 becomes 0, since the two compare equal.

    A sum of two bfloat16 rounded to float32 and then to bfloat16 is the sum rounded once. The second rounding, half to
    even, is done by hand: Triton's interpreter truncates.
    """
    total = (score.to(tl.float32) + bias.to(tl.float32)) + 0.0
    if score.dtype == tl.bfloat16:
        bits = total.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF
        total = bits.to(tl.float32, bitcast=True)
    return total


@triton.jit
def _top_k(biased_TE, expert_E, exists_TE, TOP_K: tl.constexpr, dtype: tl.constexpr):
    """Whether an expert is among the K best of a token, ties to the lowest index."""
    bits_TE = biased_TE.to(tl.int32, bitcast=True)
    key_TE = bits_TE ^ ((bits_TE >> 31) & 0x7FFFFFFF)
    rank_E = 0xFFFF - expert_E
    if dtype == tl.bfloat16:  # the lower half of the key is the same in all
        key_TE = (key_TE & ~0xFFFF) | rank_E
    key_TE = tl.where(exists_TE, key_TE, _LOWEST_32)
    hit_TE = (key_TE >= _kth_largest(key_TE, TOP_K, _LOWEST_32)[:, None]) & exists_TE
    if dtype == tl.float32:  # noqa: SIM102 - settled when compiled, the next one when run
        if tl.max(tl.sum(hit_TE.to(tl.int32), axis=1), axis=0) > TOP_K:
            wide_TE = (key_TE.to(tl.int64) << 32) | rank_E.to(tl.int64)
            hit_TE = (wide_TE >= _kth_largest(wide_TE, TOP_K, _LOWEST_64)[:, None]) & exists_TE
    return hit_TE


@triton.jit
def _kth_largest(key_TE, TOP_K: tl.constexpr, LOWEST: tl.constexpr):
    """The K-th largest of each row's distinct keys, LOWEST if there are fewer."""
    bar_T = tl.max(key_TE, axis=1)
    for _ in tl.static_range(TOP_K - 1):
        bar_T = tl.max(tl.where(key_TE < bar_T[:, None], key_TE, LOWEST), axis=1)
    return bar_T
