"""Studies of runs that ``python -m experiments.train_moe`` left: what the ladder of sizes says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from alflb.cli._console import reports_errors
from alflb.io import Row
from alflb.plotting import save_figure
from alflb.population import SampledScores
from alflb.rules import Sight
from experiments import train_moe
from experiments._moe_settings import SIZES, Arm
from experiments.ladder import along as alongside
from experiments.ladder import cards, figures, tables
from experiments.ladder.frozen import compositions, computation_batches, parts
from experiments.ladder.resolution import paired_loss_sd, resolution

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

OutOption = Annotated[Path, typer.Option(help="JSON file to write.")]


@app.command()
@reports_errors
def resolve(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")],
    steps: Annotated[int, typer.Option(min=1)],
    batch: Annotated[int, typer.Option(min=1, help="Sequences per step.")],
    sequence: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")],
    evaluate: Annotated[int, typer.Option(min=1, help="Tokens of held-out text.")],
    seeds: Annotated[int, typer.Option(min=1)],
    like: Annotated[Path, typer.Option(help="SIZE.json of an earlier rung, for the scatter of losses over seeds.")],
) -> None:
    """Say, before a rung is run, what it can tell apart."""
    changed = SIZES[size].changed(
        num_steps=steps, sequences_per_step=batch, sequence=sequence, evaluation_tokens=evaluate
    )
    rung = resolution(changed, seeds, paired_loss_sd(train_moe.read_results(like)))
    typer.echo(
        f"{size}: {rung.target_load:g} tokens per expert and batch; sampling alone leaves a MaxVio of "
        f"{rung.batch_floor:.2f} per batch and {rung.held_out_floor:.3f} on the held-out text; the sign rule with "
        f"u = 0.001 brings two biases at most {rung.travel:g} apart; differences of perplexity below "
        + (f"{rung.perplexity_width:.1%} are not seen" if seeds > 1 else "any size are not seen (one seed)")
    )


@app.command()
@reports_errors
def along(
    folders: Annotated[list[Path], typer.Argument(help="Folders ARM_seedN_batches that --trace-every left.")],
    out: OutOption,
    settled: Annotated[int, typer.Option(min=0, help="Step from which biases are held against prices.")] = 200,
) -> None:
    """Bias against price, its lag, and the regret of every step, from the traces of training batches."""
    rows: list[Row] = []
    for folder in folders:
        match = re.fullmatch(r"(.+)_seed(\d+)_batches", folder.name)
        if match is None:
            raise ValueError(f"{folder} is not named ARM_seedN_batches; give the folders that --trace-every leaves")
        for layer in alongside.batch_layers(folder):
            arm = Arm.parse(_arm_name(match[1]))
            run = {"arm": arm.name, "seed": int(match[2]), "layer": layer}
            traces = alongside.read_batches(folder, layer)
            rows += [{**run, **row} for row in _along(traces, settled, arm)]
        typer.echo(f"{folder.name}: done")
    train_moe.write_results(out, rows)


LAGS = range(-20, 11)
"""In batches on file."""
POOLS = (1, 2, 4, 8, 16)
"""Batches put together for one price."""
LAW_BATCHES = 40
"""The last batches, from which curvatures are estimated."""
REGRET_POOL = 10
"""Batches around a step whose common optimum its bias is held against."""


def _along(traces: alongside.BatchTraces, settled: int, arm: Arm) -> list[Row]:
    """Rows of one router: ``lag``, ``pool``, ``law`` and ``regret``."""
    late = traces.since(settled)
    price_NE = alongside.prices(late.scores_NTE, late.top_k)
    moved = bool(np.ptp(late.bias_NE, axis=1).all())
    rows: list[Row] = []
    if moved:
        curve = alongside.lag_curve(late.bias_NE, price_NE, LAGS)
        rows += [
            {"kind": "lag", "lag": lag * late.spacing, "correlation": value}
            for lag, value in zip(LAGS, curve, strict=True)
        ]
        reliability = alongside.mean_correlation(price_NE[1:], price_NE[:-1])
        for pool in POOLS:
            pooled_NE = alongside.prices(alongside.pooled(late.scores_NTE, pool), late.top_k)
            middle = np.arange(len(pooled_NE)) * pool + pool // 2
            rows.append(
                {
                    "kind": "pool",
                    "batches": pool,
                    "correlation": alongside.mean_correlation(late.bias_NE[middle], pooled_NE),
                    "neighbors": alongside.mean_correlation(pooled_NE[1:], pooled_NE[:-1]),
                    "neighbors_predicted": alongside.reliability_of(reliability, pool),
                }
            )
    rows.append({"kind": "law", **_law(late, price_NE, arm)})
    return rows + [{"kind": "regret", **row} for row in _regret(traces)]


def _regret(traces: alongside.BatchTraces) -> list[Row]:
    """Means over `REGRET_POOL` batches, each held against its own optimum and against that of all of them."""
    own_N, near_N = (alongside.regret_per_token(traces, pool) for pool in (1, REGRET_POOL))
    max_vio_N = alongside.batch_max_vio(traces)
    return [
        {
            "step": int(traces.steps_N[end - 1]),
            "own": float(own_N[end - REGRET_POOL : end].mean()),
            "near": float(near_N[end - REGRET_POOL : end].mean()),
            "max_vio": float(max_vio_N[end - REGRET_POOL : end].mean()),
        }
        for end in range(REGRET_POOL, len(near_N) + 1, REGRET_POOL)
    ]


def _law(late: alongside.BatchTraces, price_NE: alongside.Array, arm: Arm) -> Row:
    """What the tracking law takes, from the last batches, and the lag that it gives for a constant sign step."""
    last_TE = alongside.pooled(late.scores_NTE[-LAW_BATCHES:], min(LAW_BATCHES, len(late.scores_NTE)))[0]
    curvature_M = SampledScores(last_TE, late.top_k).curvatures(alongside.prices(last_TE[None], late.top_k)[0])
    num_tokens = late.scores_NTE.shape[1]
    spread = alongside.overdispersion(alongside.batch_loads(late), num_tokens, late.top_k)
    lag = None
    if arm.kind == "sign" and arm.schedule == "constant" and arm.strength and curvature_M[0] > 0:
        lag = alongside.sign_lag(arm.strength, num_tokens, late.top_k, curvature_M, spread)
    return {
        "curvature": float(np.mean(curvature_M)),
        "curvature_low": float(np.quantile(curvature_M, 0.1)),
        "curvature_high": float(np.quantile(curvature_M, 0.9)),
        "overdispersion": spread,
        "price_speed": _speed(price_NE) / late.spacing,
        "lag_predicted": lag,
        "floor": alongside.batch_floor(late),
    }


def _speed(price_NE: alongside.Array) -> float:
    """Root mean square over experts of the change of the price per batch, from the first third to the last."""
    third = len(price_NE) // 3
    change_E = price_NE[-third:].mean(axis=0) - price_NE[:third].mean(axis=0)
    return float(np.sqrt(np.mean(change_E**2))) / (len(price_NE) - third)


@app.command()
@reports_errors
def frozen(
    models: Annotated[list[Path], typer.Argument(help="Folders SIZE_ARM_seedN that --keep left.")],
    out: OutOption,
    tokens: Annotated[int, typer.Option(min=1, help="Of each text.")] = 16384,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per step, instead of the size's own.")] = None,
    sequence: Annotated[int | None, typer.Option(min=2, help="Tokens per sequence, instead of the size's own.")] = None,
    corpus: Annotated[
        str, typer.Option(help="What the models were trained on: shakespeare or package.")
    ] = "shakespeare",
) -> None:
    """What the MaxVio of trained models is made of, against the computation batch, and by composition of the batch."""
    from experiments.ladder.models import frozen_routers

    rows: list[Row] = []
    for folder in models:
        match = re.fullmatch(r"([^_]+)_(.+)_seed(\d+)", folder.name)
        if match is None or match[1] not in SIZES:
            raise ValueError(f"{folder} is not named SIZE_ARM_seedN; give the folders that --keep leaves")
        given = {"sequences_per_step": batch, "sequence": sequence}
        size = SIZES[match[1]].changed(**{name: value for name, value in given.items() if value is not None})
        arm = Arm.parse(_arm_name(match[2]))
        rule = arm.rule(size.num_steps) if arm.schedule == "constant" else None
        if rule is not None and rule.sees is not Sight.LOADS:
            rule = None
        text = train_moe.known_corpus(corpus, size.vocab_size)
        for router in frozen_routers(folder, size, text, tokens):
            run = {"size": size.name, "arm": arm.name, "seed": int(match[3]), "layer": router.layer}
            taken = parts(router.texts, router.bias_E, rule, size.top_k, size.sequences_per_step)
            rows.append({**run, "kind": "parts", **taken._asdict()})
            batches = computation_batches(router.texts.training_mixed_STE, router.bias_E, size.top_k)
            rows += [{**run, "kind": "batch", **batch._asdict()} for batch in batches]
            kinds = compositions(router.texts.training_STE, router.bias_E, size.top_k, size.sequences_per_step)
            rows += [{**run, "kind": "composition", **one._asdict()} for one in kinds]
        typer.echo(f"{folder.name}: done")
    train_moe.write_results(out, rows)


@app.command()
@reports_errors
def show(files: Annotated[list[Path], typer.Argument(help="What 'along' or 'frozen' wrote.")]) -> None:
    """Print the tables of the studies: means over seeds with 95% intervals."""
    for path in files:
        for table in tables.study_tables(train_moe.read_results(path)):
            typer.echo(f"{table}\n")


@app.command()
@reports_errors
def compare(files: Annotated[list[Path], typer.Argument(help="SIZE.json of every rung.")]) -> None:
    """Print every arm of every rung, and the signs of the published comparisons rung by rung."""
    rungs = {path.stem: train_moe.read_results(path) for path in files}
    for name, rows in rungs.items():
        typer.echo(f"{name}\n\n{tables.arm_table(rows)}\n\n{tables.phase_table(rows)}\n")
    typer.echo(tables.sign_table(rungs))


@app.command()
@reports_errors
def draw(
    rungs: Annotated[list[Path], typer.Argument(help="SIZE.json of every rung, smallest first.")],
    along_rows: Annotated[Path, typer.Option("--along", help="What 'along' wrote.")],
    frozen_rows: Annotated[Path, typer.Option("--frozen", help="What 'frozen' wrote.")],
    out: Annotated[Path, typer.Option(help="Figure to write, without suffix.")],
) -> None:
    """Draw the ladder in one figure."""
    results = {path.stem: train_moe.read_results(path) for path in rungs}
    drawing = figures.figure(results, train_moe.read_results(along_rows), train_moe.read_results(frozen_rows))
    typer.echo(save_figure(drawing, out)[0])


@app.command()
@reports_errors
def card(folder: Annotated[Path, typer.Argument(help="Folder 'traces' that train_moe left.")]) -> None:
    """Write the card of a set of router traces, README.md, into their folder: text, license, how they were made."""
    cards.write_card(folder)
    typer.echo(folder / "README.md")


def _arm_name(folder_part: str) -> str:
    return folder_part.replace("-", ":")


if __name__ == "__main__":
    app()
