"""Claims for *all* real scores at a small size: assert the negation in linear real arithmetic, and get `unsat`.

Scores and steps are real unknowns, top-K choices Booleans that follow from them, loads sums of Booleans. The bias
before the step is part of the scores (gamma + p), which loses nothing: claims C1 to C4 see no other trace of it. A
shape (T, E, K) is proved when the solver answers `unsat`; the control of the same formula, an assumption dropped,
must be `sat`.

Needs the extra ``proofs`` (z3-solver).
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int, int]
Choice = list[list[Any]]
"""choice[i][k]: token i holds expert k."""


def available() -> bool:
    """Whether z3 is installed."""
    return importlib.util.find_spec("z3") is not None


class Model:
    """The unknowns of one shape, and the terms of the claims over them."""

    def __init__(self, num_tokens: int, num_experts: int, top_k: int) -> None:
        import z3

        self.z3 = z3
        self.num_tokens, self.num_experts, self.top_k = num_tokens, num_experts, top_k
        self.solver = z3.SolverFor("QF_LRA")
        self.gamma = [[z3.Real(f"g_{i}_{k}") for k in range(num_experts)] for i in range(num_tokens)]
        self.delta = [z3.Real(f"d_{k}") for k in range(num_experts)]
        self.target = z3.RatVal(top_k * num_tokens, num_experts)
        self._best: dict[tuple[bool, int], Any] = {}

    def any(self, *terms: Any) -> Any:
        """Disjunction."""
        return self.z3.Or(*terms)

    def all(self, *terms: Any) -> Any:
        """Conjunction."""
        return self.z3.And(*terms)

    def no(self, term: Any) -> Any:
        """Negation."""
        return self.z3.Not(term)

    def step(self, *, flip_ties_after: bool = False) -> tuple[Choice, Choice]:
        """Top-K before and after the step, ties to the lowest index (to the highest, after, if flipped)."""
        return self.choose("x", after=False), self.choose("y", after=True, flip=flip_ties_after)

    def choose(self, name: str, *, after: bool, flip: bool = False) -> Choice:
        """Booleans that hold exactly for the K best: every held expert beats every other one."""
        choice = []
        for i in range(self.num_tokens):
            held = [self.z3.Bool(f"{name}_{i}_{k}") for k in range(self.num_experts)]
            value = self.value(i, after=after)
            self.solver.add(self.z3.PbEq([(one, 1) for one in held], self.top_k))
            for k, j in itertools.permutations(range(self.num_experts), 2):
                wins_ties = (k > j) if flip else (k < j)
                beats = value[k] >= value[j] if wins_ties else value[k] > value[j]
                self.solver.add(self.z3.Implies(self.z3.And(held[k], self.z3.Not(held[j])), beats))
            choice.append(held)
        return choice

    def value(self, i: int, *, after: bool) -> list[Any]:
        """Biased scores of token i."""
        return [g + d if after else g for g, d in zip(self.gamma[i], self.delta)]

    def top_sum(self, i: int, *, after: bool) -> Any:
        """S_K of token i, defined without any choice: the largest sum over K-subsets."""
        key = (after, i)
        if key not in self._best:
            best = self.z3.Real(f"s_{int(after)}_{i}")
            value = self.value(i, after=after)
            sums = [self.z3.Sum(*subset) for subset in itertools.combinations(value, self.top_k)]
            self.solver.add(*(best >= one for one in sums), self.z3.Or(*(best == one for one in sums)))
            self._best[key] = best
        return self._best[key]

    def change(self, before: Choice, after: Choice) -> Any:
        """D(p_next) - D(p), from the definition of D."""
        tokens = range(self.num_tokens)
        rise = self.z3.Sum(*(self.top_sum(i, after=True) - self.top_sum(i, after=False) for i in tokens))
        return rise - self.target * self.z3.Sum(*self.delta)

    def benefit(self, before: Choice, after: Choice) -> Any:
        """sum_i b_i: the new optimum minus the old picks, both at p_next."""
        return self.z3.Sum(
            *(
                self.top_sum(i, after=True)
                - self.z3.Sum(*(self.z3.If(h, v, 0.0) for h, v in zip(before[i], self.value(i, after=True))))
                for i in range(self.num_tokens)
            )
        )

    def linear(self, choice: Choice) -> Any:
        """<A - L, delta>."""
        held = [self.z3.If(one, d, 0.0) for row in choice for one, d in zip(row, self.delta)]
        return self.z3.Sum(*held) - self.target * self.z3.Sum(*self.delta)

    def load_is(self, choice: Choice, k: int, test: Callable[[int], bool]) -> Any:
        """A_k is a whole number n with test(n)."""
        column = [(row[k], 1) for row in choice]
        return self.z3.Or(*(self.z3.PbEq(column, n) for n in range(self.num_tokens + 1) if test(n)))

    def sign_step(self, before: Choice) -> Any:
        """The step is sign(L - A), that is u = 1, which scaling makes no loss."""
        z3, picks = self.z3, self.top_k * self.num_tokens
        return z3.And(
            *(
                z3.And(
                    z3.Implies(self.load_is(before, k, lambda n: self.num_experts * n > picks), self.delta[k] == -1),
                    z3.Implies(self.load_is(before, k, lambda n: self.num_experts * n == picks), self.delta[k] == 0),
                    z3.Implies(self.load_is(before, k, lambda n: self.num_experts * n < picks), self.delta[k] == 1),
                )
                for k in range(self.num_experts)
            )
        )

    def multiplicity_at_most(self, most: int, width: int) -> Any:
        """No closed window of `width` holds more than `most` crossing values of any pair."""
        z3, clauses = self.z3, []
        for k, j in itertools.combinations(range(self.num_experts), 2):
            crossing = [row[k] - row[j] for row in self.gamma]
            for group in itertools.combinations(crossing, most + 1):
                clauses.append(z3.Or(*(a - b > width for a, b in itertools.permutations(group, 2))))
        return z3.And(*clauses)


@dataclass(frozen=True)
class Sizes:
    """What to try: every (T, E) with T E at most `cells`."""

    cells: int

    def shapes(self) -> list[tuple[int, int]]:
        """(T, E), smallest first."""
        sides = range(1, self.cells + 1)
        pairs = [(t, e) for t in sides for e in sides if t * e <= self.cells]
        return sorted(pairs, key=lambda pair: (pair[0] * pair[1], max(pair), pair))


@dataclass(frozen=True)
class Proof:
    """A negated claim, the shapes to prove it at, and the shape at which its control must be satisfiable."""

    negation: Callable[..., Any]
    sizes: Callable[[Sizes], list[Shape]]
    control: Shape


@dataclass(frozen=True)
class Proved:
    """The outcome of running a proof within a time limit."""

    claim: str
    proved: list[Shape]
    """Shapes answered `unsat`."""
    undecided: list[Shape]
    """Shapes not reached or not decided in time."""
    refuted: list[Shape]
    """Shapes answered `sat`: counterexamples exist."""
    control_refuted: bool
    """Whether the control was `sat`, as it must be."""
    seconds: float

    @property
    def largest(self) -> Shape | None:
        """The proved shape with the most scores; a single row or column only if there is nothing else."""
        return max(self.proved, key=lambda s: (min(s[:2]) > 1, s[0] * s[1], min(s[:2]), s), default=None)


def decide(proof: Proof, shape: Shape, *, broken: bool, seconds: float) -> str:
    """`unsat`, `sat` or `unknown` for one shape."""
    model = Model(*shape)
    model.solver.add(proof.negation(model, broken=broken))
    model.solver.set("timeout", max(1, int(1000 * seconds)))
    return str(model.solver.check())


def prove(claim: str, proof: Proof, *, cells: int, seconds: float) -> Proved:
    """Run the control, then every shape, smallest first, until the time is up."""
    start = time.perf_counter()
    control = decide(proof, proof.control, broken=True, seconds=max(10.0, seconds)) == "sat"
    answers: dict[str, list[Shape]] = {"unsat": [], "unknown": [], "sat": []}
    for shape in proof.sizes(Sizes(cells)):
        left = seconds - (time.perf_counter() - start)
        answers[decide(proof, shape, broken=False, seconds=left) if left > 0 else "unknown"].append(shape)
    taken = time.perf_counter() - start
    return Proved(claim, answers["unsat"], answers["unknown"], answers["sat"], control, taken)
