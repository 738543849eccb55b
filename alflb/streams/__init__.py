"""Score streams: where batches of scores come from. One generator a file, found by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from alflb.registry import import_siblings
from alflb.streams.base import STREAMS, DrawnStream, Stream
from alflb.streams.static import Static

import_siblings(__name__, __path__)

__all__ = ["DrawnStream", "Static", "Stream", "make_stream", "stream_names"]


def stream_names() -> list[str]:
    """Names of all registered streams."""
    return STREAMS.names()


def make_stream(name: str, **parameters: Any) -> Stream:
    """A stream by name with its own parameters; a parameter it does not have is refused by name.

    Examples
    --------
    >>> make_stream("gumbel", num_tokens=256, num_experts=8).num_experts
    8
    """
    cls: Any = STREAMS.get(name)
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"stream {name!r} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    stream: Stream = cls(**parameters)
    return stream
