"""Files appear whole or not at all; rows carry where they come from."""

import errno
import os
import socket
from pathlib import Path

import pytest

from alflb import io


def test_atomic_write_replaces_whole_files_only(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with io.atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with io.atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        io.write_text(tmp_path / "report.html", "text")
    assert caught.value.filename == str(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_rows_round_trip_and_repeat_to_the_byte(tmp_path):
    rows = [{"a": 1, "b": "x", "c": [1.0, 2.0]}, {"a": 2, "b": None, "d": 0.5}]
    for name in ("one", "two"):
        io.write_rows(tmp_path / name, rows)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = io.read_rows(tmp_path / "one")
    assert read[0] == {"a": 1, "b": "x", "c": [1.0, 2.0], "d": None}
    assert read[1] == {"a": 2, "b": None, "c": None, "d": 0.5}


def test_a_damaged_rows_file_is_refused_by_name(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"rows\.parquet is not a readable Parquet file"):
        io.read_rows(tmp_path / "rows.parquet")


def test_provenance_names_commit_versions_threads_and_machine():
    facts = io.provenance()
    assert set(facts) == {"commit", "source_digest", "versions", "python", "threads", "machine"}
    assert all(facts.values())
    assert "numpy" in facts["versions"]


def test_require_writable_names_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as caught:
        io.require_writable(tmp_path / "file" / "folder")
    assert caught.value.filename == str(tmp_path / "file" / "folder")


def test_links_are_followed(tmp_path):
    target = tmp_path / "elsewhere" / "target"
    link = tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):  # the target does not exist, then it does
        io.write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=r"[Ss]ymbolic links") as caught:
        io.write_text(loop, "text")
    assert caught.value.filename == str(loop)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "link to a device"])
@pytest.mark.parametrize("check", [io.require_writable_file, lambda path: io.write_text(path, "text")])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, monkeypatch, kind, check):
    monkeypatch.chdir(tmp_path)
    path = Path("special")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = os.stat(path).st_mode
    with pytest.raises(OSError, match=r"regular file|directory") as caught:
        check(path)
    assert caught.value.filename == str(path)
    assert os.stat(path).st_mode == before


def test_permissions_of_a_replaced_file_are_kept_and_new_files_are_ordinary(tmp_path):
    path = tmp_path / "private"
    io.write_text(path, "one")
    (tmp_path / "ordinary").write_text("")
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    path.chmod(0o600)
    io.write_text(path, "two")
    assert path.stat().st_mode & 0o777 == 0o600


def test_rows_that_have_changed_are_refused(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    io.write_rows(path, [{"a": 1}, {"a": 2}], {"cell": 3})
    assert io.read_labeled_rows(path) == ([{"a": 1}, {"a": 2}], {"cell": 3})
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(ValueError, match="has been changed"):
        io.read_rows(path)
