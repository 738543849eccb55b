"""Biased top-K, loads, D and the rules written out in Python integers: what the words of the theory mean.

Deliberately slow, and sharing no line with the library. Claims are checked on the library; this says that the library
is what the claims speak of (claim C0).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

Row = list[int]


def picks(biased: Sequence[Fraction | int], top_k: int) -> set[int]:
    """The K largest entries, ties to the lowest index."""
    return set(sorted(range(len(biased)), key=lambda k: (-biased[k], k))[:top_k])


def loads(scores: list[Row], bias: list[Fraction], top_k: int) -> list[int]:
    """A(p)."""
    chosen = [picks([score + shift for score, shift in zip(row, bias)], top_k) for row in scores]
    return [sum(k in picked for picked in chosen) for k in range(len(bias))]


def dual(scores: list[Row], bias: list[Fraction], top_k: int) -> Fraction:
    """D(p) = sum_i S_K(gamma_i + p) - L sum p."""
    best = sum(sum(sorted((s + b for s, b in zip(row, bias)), reverse=True)[:top_k], Fraction(0)) for row in scores)
    return best - Fraction(top_k * len(scores), len(bias)) * sum(bias, Fraction(0))


def sign_run(scores: list[Row], bias: list[int], top_k: int, step: int, num_steps: int) -> tuple[list[Row], list[Row]]:
    """Biases p_0 ... p_N and loads A(p_0) ... A(p_(N-1)) of the sign rule."""
    biases, all_loads = [list(bias)], []
    for _ in range(num_steps):
        load = loads(scores, [Fraction(value) for value in biases[-1]], top_k)
        gap = [top_k * len(scores) - len(bias) * tokens for tokens in load]
        biases.append([value + step * ((g > 0) - (g < 0)) for value, g in zip(biases[-1], gap)])
        all_loads.append(load)
    return biases, all_loads


def multiplicity(scores: list[Row], width: int) -> int:
    """m(w): every closed window that starts at a crossing value, counted one by one."""
    most = 1
    for k in range(len(scores[0])):
        for j in range(len(scores[0])):
            crossing = [row[k] - row[j] for row in scores] if k != j else []
            most = max([most, *(sum(start <= value <= start + width for value in crossing) for start in crossing)])
    return most
