"""alflb: the reference toolkit for auxiliary-loss-free load balancing of sparse Mixture-of-Experts routers.

The names below are the whole of what most work needs; they are imported on first use, so ``import alflb``
is quick and compiles nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alflb.datasets import LoadTrace, RouterTrace, load_router_trace, open_scores, read_trace, write_trace
    from alflb.duality import center, dual_value, gap_certificate, step_certificate
    from alflb.exact import AssignmentSolution, solve_exact
    from alflb.metrics import find_cycle, max_vio, max_vio_global, settling_time, summary
    from alflb.observers import make_observers
    from alflb.problem import AssignmentProblem
    from alflb.rules import make_rule, rule_names
    from alflb.schedules import make_schedule, schedule_names
    from alflb.simulation import Trajectory, simulate
    from alflb.streams import Static, make_stream, stream_names

__version__ = "0.1.0"

_HOME = {
    "AssignmentProblem": "problem",
    "AssignmentSolution": "exact",
    "LoadTrace": "datasets",
    "RouterTrace": "datasets",
    "Static": "streams",
    "Trajectory": "simulation",
    "center": "duality",
    "dual_value": "duality",
    "find_cycle": "metrics",
    "gap_certificate": "duality",
    "load_router_trace": "datasets",
    "make_observers": "observers",
    "make_rule": "rules",
    "make_schedule": "schedules",
    "make_stream": "streams",
    "max_vio": "metrics",
    "max_vio_global": "metrics",
    "open_scores": "datasets",
    "read_trace": "datasets",
    "rule_names": "rules",
    "schedule_names": "schedules",
    "settling_time": "metrics",
    "simulate": "simulation",
    "solve_exact": "exact",
    "step_certificate": "duality",
    "stream_names": "streams",
    "summary": "metrics",
    "write_trace": "datasets",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alflb' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"alflb.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
