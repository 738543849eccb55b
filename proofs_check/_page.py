"""docs/claims.md and its figures, from the rows of a run."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure

from alflb import bounds, plotting
from alflb.duality import dual_value
from alflb.io import atomic_write
from proofs_check import c4_absorbing_band as c4
from proofs_check import c5_finite_entry as c5
from proofs_check import law_sign_rule as law
from proofs_check._instances import Instance
from proofs_check._runner import Row
from proofs_check._witnesses import WITNESSES
from proofs_check.c9_logarithmic_regret import quadratic_regret
from proofs_check.formal import THEOREMS

LAW_STEPS = 6000
LAW_REGIMES = (
    *(law.Regime(1024, 8, 2, u) for u in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)),
    law.Regime(1024, 2, 1, 0.01),
    law.Regime(256, 16, 2, 0.02),
    law.Regime(64, 16, 1, 0.02),
    law.Regime(1024, 32, 4, 0.05),
)

Comparison = tuple[law.Regime, bounds.SignRuleLaw, bounds.SignRuleLaw, float]
"""Regime, measured, predicted, linear pull."""


def write_page(folder: Path, modules: list[ModuleType], rows: list[Row], command: str) -> None:
    """Write ``folder/claims.md`` and ``folder/figures/claim_*.png``."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    compared = [_compared(regime) for regime in LAW_REGIMES]
    drawn = {
        "monotone": (monotone_figure(), "D along the line p_2 - p_1 and one step of each rule from 0"),
        "band": (band_figure(), "the instance that attains the sharp band for E = 5, m = 3"),
        "entry": (entry_figure(), "two tokens that enter the band after 199 of at most 201 steps"),
        "law": (law_figure(compared), "measured over predicted for the sign rule under sampling noise"),
    }
    for name, (figure, _) in drawn.items():
        plotting.save_figure(figure, figures / f"claim_{name}")
    text = Path(__file__).with_name("_page.md").read_text()
    page = text.format(
        command=command,
        table=_table(rows),
        formal=_formal_table(rows),
        quadratic=", ".join(
            f"{quadratic_regret(0.5, n) / math.log(n) ** 2:.3f} at N = {n:,}" for n in (10**3, 10**4, 10**5)
        ),
        law_steps=f"{LAW_STEPS:,}",
        law_table=_law_table(compared),
        witnesses="\n".join(f"- **{one.claim}, {one.name}** = {one.value}: {one.says}." for one in WITNESSES),
        statements="\n\n".join(f"```text\n{(module.__doc__ or '').strip()}\n```" for module in modules),
        **{f"figure_{name}": f"![{words}](figures/claim_{name}.png)" for name, (_, words) in drawn.items()},
    )
    with atomic_write(folder / "claims.md") as file:
        file.write(page.encode())


def _table(rows: list[Row]) -> str:
    lines = ["| claim | part | kind | instances | measured | bound | slack | verdict | s |", "|" + "---|" * 9]
    for row in rows:
        found = row.found
        numbers = ["" if value is None else f"{value:.4g}" for value in row.numbers]
        cells = [found.claim, row.part, found.statement, f"{found.instances:,}", *numbers, row.words]
        cells.append(f"{row.seconds:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _formal_table(rows: list[Row]) -> str:
    """What Coq proved in this run, or that it was not there."""
    witnesses = [row.found.witness for row in rows if row.part == "all sizes"]
    seconds = {one["name"]: one["s"] for witness in witnesses for one in witness.get("theorems", [])}
    if not seconds:
        return "Coq was not installed for this run."
    lines = ["| claim | proved for all sizes | theorem | file | s |", "|" + "---|" * 5]
    for one in THEOREMS:
        if one.name in seconds:
            lines.append(f"| {one.claim} | {one.says} | `{one.name}` | `{one.file}.v` | {seconds[one.name]:.1f} |")
    return "\n".join(lines)


def _compared(regime: law.Regime) -> Comparison:
    seen, eigenvalues = law.measure(regime, 0, LAW_STEPS)
    said = bounds.sign_rule_law(regime.step_size, regime.num_tokens, regime.top_k, eigenvalues)
    share = regime.top_k / regime.num_experts
    sigma = math.sqrt(share * (1 - share) / regime.num_tokens)
    return regime, seen, said, regime.step_size * math.sqrt(2 / math.pi) * float(eigenvalues.mean()) / sigma


def _law_table(compared: list[Comparison]) -> str:
    lines = ["| T | E | K | u | T K / E | pull | bias sd | load sd | MaxVio |", "|" + "---|" * 9]
    for regime, seen, said, pull in compared:
        tokens = regime.num_tokens * regime.top_k / regime.num_experts
        errors = [f"{100 * (found / predicted - 1):+.1f}%" for found, predicted in zip(seen, said)]
        head = [str(value) for value in regime] + [f"{tokens:g}", f"{pull:.2f}"]
        lines.append("| " + " | ".join(head + errors) + " |")
    return "\n".join(lines)


@plotting.styled
def monotone_figure() -> Figure:
    """D as a function of p_2 - p_1, with a step of the sign rule and of the proportional rule that raises it."""
    figure, axes = plotting.new_figure(1, 2, height=2.6, sharey=False)
    for axis, scores, title in (
        (axes[0], [[0, 0]], "One token, equal scores"),
        (axes[1], [[3, 0], [5, 0]], "Two tokens, gamma_1 - gamma_2 in {3, 5}"),
    ):
        one = Instance.of(scores, 1)
        grid = np.linspace(-2, 12 if len(scores) > 1 else 4, 400)
        axis.plot(grid, [dual_value(one.problem, [-x / 2, x / 2]) for x in grid], color=plotting.GRAY)
        for length, color, name in _steps(len(scores)):
            height = [dual_value(one.problem, [0, 0]), dual_value(one.problem, [-length / 2, length / 2])]
            axis.plot([0, length], height, "-o", color=color, label=f"{name}: D rises by {height[1] - height[0]:g}")
        axis.set(xlabel="p_2 - p_1 (score units)", ylabel="D (score units)")
        axis.set_title(title, fontsize=8.5)
        axis.legend()
    return figure


def _steps(num_tokens: int) -> list[tuple[float, str, str]]:
    if num_tokens == 1:
        return [(2.0, plotting.BLUE, "sign, u = 1"), (1.0, plotting.ORANGE, "proportional, eps = 1")]
    return [(10.0, plotting.BLUE, "sign, u = 5")]


@plotting.styled
def band_figure() -> Figure:
    """Loads of the tight instance, with both bands."""
    one = c4.tight(5, 3)
    load_NE = one.run(8).load_NE
    target = one.problem.target_load
    figure, (axis,) = plotting.new_figure(1, 1, height=2.8)
    axis.plot(load_NE[:, 0], "-o", color=plotting.BLUE, label="expert 0")
    axis.plot(load_NE[:, 1], "-s", color=plotting.ORANGE, label="each of experts 1 to 4")
    for band, style, name in (
        (bounds.sharp_band(3, 5), "--", "sharp band"),
        (bounds.absorbing_band(3, 5), ":", "m (E - 1)"),
    ):
        for sign in (-1, 1):
            axis.axhline(target + sign * float(band), ls=style, color=plotting.RED, label=name if sign > 0 else None)
    axis.axhline(target, color=plotting.GRAY, label="L")
    axis.set(xlabel="step n", ylabel="load (tokens)", title="E = 5, m = 3: the deviation is the sharp band, forever")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@plotting.styled
def entry_figure() -> Figure:
    """Deviation of the late instance, with both entry times."""
    one = c5.late(400)
    allowed = bounds.sharp_entry_time(2, one.score_range, one.step_size)
    load_NE = one.run(allowed + 20, from_zero=True).load_NE
    figure, (axis,) = plotting.new_figure(1, 1, height=2.5)
    axis.step(
        range(len(load_NE)), np.abs(load_NE - one.problem.target_load).max(axis=1), where="post", color=plotting.BLUE
    )
    axis.axhline(float(bounds.sharp_band(1, 2)), ls="--", color=plotting.RED, label="sharp band, 1/2 token")
    axis.axvline(allowed, ls=":", color=plotting.GRAY, label=f"R = {allowed}")
    axis.set(
        xlabel="step n",
        ylabel="max |A - L| (tokens)",
        title="Entry after 199 steps of at most 201 (E = 2, rho / 2u = 200)",
    )
    axis.legend(loc=(0.05, 0.1))
    return figure


@plotting.styled
def law_figure(compared: list[Comparison]) -> Figure:
    """Measured over predicted against the linear pull, one panel, three quantities."""
    figure, (axis,) = plotting.new_figure(1, 1, height=3.0)
    for index, name in enumerate(("bias sd", "load sd", "MaxVio")):
        ratio = [seen[index] / said[index] for _, seen, said, _ in compared]
        color, marker = plotting.CATEGORIES[index], plotting.MARKERS[index]
        axis.scatter([pull for *_, pull in compared], ratio, color=color, marker=marker, s=26, label=name, alpha=0.85)
    axis.axhline(1.0, color=plotting.GRAY, lw=0.8)
    axis.axvline(2.0, color=plotting.GRAY, ls=":", label="pull = 2")
    axis.set_xscale("log")
    axis.set(
        xlabel="pull u sqrt(2/pi) h / sigma",
        ylabel="measured / predicted",
        title="The law of the sign rule, ten regimes",
    )
    axis.legend(loc="lower left")
    return figure
