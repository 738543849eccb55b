"""The helper that skips tests of optional packages, or does not."""

import math

import pytest
from _extras import require

MISSING = "alflb_no_such_package"


def test_what_is_there_is_returned():
    assert require("math") is math


def test_what_is_missing_skips(monkeypatch):
    monkeypatch.delenv("ALFLB_REQUIRE_EXTRAS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"needs {MISSING}"):
        require(MISSING)


def test_where_extras_are_required_what_is_missing_fails(monkeypatch):
    monkeypatch.setenv("ALFLB_REQUIRE_EXTRAS", "1")
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        require(MISSING)


def test_a_package_that_is_there_but_broken_does_not_skip(monkeypatch, tmp_path):
    (tmp_path / "alflb_broken_package.py").write_text("raise ImportError('half installed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ALFLB_REQUIRE_EXTRAS", raising=False)
    with pytest.raises(ImportError, match="half installed"):
        require("alflb_broken_package")


@pytest.mark.parametrize("required", ["0", "1"])
def test_warnings_of_an_import_are_not_errors(monkeypatch, tmp_path, required):
    name = f"alflb_warning_package_{required}"
    (tmp_path / f"{name}.py").write_text("import warnings; warnings.warn('no accelerator')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALFLB_REQUIRE_EXTRAS", required)
    assert require(name).__name__ == name
