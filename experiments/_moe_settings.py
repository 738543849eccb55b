"""Sizes and arms of `train_moe`: plain values, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alflb.problem import check_number
from alflb.registry import unknown_name
from alflb.rules import Rule, make_rule
from alflb.schedules import make_schedule, schedule_names

PRECISIONS = ("float32", "bfloat16")
"""Dtype of the weights in use."""
OPTIMIZERS = ("adamw", "sgd")
"""AdamW keeps two numbers per weight; SGD without momentum none, and a model of 1.15B fits 10 GiB."""
GATES = ("sigmoid", "softmax")
"""What makes scores of a router's logits."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, how it is trained, and how it is looked at."""

    name: str
    hidden: int
    layers: int
    """Number of layers; the first is dense."""
    heads: int
    head_width: int
    """Components of a value; keys and queries have as many, half of them with rotary positions."""
    latent_rank: int
    """Rank of the compressed keys and values of multi-head latent attention."""
    dense_width: int
    expert_width: int
    num_experts: int = 64
    shared_experts: int = 2
    top_k: int = 6
    routed_scale: float = 1.0
    """Factor on the routed experts' weights, which sum to one."""
    tied: bool = True
    """Whether the output layer is the embedding."""
    vocab_size: int
    sequence: int
    sequences_per_step: int
    sequences_per_forward: int
    """Gradients of a step are accumulated over forwards of so many sequences."""
    num_steps: int
    learning_rate: float
    precision: str = "float32"
    """Dtype of the weights in use; the optimizer moves float32 ones in any case."""
    optimizer: str = "adamw"
    gate: str = "sigmoid"
    evaluation_tokens: int
    trace_tokens: int

    def changed(self, **changes: Any) -> Size:
        """The same size with some fields replaced; ValueError for values that cannot be trained with."""
        size = replace(self, **changes)
        _check_choice("precision", size.precision, PRECISIONS)
        _check_choice("optimizer", size.optimizer, OPTIMIZERS)
        _check_choice("gate", size.gate, GATES)
        return replace(
            size,
            sequences_per_forward=_largest_divisor(size.sequences_per_step, size.sequences_per_forward),
            trace_tokens=min(size.trace_tokens, size.evaluation_tokens),
        )

    @property
    def tokens_per_step(self) -> int:
        """T of one balancing step."""
        return self.sequence * self.sequences_per_step

    @property
    def look_at(self) -> tuple[int, ...]:
        """Steps after which the model is evaluated and its routers are priced."""
        return tuple(sorted({max(1, self.num_steps // 5), max(1, self.num_steps // 2), self.num_steps}))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over the first tenth, then half a cosine down to a tenth."""
        warm_up = max(1, self.num_steps // 10)
        if step <= warm_up:
            return self.learning_rate * step / warm_up
        progress = (step - warm_up) / max(1, self.num_steps - warm_up)
        return self.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _largest_divisor(number: int, most: int) -> int:
    """Of the divisors of a number the largest that is at most so large."""
    return max(divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0)


SIZES = {
    size.name: size
    for size in (
        Size(  # seconds, for continuous integration
            name="smoke", hidden=32, layers=3, heads=2, head_width=16, latent_rank=16, dense_width=64, expert_width=16,
            num_experts=16, shared_experts=1, top_k=2, vocab_size=512, sequence=64, sequences_per_step=8,
            sequences_per_forward=8, num_steps=20, learning_rate=3e-3, evaluation_tokens=4096, trace_tokens=1024,
        ),
        Size(  # about 1M parameters
            name="1m", hidden=64, layers=4, heads=2, head_width=32, latent_rank=32, dense_width=256, expert_width=20,
            vocab_size=2048, sequence=128, sequences_per_step=3, sequences_per_forward=3, num_steps=600,
            learning_rate=3e-3, evaluation_tokens=16384, trace_tokens=8192,
        ),
        Size(  # about 5M parameters, about a minute on one core
            name="5m", hidden=128, layers=4, heads=4, head_width=32, latent_rank=64, dense_width=512, expert_width=56,
            vocab_size=2048, sequence=128, sequences_per_step=3, sequences_per_forward=3, num_steps=180,
            learning_rate=2e-3, evaluation_tokens=16384, trace_tokens=8192,
        ),
        Size(  # about 20M parameters
            name="20m", hidden=256, layers=5, heads=4, head_width=64, latent_rank=96, dense_width=1024, expert_width=88,
            vocab_size=2048, sequence=128, sequences_per_step=3, sequences_per_forward=3, num_steps=600,
            learning_rate=1.5e-3, evaluation_tokens=16384, trace_tokens=8192,
        ),
        Size(  # about 104M parameters, one GPU
            name="104m", hidden=512, layers=8, heads=8, head_width=64, latent_rank=128, dense_width=2048,
            expert_width=128, vocab_size=8192, sequence=512, sequences_per_step=64, sequences_per_forward=32,
            num_steps=2000, learning_rate=1e-3, precision="bfloat16", evaluation_tokens=131072, trace_tokens=32768,
        ),
        Size(  # about 1B parameters; of Wang et al.'s model 64 routed and 2 shared experts, top-6, and no more is known
            name="1b", hidden=1024, layers=11, heads=8, head_width=128, latent_rank=256, dense_width=4096,
            expert_width=512, tied=False, vocab_size=32000, sequence=2048, sequences_per_step=64,
            sequences_per_forward=8, num_steps=2000, learning_rate=5e-4, precision="bfloat16",
            evaluation_tokens=131072, trace_tokens=65536,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What keeps the experts balanced: nothing, an auxiliary loss, or a rule of `alflb.rules`.

    Written ``none``, ``aux:WEIGHT``, or ``RULE[:STEP_SIZE[:SCHEDULE]]``, for example ``sign:0.01:inverse_sqrt``.
    """

    name: str
    kind: str
    strength: float | None = None
    schedule: str = "constant"

    @classmethod
    def parse(cls, name: str) -> Arm:
        """An arm from its name; ValueError if it is not written as above.

        Examples
        --------
        >>> Arm.parse("sign:0.01:inverse_sqrt").schedule
        'inverse_sqrt'
        """
        kind, *rest = name.split(":")
        try:
            strength = float(rest[0]) if rest else None
        except ValueError:
            strength = math.nan
        if len(rest) > 2 or (kind == "none" and rest) or (kind == "aux" and len(rest) != 1):
            raise ValueError(f"arm {name!r} is not none, aux:WEIGHT or RULE[:STEP_SIZE[:SCHEDULE]]")
        if strength is not None:
            check_number(strength, f"number in arm {name!r}")
        schedule = rest[1] if len(rest) > 1 else "constant"
        if schedule not in schedule_names():
            raise unknown_name("schedule", schedule, schedule_names())
        return cls(name, kind, strength, schedule)

    def checked(self, num_steps: int) -> Arm:
        """Itself, once its rule has been made: an unknown name is an error before hours of training."""
        self.rule(num_steps)
        return self

    @property
    def auxiliary_weight(self) -> float:
        """Weight of the auxiliary loss, 0 without one."""
        return self.strength or 0.0 if self.kind == "aux" else 0.0

    def rule(self, num_steps: int) -> Rule | None:
        """The rule of a run of so many steps, None for arms without one; ValueError for an unknown name."""
        if self.kind in ("none", "aux"):
            return None
        if self.strength is None:
            return make_rule(self.kind)
        return make_rule(self.kind, make_schedule(self.schedule, self.strength, num_steps))
