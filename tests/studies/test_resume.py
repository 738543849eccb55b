"""A stored cell is used only if it is exactly what was stored for these parameters by this software."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alflb.studies import sweep
from alflb.studies.sweep import Outcome, Silent, run_cells

CELLS = [{"k": k, "name": "square"} for k in range(3)]


def measure(cell, advance):
    number = cell["k"] ** 2 + 0.5
    return Outcome([{"square": number, "words": ["a", str(number)]}], {f"{cell['k']}.bin": bytes([cell["k"]] * 40)})


def sweep_into(folder):
    """The rows, and which cells had to be computed."""
    computed = []

    def run(cell, advance):
        computed.append(cell["k"])
        return measure(cell, advance)

    return run_cells(CELLS, run, folder, cost=lambda cell: 1.0, progress=Silent()), computed


@pytest.fixture
def folder(tmp_path):
    sweep_into(tmp_path)
    return tmp_path


def row_files(folder):
    return [folder / f"{sweep.cell_key(cell)}.parquet" for cell in CELLS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    rows, computed = sweep_into(folder)
    assert computed == [0, 1, 2]
    return folder, rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_changes_a_row(finished, data):
    """Where the bit matters the cell is computed again; where it does not (padding) the rows are the same."""
    folder, rows = finished
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    for bit in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    assert sweep_into(folder)[0] == rows
    assert sweep_into(folder) == (rows, [])


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path, other):
    path.write_bytes(b"")


def delete(path, other):
    path.unlink()


def make_folder(path, other):
    path.unlink()
    path.mkdir()


def copy_another(path, other):
    shutil.copyfile(other, path)


def swap(path, other):
    kept = path.read_bytes()
    shutil.copyfile(other, path)
    other.write_bytes(kept)


@pytest.mark.parametrize("damage", [truncate, empty, delete, make_folder, copy_another, swap])
@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_a_bad_cell_is_a_missing_cell(folder, damage, suffix):
    rows, computed = sweep_into(folder)
    assert computed == []
    paths = row_files(folder) if suffix == ".parquet" else [folder / f"{k}.bin" for k in range(3)]
    content = [path.read_bytes() for path in paths]
    damage(paths[1], paths[2])
    again, computed = sweep_into(folder)
    assert again == rows
    assert computed == ([1, 2] if damage is swap else [1])
    assert [path.read_bytes() for path in paths] == content


def test_a_folder_with_files_in_it_is_left_alone(folder):
    path = row_files(folder)[0]
    path.unlink()
    path.mkdir()
    (path / "precious").write_text("keep")
    with pytest.raises(OSError, match="not empty") as caught:
        sweep_into(folder)
    assert caught.value.filename == str(path)
    assert (path / "precious").read_text() == "keep"


@pytest.mark.parametrize("name", ["source_digest", "versions", "python"])
def test_cells_of_other_software_are_computed_again(folder, monkeypatch, name):
    monkeypatch.setattr(sweep, "software", lambda: {**dict.fromkeys(("source_digest", "versions", "python"), "same")})
    assert sweep_into(folder)[1] == [0, 1, 2]
    assert sweep_into(folder)[1] == []
    monkeypatch.setattr(
        sweep, "software", lambda: {**dict.fromkeys(("source_digest", "versions", "python"), "same"), name: "other"}
    )
    assert sweep_into(folder)[1] == [0, 1, 2]
