"""Do the tests notice a fault? One small change after another is planted: ``python -m proofs_check.mutants``.

The changes are cosmic-ray's: another operator, comparison or number, a negated condition, a loop that does not run. A
place in the code is drawn at random, then one of the changes possible there. Its tests run on a copy of the project, in
a child process; a change that every test passes has survived. It is either a fault that no test would notice, or it
changes no result (another tolerance, another order of equal work): those are listed in ``equivalent.toml``, with the
reason, and count as equivalent. Needs the extra ``mutants``.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from alflb.cli._console import reports_errors
from alflb.io import atomic_write
from alflb.registry import unknown_name

PROJECT = Path(__file__).parents[2]
LARGEST_SHARE = 0.05
"""Of the planted changes that change a result, the share that may survive."""
LEFT_OUT = ("RemoveDecorator", "ExceptionReplacer", "VariableReplacer", "VariableInserter")
"""Changes of cosmic-ray's that mostly change nothing or that no program would run with."""


@dataclass(frozen=True)
class Room:
    """Source files, the pytest arguments that choose the tests which must notice a change, and how these run."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    seconds: float = 900.0
    environment: tuple[tuple[str, str], ...] = ()

    def files(self) -> list[Path]:
        """Paths of the sources, relative to the project."""
        found = (path for pattern in self.sources for path in sorted(PROJECT.glob(pattern)))
        return [path.relative_to(PROJECT) for path in found]


_WITHOUT_JIT = (("NUMBA_DISABLE_JIT", "1"),)
_QUICK_WITHOUT_JIT = "test_certificate or small_integer or infeasible or floating_point or batches_must or guard"
ROOMS = {
    "simulation": Room(
        ("alflb/simulation.py", "alflb/trajectory.py", "alflb/observers.py"),
        ("tests/test_simulation.py", "tests/rules/test_rules_by_hand.py"),
    ),
    "kernels": Room(
        tuple(f"alflb/kernels/{name}.py" for name in ("_blocks", "_chunks", "_draws", "_sharing", "[cdnr][!e]*")),
        ("tests/kernels/test_kernels.py", "tests/kernels"),
        environment=_WITHOUT_JIT,
    ),
    "vectors": Room(
        tuple(f"alflb/kernels/{name}.py" for name in ("_simd", "_splitmix", "_network", "laws")),
        ("tests/kernels/test_simd.py", "tests/kernels/test_counter_streams.py"),
    ),
    "duality": Room(("alflb/duality.py",), ("tests/test_duality.py", "tests/exact/test_certificate.py")),
    "bounds": Room(("alflb/bounds.py", "alflb/verify.py"), ("tests/test_bounds.py", "tests/test_verify.py")),
    "population": Room(("alflb/population.py",), ("tests/test_population.py",)),
    "exact": Room(
        ("alflb/exact/[!_]*.py", "alflb/exact/screening/*.py", "alflb/exact/streaming/*.py"),
        ("tests/exact", "-k", _QUICK_WITHOUT_JIT),
        environment=_WITHOUT_JIT,
    ),
    "metrics": Room(("alflb/metrics.py", "alflb/online.py"), ("tests/test_metrics.py", "tests/test_online.py")),
    "advice": Room(("alflb/advice.py", "alflb/advice_log.py"), ("tests/test_advise.py", "tests/test_advice_log.py")),
    "rules": Room(("alflb/rules/*.py",), ("tests/rules",)),
    "training": Room(("alflb/training/*.py",), ("tests/training",)),
}
"""By the names of the layers; tests of the solver and the kernels run as plain Python, at small sizes; those of
`vectors`, which build machine code, compiled."""


@dataclass(frozen=True)
class Mutant:
    """One change: the file, cosmic-ray's operator and which of its places, and the line before and after."""

    file: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """What names it in ``equivalent.toml``, whatever stands above it in the file."""
        return f"{self.file}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, survived, or out of time (which counts as noticed)."""

    mutant: Mutant
    status: str
    seconds: float


def draw(file: Path, rng: random.Random) -> Mutant:
    """A place of the file, and one of the changes possible there."""
    places = _places(file)
    source = (PROJECT / file).read_text()
    while True:
        place = rng.choice(list(places))
        operator, occurrence = rng.choice(places[place])
        changed = _mutate(source, operator, occurrence)
        if changed is not None and _code(changed) != _code(source):
            return Mutant(str(file), operator, occurrence, place[0], *_difference(source, changed))


def _places(file: Path) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Every place of the file where something can be changed: operators and which of their occurrences it is."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    tree = get_ast_from_path(PROJECT / file)
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in sorted(plugins.operator_names()):
        if name.split("/")[-1] in LEFT_OUT:
            continue
        operator = plugins.get_operator(name)()
        found = (position for node in ast_nodes(tree) for position in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(found):
            places.setdefault(start, []).append((name, occurrence))
    return places


def _mutate(source: str, operator: str, occurrence: int) -> str | None:
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    changed: str | None = mutate_code(source, plugins.get_operator(operator)(), occurrence)
    return changed


def _code(source: str) -> str | None:
    """The program without annotations and decorators, which change no result; None if it is no program."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(0))
        if hasattr(node, "decorator_list"):
            node.decorator_list = []
    return ast.dump(tree)


def _difference(source: str, changed: str) -> tuple[str, str]:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), changed.splitlines())
    before, after = next(pair for pair in pairs if pair[0] != pair[1])
    return before.strip(), after.strip()


class Copy:
    """A copy of the project in which one file at a time is changed and tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in filter(lambda name: (PROJECT / name).is_file(), listed.stdout.splitlines()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
        for kept in PROJECT.glob("alflb/**/__pycache__"):  # compiled kernels
            shutil.copytree(kept, folder / kept.relative_to(PROJECT), dirs_exist_ok=True)

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy with this change planted."""
        path = self.folder / mutant.file
        source = path.read_text()
        changed = _mutate(source, mutant.operator, mutant.occurrence)
        if changed is None:
            raise ValueError(f"{mutant.key} cannot be planted; the file has changed since it was drawn")
        path.write_text(changed)
        try:
            yield
        finally:
            path.write_text(source)

    def passes(self, room: Room) -> bool | None:
        """Whether every test of the room passes; None if they ran out of time."""
        environment = {
            **os.environ,
            **dict(room.environment),
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # compiled files are trusted by the second, and changes come faster
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *room.tests]
        child = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return child.wait(room.seconds) == 0
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def draw_sample(name: str, sample: int, seed: int) -> list[Mutant]:
    """``sample`` different changes in the files of a room, more in larger files."""
    rng = random.Random(f"{name} {seed}")
    files = ROOMS[name].files()
    weights = [len(_places(file)) for file in files]
    drawn: dict[Mutant, None] = {}
    while len(drawn) < sample:
        drawn[draw(rng.choices(files, weights)[0], rng)] = None
    return list(drawn)


def try_out(name: str, copy: Copy, mutants: list[Mutant]) -> Iterator[Outcome]:
    """Plant one change after another, run the tests of the room, and yield what became of each."""
    room = ROOMS[name]
    if not copy.passes(room):
        raise ValueError(f"the tests of {name} do not pass as they stand; mend that first")
    for mutant in mutants:
        begun = time.perf_counter()
        with copy.changed(mutant):
            status = _STATUS[copy.passes(room)]
        yield Outcome(mutant, status, round(time.perf_counter() - begun, 1))


_STATUS = {True: "survived", False: "killed", None: "out of time"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@reports_errors
def main(
    room: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(ROOMS)}.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Changes planted in each room.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the changes.")] = 0,
    out: Annotated[Path, typer.Option(help="Where outcomes are kept, one JSON line each.")] = Path("mutants.jsonl"),
    survivors: Annotated[bool, typer.Option("--survivors", help="Only what survived in OUT, once more.")] = False,
) -> None:
    """Plant faults, run the tests on each, keep the outcomes; exit code 1 if too many survive anywhere."""
    if importlib.util.find_spec("cosmic_ray") is None:
        raise ValueError("cosmic-ray is not installed: pip install 'alflb[mutants]'")
    kept = _read(out)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for name in room or ROOMS:
            if name not in ROOMS:
                raise unknown_name("room", name, ROOMS)
            mutants = _survivors(kept, name) if survivors else draw_sample(name, sample, seed)
            for outcome in try_out(name, copy, mutants):
                kept[name, outcome.mutant.key] = {"room": name, "status": outcome.status, **asdict(outcome.mutant)}
                with atomic_write(out) as file:
                    file.writelines(json.dumps(line).encode() + b"\n" for line in kept.values())
                typer.echo(f"{name}: {outcome.status:>11} {outcome.seconds:6.1f} s  {outcome.mutant.key}")
    rows = summary(list(kept.values()))
    print_summary(rows)
    if any(row.share > LARGEST_SHARE for row in rows):
        raise SystemExit(1)


Kept = dict[tuple[str, str], dict[str, Any]]
"""Outcomes by room and change."""


def _read(path: Path) -> Kept:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["room"], f"{line['file']}: {line['before']} -> {line['after']}"): line for line in lines}


def _survivors(kept: Kept, room: str) -> list[Mutant]:
    """What survived in this room and is not known to be equivalent."""
    alive = [one for one in kept.values() if (one["room"], one["status"]) == (room, "survived")]
    mutants = [Mutant(**{name: one[name] for name in Mutant.__dataclass_fields__}) for one in alive]
    return [mutant for mutant in mutants if mutant.key not in equivalents()]


@dataclass(frozen=True)
class Line:
    """What became of the changes planted in a room."""

    room: str
    planted: int
    noticed: int
    equivalent: int
    survived: int

    @property
    def share(self) -> float:
        """Survivors per change that changes a result."""
        return self.survived / max(self.planted - self.equivalent, 1)


def summary(outcomes: list[dict[str, Any]]) -> list[Line]:
    """One line per room; survivors listed in ``equivalent.toml`` are equivalent."""
    known = equivalents()
    lines = []
    for room in dict.fromkeys(outcome["room"] for outcome in outcomes):
        here = [outcome for outcome in outcomes if outcome["room"] == room]
        alive = [one for one in here if one["status"] == "survived"]
        equivalent = sum(f"{one['file']}: {one['before']} -> {one['after']}" in known for one in alive)
        lines.append(Line(room, len(here), len(here) - len(alive), equivalent, len(alive) - equivalent))
    return lines


def equivalents() -> dict[str, str]:
    """Changes that change no result, and why."""
    return tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text())


def print_summary(rows: list[Line]) -> None:
    """The table of docs/validation/mutants.md."""
    table = Table("room", "planted", "noticed", "equivalent", "survived", "share", box=None)
    for row in rows:
        numbers = (row.planted, row.noticed, row.equivalent, row.survived)
        table.add_row(row.room, *(str(number) for number in numbers), f"{row.share:.0%}")
    Console().print(table)
