"""Shared by all tests: reproducible hypothesis runs, and small sizes where numba is switched off."""

import os

import pytest
from hypothesis import HealthCheck, settings

from alflb.problem import AssignmentProblem

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
MOST_SCORES = 3000
"""Scores in a case that is run without the JIT, where each costs microseconds."""

settings.register_profile("alflb", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("without_jit", settings.get_profile("alflb"), max_examples=5)
settings.load_profile("without_jit" if WITHOUT_JIT else "alflb")


def pytest_collection_modifyitems(config, items):
    """Without the JIT, leave out what needs it and cases whose shape is large."""
    if not WITHOUT_JIT:
        return
    kept = [item for item in items if item.get_closest_marker("jit") is None and not _is_large(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _is_large(item):
    shape = item.callspec.params.get("shape") if hasattr(item, "callspec") else None
    return isinstance(shape, tuple) and shape[0] * shape[1] > MOST_SCORES


@pytest.fixture
def tiny_problem():
    """Four tokens, two experts, K = 1; everyone prefers expert 0."""
    return AssignmentProblem([[0.75, 0.25], [0.75, 0.5], [0.5, 0.0], [1.0, 0.0]], top_k=1)
