"""The real router trace that ships with the package."""

from __future__ import annotations

from importlib import resources

from alflb.registry import unknown_name
from alflb.traces.format import LoadTrace, RouterTrace, read_trace

DEFAULT = "dsv3tiny-l2"

_FILES = {DEFAULT: "dsv3tiny_l2.npz"}


def shipped_trace_names() -> list[str]:
    """Names `load_router_trace` accepts."""
    return sorted(_FILES)


def load_router_trace(name: str = DEFAULT) -> RouterTrace:
    """Sigmoid scores of a small DeepSeek-V3-style router on real English and code.

    16,384 tokens in text order x 64 experts, top-6, float32, with the bias in force: layer 2 of a
    5.6M-parameter model after 600 training steps (sign rule, u = 0.003). ``metadata`` says how it was recorded.

    Examples
    --------
    >>> trace = load_router_trace()
    >>> trace.scores_TE.shape, trace.top_k
    ((16384, 64), 6)
    """
    if name not in _FILES:
        raise unknown_name("trace", name, _FILES)
    with resources.as_file(resources.files("alflb.traces") / "data" / _FILES[name]) as path:
        trace = read_trace(path)
    assert not isinstance(trace, LoadTrace)
    return trace
