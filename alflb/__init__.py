"""alflb: the reference toolkit for auxiliary-loss-free load balancing of sparse Mixture-of-Experts routers.

The names below are the whole of what most work needs; they are imported on first use, so ``import alflb``
is quick and compiles nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alflb.advice import Advice as Advice
    from alflb.advice import advise as advise
    from alflb.advice_log import LogAdvice as LogAdvice
    from alflb.advice_log import advise_from_log as advise_from_log
    from alflb.duality import center as center
    from alflb.duality import dual_value as dual_value
    from alflb.duality import gap_certificate as gap_certificate
    from alflb.duality import step_certificate as step_certificate
    from alflb.exact import AssignmentSolution as AssignmentSolution
    from alflb.exact import BatchedProblem as BatchedProblem
    from alflb.exact import SolverError as SolverError
    from alflb.exact import StreamingSolution as StreamingSolution
    from alflb.exact import solve_exact as solve_exact
    from alflb.exact import solve_many as solve_many
    from alflb.exact import solve_streaming as solve_streaming
    from alflb.kernels import backend_names as backend_names
    from alflb.kernels.routing import route as route
    from alflb.metrics import find_cycle as find_cycle
    from alflb.metrics import max_vio as max_vio
    from alflb.metrics import max_vio_global as max_vio_global
    from alflb.metrics import settling_time as settling_time
    from alflb.metrics import summary as summary
    from alflb.observers import make_observers as make_observers
    from alflb.observers import observer_names as observer_names
    from alflb.online import Regret as Regret
    from alflb.online import plot_regret as plot_regret
    from alflb.online import regret as regret
    from alflb.population import GumbelTopOne as GumbelTopOne
    from alflb.population import IndependentScores as IndependentScores
    from alflb.population import SampledScores as SampledScores
    from alflb.problem import AssignmentProblem as AssignmentProblem
    from alflb.rules import make_rule as make_rule
    from alflb.rules import rule_names as rule_names
    from alflb.schedules import make_schedule as make_schedule
    from alflb.schedules import schedule_names as schedule_names
    from alflb.simulation import simulate as simulate
    from alflb.streams import Static as Static
    from alflb.streams import make_stream as make_stream
    from alflb.streams import stream_names as stream_names
    from alflb.traces import LoadTrace as LoadTrace
    from alflb.traces import RouterTrace as RouterTrace
    from alflb.traces import TraceError as TraceError
    from alflb.traces import load_router_trace as load_router_trace
    from alflb.traces import open_scores as open_scores
    from alflb.traces import read_trace as read_trace
    from alflb.traces import write_trace as write_trace
    from alflb.training.diagnosis import diagnose as diagnose
    from alflb.trajectory import Trajectory as Trajectory
    from alflb.verdict import Verdict as Verdict
    from alflb.verify import verify_balance as verify_balance

__version__ = "0.1.0"

_HOME = {
    "Advice": "advice",
    "AssignmentProblem": "problem",
    "AssignmentSolution": "exact",
    "BatchedProblem": "exact",
    "GumbelTopOne": "population",
    "IndependentScores": "population",
    "LoadTrace": "traces",
    "RouterTrace": "traces",
    "SampledScores": "population",
    "SolverError": "exact",
    "Static": "streams",
    "StreamingSolution": "exact",
    "TraceError": "traces",
    "Regret": "online",
    "Trajectory": "trajectory",
    "advise": "advice",
    "LogAdvice": "advice_log",
    "advise_from_log": "advice_log",
    "backend_names": "kernels",
    "center": "duality",
    "diagnose": "training.diagnosis",
    "dual_value": "duality",
    "find_cycle": "metrics",
    "gap_certificate": "duality",
    "load_router_trace": "traces",
    "make_observers": "observers",
    "make_rule": "rules",
    "make_schedule": "schedules",
    "make_stream": "streams",
    "plot_regret": "online",
    "regret": "online",
    "max_vio": "metrics",
    "max_vio_global": "metrics",
    "observer_names": "observers",
    "open_scores": "traces",
    "read_trace": "traces",
    "route": "kernels.routing",
    "rule_names": "rules",
    "schedule_names": "schedules",
    "settling_time": "metrics",
    "simulate": "simulation",
    "solve_exact": "exact",
    "solve_many": "exact",
    "solve_streaming": "exact",
    "step_certificate": "duality",
    "stream_names": "streams",
    "summary": "metrics",
    "Verdict": "verdict",
    "verify_balance": "verify",
    "write_trace": "traces",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package such as `alflb.plotting`, imported on first use."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"alflb.{_HOME[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"alflb.{name}") is not None:
        value = importlib.import_module(f"alflb.{name}")
    else:
        raise AttributeError(f"module 'alflb' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
