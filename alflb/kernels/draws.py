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

from alflb.kernels.laws import DISTRIBUTIONS
from alflb.registry import unknown_name

__all__ = ["DISTRIBUTIONS", "Draw", "draw_key"]

_CHUNK = 2048
"""Tokens that a thread draws at a time."""


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
        from alflb.kernels._draws import draw_rows, make_source  # compiled code, for those who need it only
        from alflb.kernels._sharing import share_out

        num_experts = self.offset_E.size
        scores_TE = np.empty((self.num_tokens, num_experts), dtype=np.float32)

        def work(first: int, last: int) -> None:
            rows_TE = scores_TE[first * _CHUNK : last * _CHUNK]
            source = make_source(self.distribution, self.key, self.offset_E)
            draw_rows(source, first * _CHUNK, len(rows_TE), rows_TE.reshape(-1), num_experts)

        share_out(-(-self.num_tokens // _CHUNK), work)
        return scores_TE


def draw_key(name: str, *numbers: int) -> int:
    """The key of a stream called `name` at (seed, step): distinct for distinct arguments, to within chance."""
    sequence = np.random.SeedSequence([zlib.crc32(name.encode()), *numbers])
    return int(sequence.generate_state(1, np.uint64)[0])
