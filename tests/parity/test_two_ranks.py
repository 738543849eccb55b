"""Counts are summed over data-parallel ranks before the sign is taken: two processes, their own all_reduce."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from _extras import require
from _parity import our_biases

HERE = Path(__file__).parent
LOADS = np.array([[60, 20, 10, 10], [0, 20, 60, 20]])


def run_two_ranks(folder):
    """What each rank's packages made of the loads: a list of two dictionaries."""
    paths = [*map(str, (HERE, HERE.parent, HERE.parent.parent)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    loads, files = json.dumps(LOADS.tolist()), [folder / f"{rank}.json" for rank in (0, 1)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "_two_ranks.py"), str(rank), str(folder / "rendezvous"), loads, str(file)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        for rank in ranks:
            errors = rank.communicate(timeout=300)[1]
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:  # one that failed leaves the other waiting for it
            rank.kill()
            rank.wait()
    return [json.loads(file.read_text()) for file in files]


def test_both_ranks_take_the_step_of_the_summed_loads(tmp_path):
    for package in ("torch", "megatron.core", "torchtitan", "olmo_core"):
        require(package)
    biases = run_two_ranks(tmp_path)
    for package, rule in (("megatron", "sign"), ("olmo", "sign"), ("torchtitan", "recentred_sign")):
        expected = our_biases(rule, 1.0, LOADS.sum(axis=0)[None])[0].tolist()
        assert [rank[package] for rank in biases] == [expected, expected]


def test_no_rank_alone_and_no_mean_of_their_signs_would_do():
    """The vector tells them apart: expert 0 is overloaded on one rank, idle on the other, overloaded in all."""
    first, second = (our_biases("sign", 1.0, load_E[None])[0] for load_E in LOADS)
    together = our_biases("sign", 1.0, LOADS.sum(axis=0)[None])[0]
    for other in (first, second, (first + second) / 2):
        assert other.tolist() != together.tolist()
