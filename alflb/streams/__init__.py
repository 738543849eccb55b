"""Score streams: where batches of scores come from. One generator per file, found by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from numpy.typing import ArrayLike

from alflb.registry import import_siblings
from alflb.streams.base import STREAMS, DrawnStream, RegisteredStream, Stream, SyntheticStream, seeded
from alflb.streams.static import Static

import_siblings(__name__, __path__)

__all__ = [
    "STREAMS",
    "DrawnStream",
    "RegisteredStream",
    "Static",
    "Stream",
    "SyntheticStream",
    "as_stream",
    "make_stream",
    "seeded",
    "stream_names",
]


def stream_names() -> list[str]:
    """Names of all registered streams."""
    return STREAMS.names()


def make_stream(name: str, **parameters: Any) -> RegisteredStream:
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
    stream: RegisteredStream = cls(**parameters)
    return stream


def as_stream(source: Stream | str | ArrayLike) -> Stream:
    """The stream of this name, the stream that repeats this batch of scores, or the stream itself.

    Raises
    ------
    ValueError
        For anything else, and for an array of more experts than tokens, which is more likely one of (experts, tokens):
        wrap it in `Static` if it is meant.

    Examples
    --------
    >>> as_stream([[0.9, 0.1], [0.8, 0.3]]).num_tokens
    2
    """
    if isinstance(source, str):
        return make_stream(source)
    if callable(getattr(source, "batches", None)):
        return source  # type: ignore[return-value]  # that is a stream
    if not hasattr(source, "__array__") and not isinstance(source, (list, tuple)):
        raise ValueError(
            f"stream is {source!r:.80}; pass a stream, a name (alflb.stream_names()), scores of shape "
            "(tokens, experts), or TraceReplay(trace) for a trace"
        )
    stream = Static(source)  # type: ignore[arg-type]  # it checks what it is given
    if stream.num_experts > stream.num_tokens:
        raise ValueError(
            f"scores have shape {(stream.num_tokens, stream.num_experts)}, more experts than tokens; if they are "
            "(experts, tokens), pass scores.T, else pass Static(scores)"
        )
    return stream
