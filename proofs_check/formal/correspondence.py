"""The definitions that Coq reasons about, evaluated on random instances and compared with the library.

A proof about other definitions would be a proof of something else. `executable.v` holds the definitions as programs,
each proved equal to its definition; Coq evaluates them in exact rationals, and the library computes the same. And the
optima that the exact solver finds are put to Coq, which accepts them only if plan and bias prove each other optimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.kernels import reference
from alflb.rules import make_rule
from proofs_check import formal
from proofs_check._instances import Instance, draw

NUM_STEPS = 3
LARGEST_VALUE = 40
MOST_COMPARISONS = 120
"""Coq counts in unary: values and T E^2 are kept small."""

Report = dict[str, list[Fraction]]
"""Named quantities, each a list of rationals."""


def instances(seed: int, count: int) -> list[Instance]:
    """Random instances of all families, small enough for Coq, exact in float64."""
    return list(islice(filter(_is_small, draw(seed, 100 * count, dyadic=True)), count))


def disagreements(seed: int, count: int) -> list[str]:
    """Every quantity in which Coq and the library differ, with its instance.

    Raises
    ------
    formal.CoqError
        If Coq cannot compile or evaluate the definitions.
    """
    drawn = instances(seed, count)
    found = []
    for one, by_coq in zip(drawn, _evaluated(drawn), strict=True):
        for name, numbers in by_library(one).items():
            head, by_coq = by_coq[: len(numbers)], by_coq[len(numbers) :]
            if head != numbers:
                found.append(f"{name}: Coq {_words(head)}, library {_words(numbers)}, on {one.as_dict()}")
        if by_coq:
            found.append(f"Coq reports {len(by_coq)} numbers more than the library, on {one.as_dict()}")
    return found


def refused_optima(seed: int, count: int) -> list[Instance]:
    """Instances with whole targets whose optimum, as `solve_exact` found it, Coq does not accept."""
    drawn = list(islice(filter(_is_small, draw(seed, 100 * count, integral=True)), count))
    formal.compiled("certificate")
    lines = [
        "From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat.",
        "From alflb Require Import executable certificate.",
    ]
    lines += [f"Eval vm_compute in {_certifies_call(one)}." for one in drawn]
    answers = re.findall(r"= (true|false)", formal.run_coq("optima", "\n".join(lines)))
    return [one for one, answer in zip(drawn, answers, strict=True) if answer == "false"]


def by_library(one: Instance) -> Report:
    """The same quantities, in the order of `report` in executable.v."""
    problem, bias_E = one.problem, one.bias.astype(np.float64)
    experts_TK, load_E, dual_sum = reference.allocate(problem.scores_TE, bias_E, one.top_k)
    held_TE = np.zeros(one.scores.shape)
    np.put_along_axis(held_TE, experts_TK, 1.0, axis=1)
    step = duality.step_certificate(problem, one.bias, one.next_bias)
    certificate = duality.gap_certificate(problem, one.bias)
    multiplicity = bounds.crossing_multiplicity(problem.scores_TE, 2 * one.step_size)
    proportional = make_rule("proportional", one.step_size * problem.target_load)  # delta = step_size (L - A)
    return {
        "picks": _exact(held_TE.ravel()),
        "load": _exact(load_E),
        "sum of S_K": _exact([dual_sum]),
        "D(p)": _exact([step.dual_before]),
        "D(q)": _exact([step.dual_after]),
        "benefit": _exact([step.benefit]),
        "<A(p) - L, q - p>": _exact([step.lower]),
        "<A(q) - L, q - p>": _exact([step.upper]),
        "violation": _exact([certificate.violation_l1]),
        "affinity": _exact([certificate.affinity]),
        "spread": _exact([duality.spread(one.bias)]),
        "score range": _exact([problem.score_range]),
        "gap bound": _exact([certificate.gap_bound]),
        "multiplicity": _exact([multiplicity]),
        "sharp band": [bounds.sharp_band(multiplicity, one.num_experts)],
        "R": _exact([bounds.sharp_entry_time(2, one.score_range, one.step_size)]),
        "entry time": _exact([bounds.sharp_entry_time(one.num_experts, one.score_range, one.step_size)]),
        "proportional step": _exact(one.run(1, rule=proportional).bias_NE[1]),
        "sign rule": _exact(one.run(NUM_STEPS).bias_NE[NUM_STEPS]),
    }


def _is_small(one: Instance) -> bool:
    largest = max(np.abs(values).max() for values in (one.scores, one.bias, one.next_bias))
    return largest <= LARGEST_VALUE and one.scores.size * one.num_experts <= MOST_COMPARISONS


def _evaluated(drawn: list[Instance]) -> Iterator[list[Fraction]]:
    """What Coq computes for each instance, in one run of it."""
    formal.compiled("executable")
    lines = [
        "From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat.",
        "From alflb Require Import definitions executable.",
        "Definition shown (x : rat) : int * int := (numq x, denq x).",
    ]
    lines += [f"Eval vm_compute in map shown ({_report_call(one)})." for one in drawn]
    for answer in formal.run_coq("correspondence", "\n".join(lines)).split(": seq")[:-1]:
        numbers = [int(word) for word in re.findall(r"-?\d+", answer)]
        yield [Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]


def _report_call(one: Instance) -> str:
    target = f"(({one.top_k} * {one.num_tokens})%:R / {one.num_experts}%:R)%R"
    rows = _list(_list(map(_integer, row)) for row in one.scores.tolist())
    biases = " ".join(_list(map(_integer, bias.tolist())) for bias in (one.bias, one.next_bias))
    shape = f"{one.num_tokens} {one.num_experts} {one.top_k}"
    return f"report {shape} {rows} {biases} {_integer(one.step_size)} (nseq {one.num_experts} {target})"


def _certifies_call(one: Instance) -> str:
    """Scores and biases are doubled: optimal biases are multiples of 1/2 here, up to a constant."""
    solution = solve_exact(one.problem)
    assert solution.plan is not None
    plan = np.rint(solution.plan.toarray()).astype(int)
    bias = np.rint(2 * (solution.bias_E - solution.bias_E[0])).astype(int)
    target = f"(fun=> {one.top_k * one.num_tokens // one.num_experts}%:R%R)"
    tables = " ".join(_list(_list(map(_integer, row)) for row in rows.tolist()) for rows in (2 * one.scores, plan))
    shape = f"{one.num_tokens} {one.num_experts} {one.top_k}"
    return f"certifies {shape} {tables} {target} (row {_list(map(_integer, bias.tolist()))})"


def _integer(value: int) -> str:
    return f"(Posz {value})" if value >= 0 else f"(Negz {-value - 1})"


def _list(items: Iterable[str]) -> str:
    return f"[:: {'; '.join(items)}]"


def _exact(values: ArrayLike) -> list[Fraction]:
    return [Fraction(value) for value in np.asarray(values, dtype=np.float64).tolist()]


def _words(numbers: list[Fraction]) -> str:
    return "[" + ", ".join(map(str, numbers)) + "]"
