"""The optimum of small problems in whole numbers of any length, by dynamic programming; and draws that are hard."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from alflb.exact.units import target_units
from alflb.problem import AssignmentProblem

_FINEST = 2**1074
"""Every float64 is a whole multiple of 1 / _FINEST."""


def whole(number):
    """A finite score in units of 2^-1074."""
    return int(Fraction(float(number)) * _FINEST)


def plan_value(problem, plan):
    """<gamma, x> as a fraction; x in units must be whole."""
    _, unit = target_units(problem.target_E, problem.num_tokens, problem.top_k)
    units_TE = np.rint(plan.toarray() * unit).astype(int)
    total = sum(int(units_TE[i, k]) * whole(problem.scores_TE[i, k]) for i, k in np.argwhere(units_TE))
    return Fraction(total, unit * _FINEST)


def is_feasible(problem, plan):
    """Whether rows and loads are met exactly, in units."""
    units_E, unit = target_units(problem.target_E, problem.num_tokens, problem.top_k)
    units_TE = np.rint(plan.toarray() * unit).astype(int)
    return (
        (units_TE.sum(axis=0) == units_E).all()
        and (units_TE.sum(axis=1) == problem.top_k * unit).all()
        and 0 <= units_TE.min() <= units_TE.max() <= unit
    )


def exact_optimum(problem):
    """LP* as a fraction, None if no balanced assignment exists: the best loads token by token."""
    units_E, unit = target_units(problem.target_E, problem.num_tokens, problem.top_k)
    shares = [
        share
        for share in itertools.product(range(unit + 1), repeat=problem.num_experts)
        if sum(share) == problem.top_k * unit
    ]
    best = {(0,) * problem.num_experts: 0}
    for scores_E in problem.scores_TE:
        whole_E = [None if score == -np.inf else whole(score) for score in scores_E]
        gains = [
            (share, sum(part * score for part, score in zip(share, whole_E) if part))
            for share in shares
            if not any(part and score is None for part, score in zip(share, whole_E))
        ]
        following = {}
        for load, value in best.items():
            for share, gain in gains:
                new = tuple(map(sum, zip(load, share)))
                if (
                    all(part <= most for part, most in zip(new, units_E))
                    and following.get(new, value + gain - 1) < value + gain
                ):
                    following[new] = value + gain
        best = following
    value = best.get(tuple(int(part) for part in units_E))
    return None if value is None else Fraction(value, unit * _FINEST)


MASKS = [-np.inf, -1e4, -65504.0, -1e9, -1e15, -1e16, -1e30, -3e38, float(np.finfo(np.float32).min)]
WIDE_MASKS = [*MASKS, -1e300, -1.7e308, float(np.finfo(np.float64).min)]
SIZES = [1.0, 1e-45, 1e-40, 1e-38, 1e-35, 1e-30, 1e-20, 1e9, 1e30]
WIDE_SIZES = [*SIZES, 1e-320, 1e-300, 1e-200, 1e100, 1e290]


@st.composite
def hard_problems(draw):
    """Small problems: ties, masks of every kind, huge and tiny and mixed sizes, both dtypes, any K and targets."""
    num_experts = draw(st.integers(1, 4))
    top_k = draw(st.integers(1, num_experts))
    num_tokens = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    is_wide = dtype == np.float64
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_tokens, num_experts)
    family = draw(st.sampled_from(["uniform", "normal", "decimals", "levels", "equal", "mixed", "rows"]))
    scores = {
        "uniform": lambda: rng.random(shape),
        "normal": lambda: rng.standard_normal(shape),
        "decimals": lambda: np.round(rng.random(shape), 1),
        "levels": lambda: rng.integers(0, 3, shape).astype(float),
        "equal": lambda: np.full(shape, rng.random()),
        "mixed": lambda: np.exp((60 if is_wide else 20) * rng.standard_normal(shape)) * rng.choice([-1, 1], shape),
        "rows": lambda: np.repeat(rng.random((1, num_experts)), num_tokens, axis=0),
    }[family]()
    limit = 0.2 * float(np.finfo(dtype).max)
    size = draw(st.sampled_from(WIDE_SIZES if is_wide else SIZES))
    offset = draw(st.sampled_from([0.0, 0.0, 0.0, 1e4, 1e9, -1e15]))
    with np.errstate(over="ignore", under="ignore"):
        scores = np.clip(scores * size + offset, -limit, limit).astype(dtype)
    masks = WIDE_MASKS if is_wide else MASKS
    is_masked = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.6]))
    one, several = draw(st.sampled_from(masks)), rng.choice(masks, shape)
    scores[is_masked] = several[is_masked] if draw(st.booleans()) else one
    scores[rng.random(shape) < draw(st.sampled_from([0.0, 0.0, 0.2]))] = draw(st.sampled_from([1e9, 1e16, 1e30]))
    starved = np.count_nonzero(scores > -np.inf, axis=1) < top_k
    scores[starved] = rng.random((int(starved.sum()), num_experts))
    target_E = None
    if draw(st.booleans()) or num_experts // np.gcd(num_experts, top_k * num_tokens) > 2:
        picks_TE = np.argsort(rng.random(shape), axis=1)[:, :top_k]
        target_E = np.bincount(picks_TE.ravel(), minlength=num_experts).astype(float)
    return AssignmentProblem(scores, top_k, target_E)
