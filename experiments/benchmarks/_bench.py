"""What the benches share: turns, statistics, the machine in one line, markdown tables, log-log figures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from alflb.io import provenance, write_text
from alflb.plotting import CATEGORIES, GRAY, MARKERS, new_figure, save_figure, styled

Contender = Callable[[], object]

MODELS = {
    "Mixtral": (8, 2),
    "gpt-oss": (128, 4),
    "Qwen3": (128, 8),
    "DeepSeek-V3": (256, 8),
    "Kimi-K2": (384, 8),
    "LongCat": (768, 12),
}
"""Experts E and picks K of models with sparse layers."""

DOCS = Path(__file__).parents[2] / "docs"


def clock(run: Contender) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(contenders: Mapping[str, Contender], turns: int, seconds_each: float) -> dict[str, list[float]]:
    """Seconds of each contender in each turn, after two calls to warm up; slow ones get fewer turns, at least three."""
    wanted = {
        name: turns if clock(run) + clock(run) < 2 * seconds_each / turns else 3 for name, run in contenders.items()
    }
    timings: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, run in contenders.items():
            if turn < wanted[name]:
                timings[name].append(clock(run))
    return timings


def duration(seconds: Sequence[float]) -> str:
    """The median and, of several timings, the range; three digits, in the unit that suits them.

    Examples
    --------
    >>> duration([18.123]), duration([0.00592, 0.00581, 0.00619]), duration([41.2e-6])
    ('18.1 s', '5.92 ms (5.81–6.19)', '41.2 µs')
    """
    median = statistics.median(seconds)
    per_second, unit = next((f, u) for f, u in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if f * median >= 1 or u == "µs")
    text = f"{three_digits(per_second * median)} {unit}"
    if len(seconds) == 1:
        return text
    return f"{text} ({three_digits(per_second * min(seconds))}–{three_digits(per_second * max(seconds))})"


def three_digits(number: float) -> str:
    """A number with three significant digits, larger ones as whole numbers with separators.

    Examples
    --------
    >>> three_digits(0.04123), three_digits(5.919), three_digits(126.4), three_digits(18123.4)
    ('0.0412', '5.92', '126', '18,123')
    """
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:#.3g}".rstrip(".")


def ratio(seconds: Sequence[float], others: Sequence[float]) -> str:
    """Quotient of medians."""
    return three_digits(statistics.median(seconds) / statistics.median(others))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(*packages: str) -> str:
    """Processor, load, Python and versions of alflb's own packages and of these, in one line."""
    facts = provenance()
    versions = dict(json.loads(facts["versions"]))
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    listing = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Machine: {facts['machine']}{load}. Python {facts['python']}, {listing}."


@styled
def scaling_figure(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], floor: str, ylabel: str
) -> Figure:
    """Time against size on log-log axes: a panel for each x label, a curve for each contender.

    Parameters
    ----------
    panels : mapping of x label to {contender: (sizes, seconds)}
    floor : str
        The contender drawn as a dotted line.
    ylabel : str
    """
    figure, axes = new_figure(1, len(panels), height=3.2, sharey=True)
    for axis, (xlabel, curves) in zip(axes, panels.items()):
        position = 0
        for name, (sizes, seconds) in curves.items():
            if name == floor:
                axis.loglog(sizes, seconds, ":", color=GRAY, label=name)
                continue
            axis.loglog(sizes, seconds, marker=MARKERS[position], color=CATEGORIES[position], label=name)
            position += 1
        axis.set(xlabel=xlabel)
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(ylabel)
    axes[0].legend(fontsize=7)
    return figure


def write_page(name: str, sections: Sequence[str], figure: Figure | None = None) -> None:
    """Write ``docs/benchmarks/NAME.md`` and, beside the other pictures, its figure."""
    if figure is not None:
        save_figure(figure, DOCS / "figures" / f"bench_{name}")
        (DOCS / "figures" / f"bench_{name}.svg").unlink()
        sections = [*sections, f"![Scaling](../figures/bench_{name}.png)"]
    write_text(DOCS / "benchmarks" / f"{name}.md", "\n\n".join(sections) + "\n")
