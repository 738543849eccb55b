"""Optional packages in tests: skipped where missing, required where the environment says so.

``ALFLB_REQUIRE_EXTRAS=1`` is set where every extra is installed on purpose (`.ci/run`), so that a broken installation
fails instead of skipping the tests that would have shown it.
"""

import importlib
import os
import warnings
from types import ModuleType

import pytest


def require(module: str) -> ModuleType:
    """Import a module of an optional package; without it skip the test, or fail if ALFLB_REQUIRE_EXTRAS=1.

    Only a missing module skips. One that is there and breaks while importing is an error in both cases; what it
    warns of while importing is not ours to fix, and is ignored in both.
    At module level this skips the whole test file: ``torch = require("torch")``.
    """
    if os.environ.get("ALFLB_REQUIRE_EXTRAS") == "1":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    skipping: ModuleType = pytest.importorskip(
        module, reason=f"needs {module} (an optional extra)", exc_type=ModuleNotFoundError
    )
    return skipping
