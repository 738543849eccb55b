"""One pass over the batches as a reduction: each batch becomes a summary, and summaries are added up in batch order.

A task is a frozen dataclass called with (index of the batch, scores) and nothing else, so it can be pickled and sent to
where the batch is; what comes back is bounded by the numbers of experts and of rows wanted, not by the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from alflb.exact.batched import Batch, load_batch
from alflb.exact.screening.row_kernels import largest_finite
from alflb.exact.streaming.results import MapBatches
from alflb.exact.streaming.row_kernels import route_rows, sum_words
from alflb.kernels._blocks import make_routing, make_scratch
from alflb.problem import FloatArray

NUM_BINS = 32
"""Bins of swaps for each ordered pair of experts; each is twice as wide as the one before."""

SAMPLE_ROWS = 1024
"""Rows of the sample for each expert, if the caller does not say how many ..."""
MOST_SAMPLE_ROWS = 2**16
"""... and at most this many."""

_GUARD = 8
"""Roundings of the scores' dtype by which the search for candidates is widened."""


class Summary(Protocol):
    """What a batch leaves behind."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of all batches in this summary."""

    def merged(self, other: Self) -> Self:
        """The summary of both, the other's batches following one's own; may reuse the memory of either."""


AnySummary = TypeVar("AnySummary", bound=Summary)


@dataclass(frozen=True)
class Fingerprint:
    """Digest of the batches of one pass; a source that changes between passes has another at the next."""

    num_batches: int
    num_tokens: int
    num_experts: int
    dtype: str
    bits: int
    """Sum of the scores' bit patterns, modulo 2^64."""

    @classmethod
    def of(cls, scores_TE: FloatArray) -> Fingerprint:
        """Fingerprint of one batch."""
        words = scores_TE.reshape(-1).view(np.uint32 if scores_TE.dtype == np.float32 else np.uint64)
        num_tokens, num_experts = scores_TE.shape
        return cls(1, num_tokens, num_experts, scores_TE.dtype.name, int(sum_words(words)))

    def merged(self, other: Fingerprint) -> Fingerprint:
        """Fingerprint of both; ValueError if they cannot be parts of one problem."""
        if (self.num_experts, self.dtype) != (other.num_experts, other.dtype):
            raise ValueError(
                f"batch {self.num_batches + 1} has {other.num_experts} experts in {other.dtype}, those before "
                f"{self.num_experts} in {self.dtype}; experts and dtype must not change"
            )
        return Fingerprint(
            self.num_batches + other.num_batches,
            self.num_tokens + other.num_tokens,
            self.num_experts,
            self.dtype,
            (self.bits + other.bits) % 2**64,
        )


@dataclass(frozen=True, eq=False)
class Survey:
    """What has to be known before the first bias: sizes, and a uniform sample of the rows."""

    fingerprint: Fingerprint
    largest: float
    """max |score| over the finite scores."""
    sample_ME: FloatArray
    key_M: NDArray[np.uint64]
    """A random number for each row of the sample: those with the smallest numbers are kept."""
    most_rows: int

    def merged(self, other: Survey) -> Survey:
        """The survey of both."""
        return Survey(
            self.fingerprint.merged(other.fingerprint),
            max(self.largest, other.largest),
            *_with_smallest_keys(
                np.concatenate([self.sample_ME, other.sample_ME]),
                np.concatenate([self.key_M, other.key_M]),
                self.most_rows,
            ),
            self.most_rows,
        )


@dataclass(frozen=True)
class SurveyTask:
    """Look at a batch for the first time."""

    seed: int
    sample_rows: int | None
    """Most rows of the sample; None: see `SAMPLE_ROWS`."""

    def __call__(self, indexed: tuple[int, FloatArray]) -> Survey:
        """Size, range and sample of one batch."""
        index, scores_TE = indexed
        scores_TE = read_only(scores_TE)
        most_rows = self.sample_rows or min(SAMPLE_ROWS * scores_TE.shape[1], MOST_SAMPLE_ROWS)
        key_T = np.random.default_rng((self.seed, index)).integers(2**64, size=len(scores_TE), dtype=np.uint64)
        return Survey(
            Fingerprint.of(scores_TE),
            largest_finite(scores_TE),
            *_with_smallest_keys(scores_TE, key_T, most_rows),
            most_rows,
        )


def _with_smallest_keys(
    rows_NE: FloatArray, key_N: NDArray[np.uint64], most: int
) -> tuple[FloatArray, NDArray[np.uint64]]:
    if len(key_N) <= most:
        return rows_NE, key_N
    kept = np.sort(np.argpartition(key_N, most)[:most])
    return rows_NE[kept], key_N[kept]


@dataclass(frozen=True, eq=False)
class Routing:
    """The top-K assignment of a bias, and the swaps that could balance its loads."""

    fingerprint: Fingerprint
    load_E: NDArray[np.int64]
    count_EEB: NDArray[np.int64]
    """Tokens by the last expert in, the first one out, and the margin between them."""
    loss_EEB: NDArray[np.float64]
    """What their swaps lose, score units."""
    sums: NDArray[np.float64]
    """See `row_kernels.route_rows`."""
    close_ME: FloatArray
    """The rows closest to a tie."""
    gap_M: NDArray[np.float64]
    """Their margins."""
    experts_MK: NDArray[np.int32]
    """The experts chosen for them."""
    most_rows: int

    @property
    def best(self) -> float:
        """sum_i S_K(gamma_i + p)."""
        return self.sums[0] + self.sums[1]

    @property
    def chosen(self) -> float:
        """The same of the experts chosen, which may be less by the dither."""
        return self.sums[2] + self.sums[3]

    def merged(self, other: Routing) -> Routing:
        """The routing of both; adds to the arrays of `self`."""
        self.load_E[:] += other.load_E
        self.count_EEB[:] += other.count_EEB
        self.loss_EEB[:] += other.loss_EEB
        for place in (0, 2):
            high, low = _two_sum(self.sums[place], other.sums[place])
            self.sums[place], self.sums[place + 1] = high, self.sums[place + 1] + other.sums[place + 1] + low
        self.sums[4] += other.sums[4]
        close = (
            np.concatenate([self.close_ME, other.close_ME]),
            np.concatenate([self.gap_M, other.gap_M]),
            np.concatenate([self.experts_MK, other.experts_MK]),
        )
        return Routing(
            self.fingerprint.merged(other.fingerprint),
            self.load_E,
            self.count_EEB,
            self.loss_EEB,
            self.sums,
            *_closest(*close, self.most_rows),
            self.most_rows,
        )


@dataclass(frozen=True, eq=False)
class RoutingTask:
    """Route a batch with a bias."""

    bias_E: NDArray[np.float64]
    top_k: int
    dither: float
    """Width of the random numbers that break ties, score units."""
    top_exponent: int
    """Margins from 2^top_exponent on are not swapped."""
    largest: float
    seed: int
    most_rows: int

    def __call__(self, indexed: tuple[int, FloatArray]) -> Routing:
        """Loads, sums, swaps and closest rows of one batch."""
        index, scores_TE = indexed
        scores_TE = read_only(scores_TE)
        num_tokens, num_experts = scores_TE.shape
        dtype = scores_TE.dtype
        routing = make_routing(self.bias_E, dtype, self.top_k, with_next=True, is_padded=False)
        guard = _GUARD * np.finfo(dtype).eps * (self.largest + np.abs(self.bias_E).max())
        width = np.nextafter(dtype.type(guard + self.dither), dtype.type(np.inf))
        load_E = np.zeros(num_experts, np.int64)
        count_EEB = np.zeros((num_experts, num_experts, NUM_BINS), np.int64)
        loss_EEB = np.zeros((num_experts, num_experts, NUM_BINS))
        gap_T, experts_TK = np.empty(num_tokens), np.empty((num_tokens, self.top_k), np.int32)
        sums = np.zeros(5)
        route_rows(
            scores_TE, self.bias_E, routing, make_scratch(routing, self.top_k + 1), width, self.dither,
            np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)[0], self.top_exponent,
            load_E, count_EEB, loss_EEB, gap_T, experts_TK, sums,
        )  # fmt: skip
        return Routing(
            Fingerprint.of(scores_TE),
            load_E,
            count_EEB,
            loss_EEB,
            sums,
            *_closest(scores_TE, gap_T, experts_TK, self.most_rows),
            self.most_rows,
        )


def _closest(
    rows_NE: FloatArray, gap_N: NDArray[np.float64], experts_NK: NDArray[np.int32], most: int
) -> tuple[FloatArray, NDArray[np.float64], NDArray[np.int32]]:
    """The `most` rows of least gap, in their order; of equal ones the first."""
    if len(gap_N) <= most:
        kept = np.arange(len(gap_N))
    else:
        limit = np.partition(gap_N, most)[most]
        below, at = np.flatnonzero(gap_N < limit), np.flatnonzero(gap_N == limit)
        kept = np.sort(np.concatenate([below, at[: most - len(below)]]))
    return rows_NE[kept], gap_N[kept], experts_NK[kept]


@dataclass(frozen=True)
class LoadingTask(Generic[AnySummary]):
    """Another task, with the scores made or checked first: where the task runs, which may be another machine."""

    task: Callable[[tuple[int, FloatArray]], AnySummary]
    top_k: int

    def __call__(self, indexed: tuple[int, Batch]) -> AnySummary:
        """The task's summary of one batch."""
        index, batch = indexed
        return self.task((index, load_batch(batch, self.top_k, position=index + 1)))


def reduce_pass(
    task: Callable[[tuple[int, Batch]], AnySummary],
    batches: Iterable[Batch],
    map_batches: MapBatches,
) -> AnySummary:
    """Summaries of all batches added up, in the order of the batches."""
    total: AnySummary | None = None
    for summary in map_batches(task, enumerate(batches)):
        total = summary if total is None else total.merged(summary)
    if total is None:
        raise ValueError("batches() gave no batch; it must return a fresh iterable each time it is called")
    return total


def read_only(scores_TE: FloatArray) -> FloatArray:
    """Numba compiles apart for arrays that may be written to, as those that were sent are."""
    view = scores_TE.view()
    view.flags.writeable = False
    return view


def _two_sum(left: float, right: float) -> tuple[float, float]:
    """The rounded sum, and exactly what rounding took away."""
    total = left + right
    shift = total - left
    return total, math.fsum([left - (total - shift), right - shift])
