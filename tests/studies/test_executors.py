"""Cells on a cluster: the same rows bit for bit, and nothing lost when processes are really killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from _processes import restore_interrupts
from typer.testing import CliRunner

from alflb.cli.app import app as alflb
from alflb.io import read_rows, software
from alflb.studies.executors import open_executor
from alflb.studies.sweep import Outcome, Silent, run_cells
from experiments import _runner
from experiments.__main__ import app

distributed = pytest.importorskip("distributed")

ROOT = Path(_runner.__file__).parent.parent


@pytest.fixture
def processes():
    """Start commands; whatever still runs at the end is killed."""
    started = []

    def start(*command):
        path = os.pathsep.join(map(str, [ROOT, ROOT / "tests", Path(__file__).parent]))
        environment = {**os.environ, "ALFLB_NUM_THREADS": "1", "PYTHONPATH": path}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=restore_interrupts,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def cluster(processes, tmp_path):
    """A scheduler and a function that starts workers on it."""
    file = tmp_path / "scheduler.json"

    def scheduler(port=0):
        file.unlink(missing_ok=True)
        return processes(
            "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port,
            "--no-dashboard", "--scheduler-file", file,
        )  # fmt: skip

    first = scheduler()
    wait_until(file.exists)
    address = json.loads(file.read_text())["address"]

    def worker():
        return processes(
            "-m", "distributed.cli.dask_worker", address, "--nworkers", 1, "--nthreads", 1, "--no-nanny",
            "--no-dashboard", "--local-directory", tmp_path / "scratch", "--death-timeout", 60,
        )  # fmt: skip

    return address, worker, first, scheduler


def wait_until(condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def kill_when(process, condition):
    """A thread that kills a process and all it started, for good, as soon as the condition holds."""

    def kill():
        wait_until(condition)
        os.killpg(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


def slow_square(cell, advance):
    """A cell that can be caught at work: it says that it has begun, and by which process."""
    time.sleep(0.05)
    with open(cell["log"], "a") as log:
        log.write(f"{cell['k']} {os.getpid()}\n")
    time.sleep(cell["seconds"])
    return Outcome([{"square": cell["k"] ** 2}], {f"{cell['k']}.txt": str(cell["k"]).encode()})


def cells(tmp_path, count, seconds):
    return [{"k": k, "seconds": seconds, "log": str(tmp_path / "log")} for k in range(count)]


def sweep(work, tmp_path, executor):
    return run_cells(work, slow_square, tmp_path / "cells", cost=lambda cell: 1.0, progress=Silent(), executor=executor)


def begun(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def finished(tmp_path):
    return list((tmp_path / "cells").glob("[!.]*.parquet"))


def test_rows_are_the_same_from_a_cluster(cluster, tmp_path):
    address, worker, *_ = cluster
    worker()
    said = []
    with open_executor(scheduler=address, announce=said.append) as executor:
        there = _runner.run("transfer", tmp_path / "there", Silent(), smoke=True, executor=executor)
    assert said
    assert said[0].startswith("dashboard: http")
    assert _runner.run("transfer", tmp_path / "here", Silent(), smoke=True) == there
    assert (tmp_path / "here" / "rows.parquet").read_bytes() == (tmp_path / "there" / "rows.parquet").read_bytes()


def test_jobs_start_a_local_cluster(tmp_path):
    done = CliRunner().invoke(
        app, ["run", "transfer", "--smoke", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path / "two")]
    )
    assert done.exit_code == 0, done.output
    assert "dashboard: http" in done.output
    CliRunner().invoke(app, ["run", "transfer", "--smoke", "--seeds", "1", "--out", str(tmp_path / "one")])
    rows = [(tmp_path / name / "transfer" / "rows.parquet").read_bytes() for name in ("one", "two")]
    assert rows[0] == rows[1]


def test_the_study_is_the_same_from_a_cluster(cluster, tmp_path):
    address, worker, *_ = cluster
    worker()
    study = ["study", "--smoke", "--steps", "5", "--step-sizes", "1e-2", "--rules", "sign"]
    there = CliRunner().invoke(alflb, [*study, "--scheduler", address, "--out", str(tmp_path / "there")])
    assert there.exit_code == 0, there.output
    here = CliRunner().invoke(alflb, [*study, "--out", str(tmp_path / "here")])
    assert here.exit_code == 0, here.output
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here" / "cells").iterdir())
    assert files
    for name in [Path("rows.parquet"), *files]:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_a_worker_killed_at_work_loses_nothing(cluster, tmp_path):
    address, worker, *_ = cluster
    first, _ = worker(), worker()
    work = cells(tmp_path, 8, 0.4)
    with open_executor(scheduler=address) as executor:
        killer = kill_when(first, lambda: any(line.endswith(f" {first.pid}") for line in begun(tmp_path)))
        rows = sweep(work, tmp_path, executor)
        killer.join()
    assert first.wait() == -signal.SIGKILL
    assert [row["square"] for row in rows] == [k**2 for k in range(8)]
    assert len(finished(tmp_path)) == 8


def test_a_lost_scheduler_keeps_what_was_finished_and_a_rerun_completes_the_rest(cluster, tmp_path):
    address, worker, scheduler, restart = cluster
    worker()
    work = cells(tmp_path, 5, 0.3)
    killer = kill_when(scheduler, lambda: len(finished(tmp_path)) >= 2)
    with open_executor(scheduler=address) as executor, pytest.raises(OSError, match="run again to go on"):
        sweep(work, tmp_path, executor)
    killer.join()
    kept = len(finished(tmp_path))
    assert 2 <= kept < 5
    restart(address.rsplit(":", 1)[1])
    worker()
    ran = len(begun(tmp_path))
    wait_until(lambda: (tmp_path / "scheduler.json").exists())
    with open_executor(scheduler=address) as executor:
        rows = sweep(work, tmp_path, executor)
    assert [row["square"] for row in rows] == [k**2 for k in range(5)]
    assert len(begun(tmp_path)) - ran <= 5 - kept + 1  # one may have been at work on a surviving worker


def test_interrupt_keeps_what_was_finished_and_a_rerun_completes_the_rest(processes, tmp_path):
    def run():
        return processes(
            "-m", "experiments", "run", "transfer", "--smoke", "--seeds", 30, "--jobs", "2", "--out", tmp_path
        )  # fmt: skip

    folder = tmp_path / "transfer" / "cells"
    process = run()
    wait_until(lambda: len(list(folder.glob("[!.]*.parquet"))) >= 1)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=150)[0].decode()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*.parquet")}
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert 1 <= len(kept) < 120
    again = run()
    output = again.communicate(timeout=150)[0].decode()
    assert again.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(read_rows(tmp_path / "transfer" / "rows.parquet")) == 120
    assert not list(folder.glob(".*"))


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(processes, tmp_path):
    """A limit on file sizes stands in for a full disk: the system refuses the write in the same way."""

    def run(seeds, limit):
        arguments = ["experiments", "run", "transfer", "--smoke", "--seeds", str(seeds), "--out", str(tmp_path)]
        code = (
            f"import resource, runpy, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            f"sys.argv = {arguments!r};"
            "runpy.run_module('experiments', run_name='__main__')"
        )
        process = processes("-c", code)
        return process, process.communicate(timeout=150)[0].decode()

    first, output = run(1, -1)
    assert first.returncode == 0, output
    kept = {path: path.stat().st_mtime_ns for path in finished(tmp_path / "transfer")}
    assert len(kept) == 4
    full, output = run(2, 4000)
    assert full.returncode == 2, output
    assert "File too large" in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob(".*.tmp"))
    assert {path: path.stat().st_mtime_ns for path in finished(tmp_path / "transfer")} == kept
    repaired, output = run(2, -1)
    assert repaired.returncode == 0, output
    assert len(read_rows(tmp_path / "transfer" / "rows.parquet")) == 8


def other_source(cell, advance):
    return Outcome([{}])


@pytest.mark.parametrize("name", ["source_digest", "versions", "python"])
def test_workers_of_other_software_are_refused(name):
    from alflb.studies import sweep

    with pytest.raises(ValueError, match="install the same version on both"):
        sweep._run_there(other_source, {}, {**software(), name: "another"})


def test_bad_addresses_are_one_line():
    with pytest.raises(ValueError, match="pass an address like"), open_executor(scheduler="nonsense"):
        pass
    with pytest.raises(OSError, match="no Dask scheduler answers there"), open_executor(scheduler="tcp://127.0.0.1:1"):
        pass
    with pytest.raises(ValueError, match="has its own workers"), open_executor(2, "tcp://127.0.0.1:1"):
        pass


def test_without_dask_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"alflb\[cluster\]"), open_executor(2):
        pass
