"""Batches of random scores that need not be stored: every score is a function of (key, token, expert).

Drawing a score costs more than routing it, and writing it to memory and reading it back costs as much again.
A `Draw` names the scores of a batch without making them; a compiled backend makes them sixteen tokens at
a time, in cache, right where they are routed. `Draw.scores` makes the very same bits as an array.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.registry import unknown_name

DISTRIBUTIONS = ("uniform", "logistic", "gumbel", "normal")
"""Standard laws that scores can be drawn from: U(0, 1), Logistic(0, 1), Gumbel(0, 1), N(0, 1)."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Scores gamma_ik = offset_k + independent noise of a standard law, float32.

    Examples
    --------
    >>> draw = Draw("uniform", draw_key("example", 0), num_tokens=2, offset_E=np.zeros(3, np.float32))
    >>> draw.scores().shape, bool((draw.scores() < 1).all())
    ((2, 3), True)
    """

    distribution: str
    """One of `DISTRIBUTIONS`."""
    key: int
    """Chooses the noise, 0 <= key < 2^64."""
    num_tokens: int
    offset_E: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", self.distribution, DISTRIBUTIONS)
        if not np.isfinite(self.offset_E).all():
            raise ValueError("offset_E holds numbers that float32 cannot; pass finite offsets below 3e38")

    def scores(self) -> NDArray[np.float32]:
        """The scores as a (T, E) array."""
        from alflb.kernels import numba_

        return numba_.draw_scores(self)


def draw_key(name: str, *numbers: int) -> int:
    """The key of a stream called `name` at (seed, step): distinct for distinct arguments, to within chance."""
    sequence = np.random.SeedSequence([zlib.crc32(name.encode()), *numbers])
    return int(sequence.generate_state(1, np.uint64)[0])
