"""The command line ``alflb``, assembled from its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from alflb.cli._arguments import ListingCommand
from alflb.cli._console import run_app
from alflb.cli.doctor import doctor
from alflb.cli.guarantees import regret, schedules, verify
from alflb.cli.run import advise, simulate, solve
from alflb.cli.study import study
from alflb.cli.traces import convert, inspect
from alflb.cli.training import capture, diagnose

app = typer.Typer(
    name="alflb",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Auxiliary-loss-free load balancing of Mixture-of-Experts routers, held against the exact optimum.

Start with `alflb study`: it needs no input and leaves a report. TRACE arguments are .npz files in alflb's trace
format, or arrays (tokens, experts) in .npy, .npz, .pt, .parquet, .csv or .json files, with --array and --top-k.

Exit codes: 0 ok, 1 a check failed, 2 bad input, 130 interrupted.""",
)


def main() -> None:
    """Entry point of the ``alflb`` command."""
    run_app(app)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Show the version when asked; the commands do the rest."""
    if version:
        from alflb import __version__

        print(__version__)
        raise typer.Exit


for command in (study, simulate, solve, advise, verify, regret, schedules, inspect, convert, capture, diagnose, doctor):
    app.command(cls=ListingCommand)(command)


if __name__ == "__main__":
    main()
