"""What a stream is, how streams are seeded, and what the synthetic ones share."""

from __future__ import annotations

import itertools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from alflb.kernels.draws import Draw, draw_key
from alflb.problem import FloatArray, check_bias, check_count, check_number
from alflb.registry import Registry


class Stream(Protocol):
    """A source of score batches of one shape; `batches(seed)` restarts bit-identically."""

    @property
    def num_tokens(self) -> int:
        """T, tokens per batch."""

    @property
    def num_experts(self) -> int:
        """E."""

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches of shape (T, E) for steps t = 1, 2, ... without end."""


class RegisteredStream(Stream, Protocol):
    """A stream with a name, and what others must know of it."""

    scores_are_gates: ClassVar[bool]
    """Whether scores are gates, what a router makes of its logits; logits otherwise."""
    replays_a_trace: ClassVar[bool]
    """Whether it is made from a router trace, so that the number of experts is not a parameter of it."""

    @property
    def is_random(self) -> bool:
        """Whether the seed of `batches` matters."""


STREAMS: Registry[RegisteredStream] = Registry("stream")


def seeded(name: str, *key: int) -> np.random.Generator:
    """The generator of a stream called `name` at `key` (a seed, then a step): never of a rule or a backend."""
    return np.random.default_rng([zlib.crc32(name.encode()), *key])


@dataclass(frozen=True)
class SyntheticStream(ABC):
    """Batches drawn afresh each step from a fixed population.

    Parameters
    ----------
    num_tokens, num_experts : int
        T and E.
    offsets : float or sequence of float
        What each expert's scores are shifted by: E numbers, or the standard deviation of a Gaussian from
        which they are drawn once (by `population_seed`). Score units.
    population_seed : int
        Chooses the population (offsets, router weights). `batches(seed)` only chooses the tokens.
    """

    scores_are_gates: ClassVar[bool] = False
    replays_a_trace: ClassVar[bool] = False
    is_random: ClassVar[bool] = True

    num_tokens: int = 2048
    num_experts: int = 64
    offsets: float | tuple[float, ...] = 0.5
    population_seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.num_tokens, "num_tokens")
        check_count(self.num_experts, "num_experts")
        check_count(self.population_seed, "population_seed", minimum=0)
        if np.ndim(self.offsets) == 0:
            check_number(self.offsets, "offsets")
        else:
            offset_E = check_bias(self.offsets, self.num_experts, name="offsets")
            object.__setattr__(self, "offsets", tuple(offset_E.tolist()))

    @abstractmethod
    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Independent batches for t = 1, 2, ...; batch t depends on the population, `seed` and t alone."""

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return STREAMS.name_of(type(self))

    def offset_E(self) -> NDArray[np.float64]:
        """The offsets as numbers."""
        if isinstance(self.offsets, tuple):
            return np.array(self.offsets)
        return self.offsets * self.population_rng().standard_normal(self.num_experts)

    def population_rng(self, part: int = 0) -> np.random.Generator:
        """Generator for the fixed parts of the population, independent of the batches and of other parts."""
        return seeded(f"{self.name} population", self.population_seed, part)


@dataclass(frozen=True)
class DrawnStream(SyntheticStream):
    """gamma_ik = offset_k + independent noise of a standard law, in float32.

    Each score is a function of (seed, step, token, expert), so batches need not be stored to be routed:
    `alflb.simulate` draws and routes them block by block, with the same result (see `alflb.kernels.draws`).
    """

    distribution: ClassVar[str]
    """One of `alflb.kernels.draws.DISTRIBUTIONS`."""

    def draws(self, seed: int) -> Iterator[Draw]:
        """The batches for t = 1, 2, ..., not yet drawn."""
        check_count(seed, "seed", minimum=0)
        fixed = type(self).offset_at is DrawnStream.offset_at
        offset_E = self._float32_offset(1)
        for t in itertools.count(1):
            if not fixed:
                offset_E = self._float32_offset(t)
            yield Draw(self.distribution, draw_key(self.name, seed, t), self.num_tokens, offset_E)

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """The same batches as arrays."""
        for draw in self.draws(seed):
            yield draw.scores()

    def _float32_offset(self, t: int) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # Draw says what is wrong with an infinite offset
            return self.offset_at(t).astype(np.float32)

    def offset_at(self, t: int) -> NDArray[np.float64]:
        """The offsets in force at step t, shape (E,); by default they never change."""
        return self.offset_E()
