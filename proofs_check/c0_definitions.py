"""C0, the definitions: the library is what the claims speak of.

Loads, D, m(w) and the trajectory of the sign rule from the library (both backends) equal the same written out in Python
integers: top-K of gamma + p with ties to the lowest expert; A(p_n) is the load that p_n produced; sign(0) = 0; the sign
rule is not recentred; the proportional and recentred rules are the sign rule's stated relatives. No source: this is
notation.

BROKEN gives ties to the highest expert.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from alflb import bounds, duality
from alflb.kernels import get_kernels
from alflb.observers import make_observers
from alflb.rules import Observation, make_rule
from alflb.simulation import simulate
from alflb.streams import Static
from proofs_check import _integers
from proofs_check._instances import Instance, draw
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C0"
TITLE = "definitions"


def check(seed: int = 0, instances: int = 700) -> Verdict:
    """Number of disagreements with the integer definitions; none is allowed."""
    return worst_of(CLAIM, "equality", draw(seed, instances, dyadic=True), lambda one: (_disagreements(one), 0))


def BROKEN(seed: int = 0, instances: int = 700) -> Verdict:
    """The control: loads of the mirrored problem, which breaks ties the other way, must differ."""
    return worst_of(CLAIM, "equality", draw(seed, instances, dyadic=True), lambda one: (_mirrored(one), 0))


def _disagreements(one: Instance) -> int:
    rows, bias = one.scores.tolist(), [Fraction(value) for value in one.bias.tolist()]
    load = _integers.loads(rows, bias, one.top_k)
    biases, loads = _integers.sign_run(rows, one.bias.tolist(), one.top_k, one.step_size, 6)
    run = one.run(6)
    target = run.target_E
    step_E = target - run.load_NE[0]
    found = [
        duality.allocate(one.problem, one.bias).load_E.tolist() != load,
        duality.dual_value(one.problem, one.bias) != _integers.dual(rows, bias, one.top_k),
        bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size)
        != _integers.multiplicity(rows, 2 * one.step_size),
        run.bias_NE.tolist() != biases,
        run.load_NE.tolist() != loads,
        math.frexp(target[0])[0] == 0.5  # dividing by a power of two is exact
        and not np.array_equal(one.run(1, rule=make_rule("proportional", target[0])).bias_NE[1] - one.bias, step_E),
        not _is_recentred_sign(one, np.sign(step_E)),
    ]
    for backend in ("reference", "numba"):
        found += [not _same_kernel(one, backend, load), not _same_run(one, backend, biases, loads)]
    return sum(found)


def _same_kernel(one: Instance, backend: str, load: list[int]) -> bool:
    """Picks, loads and dual sum of a backend, token by token."""
    kernels, bias_E = get_kernels(backend), one.bias.astype(np.float64)
    experts_TK, load_E, dual_sum = kernels.allocate(one.problem.scores_TE, bias_E, one.top_k)
    biased = (one.scores + one.bias).tolist()
    chosen = [sorted(_integers.picks(row, one.top_k)) for row in biased]
    total = sum(row[k] for row, picked in zip(biased, chosen) for k in picked)
    alone_E, alone_sum = kernels.loads(one.problem.scores_TE, bias_E, one.top_k)
    return (
        experts_TK.tolist() == chosen and load_E.tolist() == alone_E.tolist() == load and dual_sum == alone_sum == total
    )


def _same_run(one: Instance, backend: str, biases: list[list[int]], loads: list[list[int]]) -> bool:
    """The sign rule's biases and loads with an observer watching, which takes another path through the loop."""
    run = simulate(
        Static(one.problem.scores_TE),
        make_rule("sign", one.step_size),
        top_k=one.top_k,
        num_steps=len(loads),
        backend=backend,
        observers=make_observers("dual_value"),
        bias_init=one.bias,
    )
    return run.bias_NE.tolist() == biases and run.load_NE.tolist() == loads


def _is_recentred_sign(one: Instance, sign_E: np.ndarray) -> bool:
    """E times the recentred direction is a whole vector: E s - sum s, to the nearest integer."""
    rule = make_rule("recentred_sign", 1.0)
    seen = Observation(1, one.problem.target_E, load_E=duality.allocate(one.problem, one.bias).load_E)
    moved, _ = rule.step(np.zeros(one.num_experts), seen, rule.init(one.num_experts))
    whole_E = np.rint(one.num_experts * moved)
    near = np.abs(one.num_experts * moved - whole_E).max() < 1e-9
    return bool(near and np.array_equal(whole_E, one.num_experts * sign_E - sign_E.sum()))


def _mirrored(one: Instance) -> int:
    flipped = Instance.of(one.scores[:, ::-1], one.top_k, bias=one.bias[::-1])
    load_E = duality.allocate(flipped.problem, flipped.bias).load_E[::-1]
    return int(not np.array_equal(load_E, duality.allocate(one.problem, one.bias).load_E))
