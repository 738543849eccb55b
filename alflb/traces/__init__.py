"""Router traces: the file format, the one that ships with the package, and conversion of foreign files."""

from __future__ import annotations

from alflb.traces.arrays import TraceError, open_arrays, read_arrays
from alflb.traces.convert import convert_experts, convert_loads, convert_scores
from alflb.traces.format import LoadTrace, RouterTrace, open_scores, read_trace, write_trace
from alflb.traces.shipped import load_router_trace, shipped_trace_names

__all__ = [
    "LoadTrace",
    "RouterTrace",
    "TraceError",
    "convert_experts",
    "convert_loads",
    "convert_scores",
    "load_router_trace",
    "open_arrays",
    "open_scores",
    "read_arrays",
    "read_trace",
    "shipped_trace_names",
    "write_trace",
]
