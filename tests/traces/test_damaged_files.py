"""Whatever is in a file: it is read, or refused in one line; never a traceback of some decoder."""

import json
import os
import random

import numpy as np
import pytest
from _damage import crafted_files, damage, whole_files
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from alflb import Trajectory
from alflb.cli.app import app
from alflb.traces import (
    RouterTrace,
    TraceError,
    convert_experts,
    convert_loads,
    convert_scores,
    open_scores,
    read_arrays,
    read_trace,
)

READERS = {
    "read_trace": read_trace,
    "open_scores": lambda path: open_scores(path, top_k=2),
    "read_arrays": read_arrays,
    "convert_scores": lambda path: convert_scores(path, array=None, top_k=2, bias_array="b"),
    "convert_loads": lambda path: convert_loads(path, array="expert_*", top_k=1),
    "convert_experts": lambda path: convert_experts(path, array="ids", top_k=2, num_experts=4),
}
TRAJECTORY = Trajectory(np.zeros((3, 4)), np.ones((2, 4), int), np.ones(4), {"affinity": np.zeros(2)}, {"top_k": 1})
CASES = int(os.environ.get("ALFLB_FUZZ_CASES", "300"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return [(path.name, path.read_bytes()) for path in whole_files(tmp_path_factory.mktemp("whole"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def refusal(reader, path):
    """The one line in which a reader refuses a file; its path if it reads it."""
    try:
        reader(path)
    except (ValueError, MemoryError) as error:
        return str(error)
    return str(path)


def read_or_refuse(path):
    for name, reader in READERS.items():
        said = refusal(reader, path)
        assert str(path) in said, name
        assert "\n" not in said, name


@settings(max_examples=CASES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused(whole, folder, seed):
    rng = random.Random(seed)
    name, content = rng.choice(whole)
    for _ in range(rng.randint(1, 3)):
        content = damage(content, rng) or b"P"
    path = folder / name
    path.unlink(missing_ok=True)  # a mapped file keeps its content
    path.write_bytes(content)
    read_or_refuse(path)


@pytest.mark.parametrize(
    ("name", "content"), list(crafted_files()), ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.filterwarnings("ignore")  # numpy and torch warn of odd headers before they refuse them
def test_crafted_files_are_read_or_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    read_or_refuse(path)
    for command in ("inspect", "solve"):
        done = CliRunner().invoke(app, [command, str(path), "--top-k", "1", "--json"])
        assert done.exit_code in (0, 2), done.output
        assert "Traceback" not in done.output
        if done.exit_code == 2:
            assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1
        else:
            json.loads(done.stdout)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), key=st.text(min_size=1, max_size=20))
def test_what_metadata_say_is_printed_as_it_stands(folder, key, text):
    """No markup, no terminal escapes, no control characters, valid JSON, and measured facts stay measured."""
    path = folder / "said.npz"
    metadata = {
        key: text,
        "[/]": "[red]x",
        "num_tokens": 7,
        "\x1b[2J": "\x1b]0;title\x07",
        "description": "\ud800\u202e",
    }
    text_of = json.dumps({**metadata, "format": "alflb-trace", "version": 1, "top_k": 2})
    np.savez(path, metadata=np.array(text_of), scores=np.random.default_rng(0).random((5, 4)))
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert all(sign.isprintable() or sign == "\n" for sign in shown.stdout)
    assert "[/]" in shown.stdout
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert (facts["num_tokens"], facts["metadata_num_tokens"]) == (5, 7)


@pytest.mark.parametrize("value", [-np.inf, -1e300, np.finfo(np.float64).max])
def test_json_has_no_infinities(tmp_path, value):
    scores = np.random.default_rng(0).random((5, 4))
    scores[0, 0], scores[1, 0] = value, -np.finfo(np.float64).max
    np.save(tmp_path / "s.npy", scores)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.npy"), "--top-k", "2", "--json"])
    assert done.exit_code == 0, done.output
    json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))


def test_a_device_or_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(TraceError, match="device, pipe or socket"):
            open_scores(path, top_k=1)


def test_unused_members_are_not_read(tmp_path, monkeypatch):
    """Only what is asked for is taken from an archive, and what does not fit is refused before it is allocated."""
    from alflb import free_memory

    path = tmp_path / "big.npz"
    np.savez_compressed(path, scores=np.ones((4, 2)), unused=np.zeros(10**6))
    monkeypatch.setattr(free_memory, "available_memory", lambda: 10**6)
    assert open_scores(path, array="scores", top_k=1).scores_TE.shape == (4, 2)
    with pytest.raises(MemoryError, match=r"big\.npz.*0\.008 GB of memory but 0\.001 GB are free"):
        read_arrays(path)


def test_other_byte_orders_and_layouts_are_read(tmp_path):
    scores = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    for name, values in {"big": scores.astype(">f4"), "fortran": np.asfortranarray(scores)}.items():
        np.save(tmp_path / f"{name}.npy", values)
        np.savez(tmp_path / f"{name}.npz", values)
        for suffix in ("npy", "npz"):
            read = open_scores(tmp_path / f"{name}.{suffix}", top_k=1)
            assert isinstance(read, RouterTrace)
            np.testing.assert_array_equal(read.scores_TE, scores)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["bias", "load", "target", "meta", "series/affinity", ""]))
def test_damaged_trajectories_are_refused(folder, seed, name):
    rng = random.Random(seed)
    path = folder / "run.npz"
    TRAJECTORY.save(path)
    assert Trajectory.load(path).meta == {"top_k": 1}
    if name:  # another array under this name
        arrays = {
            **read_arrays(path),
            name: rng.choice([np.zeros(5), np.array("["), np.array("[" * 10**5), np.zeros(())]),
        }
        np.savez(path, **arrays)
    else:
        path.write_bytes(damage(path.read_bytes(), rng))
    said = refusal(Trajectory.load, path)
    assert path.name in said
    assert not name or said != str(path)


def test_a_trajectory_that_lacks_an_array_is_refused(folder):
    path = folder / "run.npz"
    TRAJECTORY.save(path)
    arrays = read_arrays(path)
    for name in arrays:
        np.savez(path, **{key: values for key, values in arrays.items() if key != name})
        if not name.startswith("series/"):
            assert "lacks" in refusal(Trajectory.load, path)
