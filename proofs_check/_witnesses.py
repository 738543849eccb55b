"""Named instances worth keeping: smallest counterexamples to what is false, and instances that attain a bound.

Each is a regression test: what is measured on it must stay what is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from alflb import bounds
from proofs_check import c1_lagrangian_identity as c1
from proofs_check import c2_monotonicity_condition as c2
from proofs_check import c3_preference_rule as c3
from proofs_check import c4_absorbing_band as c4
from proofs_check import c5_finite_entry as c5
from proofs_check import c6_balance_implies_optimality as c6
from proofs_check import c10_constant_step as c10
from proofs_check._instances import Instance
from proofs_check._verdict import Number


@dataclass(frozen=True)
class Witness:
    """An instance, how to measure it, and what is known of it."""

    name: str
    claim: str
    instance: Instance
    measure: Callable[[Instance], Number]
    value: Number
    """What must be measured, exactly."""
    says: str

    @property
    def holds(self) -> bool:
        """Whether the measurement is what is written here."""
        return self.measure(self.instance) == self.value


def _sign_rise(one: Instance) -> Number:
    return c2.rise(one, "sign")


def _proportional_rise(one: Instance) -> Number:
    return c2.rise(one, "proportional")


def _late_residual(one: Instance) -> Number:
    return c1.residual(one, load_after=True)[0]


def _flipped_moves(one: Instance) -> Number:
    return c3.forbidden_moves(one, flip=True)


def _deviation(one: Instance) -> Number:
    return c4.step_out(one, bounds.sharp_band)[0]


def _entry(one: Instance) -> Number:
    return c5.entry(one, bounds.sharp_entry_time, bounds.sharp_band)[0]


def _gap(one: Instance) -> Number:
    return c6.worst_gap(one, factor=1.0)[0]


def _narrow_excess(one: Instance) -> Number:
    """How far a step leaves the band when crossings are counted in windows of u, not 2u."""
    deviation, band = c4.step_out(one, bounds.absorbing_band, window=1)
    return deviation - band


def _late_from_afar(one: Instance) -> Number:
    """Steps over the entry time when the start is `bias`, not 0."""
    steps, allowed = c5.entry(one, bounds.sharp_entry_time, bounds.sharp_band, from_zero=False)
    return steps - allowed


def _half_gap_excess(one: Instance) -> Number:
    gap, bound = c6.worst_gap(one, factor=0.5)
    return gap - bound


def _excess_without_distance(one: Instance) -> Number:
    gap, bound = c10.mean_gap(one, with_distance=False)
    return gap - bound


_TIE = Instance.of([[0, 0]], 1)
_TWO_TIES = Instance.of([[0, 0], [0, 0]], 1)

WITNESSES = (
    Witness(
        "identity with the later load",
        "C1",
        Instance.of([[0, 0]], 1, next_bias=[0, 1]),
        _late_residual,
        1,
        "taking A(p_next) in the identity is wrong by 1",
    ),
    Witness(
        "sign rule raises D",
        "C2",
        _TIE,
        _sign_rise,
        1,
        "the smallest: one token, two equal scores; at every step size u the rise is u",
    ),
    Witness("sign rule raises D, whole L", "C2", _TWO_TIES, _sign_rise, 2, "the smallest with a whole target load"),
    Witness(
        "sign rule raises D, no ties",
        "C2",
        Instance.of([[0, 1]], 1, step_size=2),
        _sign_rise,
        1,
        "the smallest without equal scores",
    ),
    Witness(
        "sign rule raises D, theory page",
        "C2",
        Instance.of([[3, 0], [5, 0]], 1, step_size=5),
        _sign_rise,
        2,
        "the theory page's example in units of 0.1",
    ),
    Witness(
        "proportional rule raises D",
        "C2",
        _TIE,
        _proportional_rise,
        Fraction(1, 2),
        "delta = eps (L - A) raises D by eps / 2 for every eps > 0: no step size is safe",
    ),
    Witness(
        "proportional rule raises D, whole L",
        "C2",
        _TWO_TIES,
        _proportional_rise,
        2,
        "the smallest with a whole target load; the rise is 2 eps",
    ),
    Witness(
        "proportional rule raises D, no ties",
        "C2",
        Instance.of([[0, 1]], 1, step_size=3),
        _proportional_rise,
        Fraction(1, 2),
        "the smallest without equal scores; D rises exactly when eps > 2 (gamma_2 - gamma_1)",
    ),
    Witness(
        "tie order reversed between steps",
        "C3",
        _TIE,
        _flipped_moves,
        1,
        "a token moves between two experts although neither bias moves",
    ),
    Witness(
        "band attained, E = 2, m = 1",
        "C4",
        c4.tight(2, 1),
        _deviation,
        Fraction(1, 2),
        "one token alternates between two equal experts",
    ),
    Witness(
        "band attained, E = 3, m = 2",
        "C4",
        c4.tight(3, 2),
        _deviation,
        Fraction(10, 3),
        "a cycle of length 2 at m (E - 1) - (1 - 1/E)",
    ),
    Witness(
        "band attained, E = 5, m = 3",
        "C4",
        c4.tight(5, 3),
        _deviation,
        Fraction(56, 5),
        "a cycle of length 2 at m (E - 1) - (1 - 1/E)",
    ),
    Witness(
        "m(u) is not enough",
        "C4",
        Instance.of([[0, 0], [0, 3], [3, 0]], 1, step_size=2),
        _narrow_excess,
        Fraction(1, 2),
        "the smallest: m(u) = 1, yet two tokens cross in one step",
    ),
    Witness("late entry, rho / 2u = 200", "C5", c5.late(400), _entry, 199, "E = 2: 199 of 201 steps"),
    Witness(
        "entry after more than R steps",
        "C5",
        Instance.of(
            [
                [26, 120, 120, 36],
                [47, 16, 120, 120],
                [30, 120, 32, 120],
                [120, 4, 10, 15],
                [120, 16, 13, 4],
                [120, 19, 3, 11],
                [120, 13, 7, 18],
                [120, 10, 19, 7],
            ],
            1,
        ),
        _entry,
        61,
        "E = 4, T = 8: R = 59 steps are not enough, against what we conjectured; proved in Coq, too",
    ),
    Witness(
        "entry from afar",
        "C5",
        Instance.of([[0, 0], [3, 0]], 1, bias=[4, 0]),
        _late_from_afar,
        1,
        "the smallest of its kind: 3 steps where 2 are enough from p = 0",
    ),
    Witness(
        "half the gap bound",
        "C6",
        Instance.of([[0, 1]], 1),
        _half_gap_excess,
        Fraction(1, 4),
        "the smallest: the gap is twice half the bound",
    ),
    Witness(
        "no distance in the bound",
        "C10",
        Instance.of([[0, 2], [0, 3]], 1),
        _excess_without_distance,
        Fraction(1, 16),
        "the smallest with T E <= 4",
    ),
    Witness(
        "dual gap attained",
        "C6",
        Instance.of([[0, 0], [0, 0]], 1, bias=[1, 0]),
        _gap,
        1,
        "gap = bound = 1: the factor 1/2 cannot be improved",
    ),
)
