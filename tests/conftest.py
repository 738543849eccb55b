"""Shared by all tests: reproducible hypothesis runs."""

import pytest
from hypothesis import HealthCheck, settings

from alflb.problem import AssignmentProblem

settings.register_profile("alflb", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("alflb")


@pytest.fixture
def tiny_problem():
    """Four tokens, two experts, K = 1; everyone prefers expert 0."""
    return AssignmentProblem([[0.75, 0.25], [0.75, 0.5], [0.5, 0.0], [1.0, 0.0]], top_k=1)
