"""One fixed batch, every step the same: the deterministic setting of claims C1 to C6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alflb.problem import FloatArray, check_scores


@dataclass(frozen=True, eq=False)
class Static:
    """The same (T, E) scores at every step, whatever the seed.

    Not registered by name, since it has no default: give it the scores.

    Examples
    --------
    >>> stream = Static([[0.9, 0.1], [0.8, 0.3]])
    >>> batches = stream.batches(seed=0)
    >>> next(batches) is next(batches)
    True
    """

    scores_TE: FloatArray

    def __post_init__(self) -> None:
        scores_TE = check_scores(self.scores_TE).view()
        scores_TE.flags.writeable = False
        object.__setattr__(self, "scores_TE", scores_TE)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(np.shape(self.scores_TE)[0])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(np.shape(self.scores_TE)[1])

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """The scores, again and again."""
        while True:
            yield self.scores_TE
