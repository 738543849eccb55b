import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from alflb.cli import doctor
from alflb.cli.app import app
from alflb.kernels import _jit


def found():
    return {one.statement: one for one in doctor.examine()}


def test_everything_needed_is_in_order_here():
    items = found()
    assert all(item.holds for item in items.values())
    needed = {"numpy", "scipy", "numba", "cvxpy", "typer"}
    assert needed <= set(items)
    assert items["numpy"].measured.startswith(importlib.metadata.version("numpy"))


def test_a_package_that_is_missing_or_too_old_is_found(monkeypatch):
    versions = {"numpy": "1.26.4", "rich": None}
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else real(name))
    items = found()
    assert not items["numpy"].holds
    assert items["numpy"].measured == "1.26.4"
    assert items["numpy"].expected.startswith(">=2")
    assert not items["rich"].holds
    assert items["rich"].measured == "missing"
    assert items["scipy"].holds
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_extras_follow_each_other_and_say_what_they_lack(monkeypatch):
    names = {one.name for one in doctor._requirements("models")}
    assert {"torch", "transformers"} <= names
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "ortools" else real(name))
    items = found()
    assert items["extra flow"].measured == "lacks ortools: pip install 'alflb[flow]'"
    assert "ortools" in items["extra bench"].measured
    assert items["extra flow"].holds, "nothing that is optional is a fault"


def test_a_cache_that_cannot_be_written_is_found(monkeypatch):
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)
    cache = found()["kernel cache"]
    assert not cache.holds
    assert "set NUMBA_CACHE_DIR" in cache.measured


def test_source_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    with pytest.raises(ValueError, match="pip install -e"):
        doctor.examine()


def test_json_has_the_same():
    printed = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert [one["statement"] for one in printed] == [one.statement for one in doctor.examine()]
