"""Children of these tests are forked from one server that has imported torch and the models once."""

import multiprocessing
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def spawn():
    """Start a function of `tests.training.workers` in a child process: spawn(name, *arguments) -> Process."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.workers"])

    def start(name, *arguments):
        from tests.training import workers

        process = context.Process(target=getattr(workers, name), args=arguments)
        process.start()
        return process

    return start
