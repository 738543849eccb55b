"""The loop: scores -> allocate(bias) -> load -> observers -> rule -> next bias. There is no other."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.io import atomic_write
from alflb.kernels import get_kernels
from alflb.kernels.counting import LoadCounter
from alflb.observers import Observer, Step
from alflb.problem import FloatArray, check_bias, check_count, check_scores, check_top_k, target_load_E
from alflb.rules import HindsightRule, Rule, ScoreRule, sees_scores
from alflb.streams import DrawnStream, Stream
from alflb.traces import read_arrays


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a run leaves behind: biases, loads and per-step numbers, never scores or assignments.

    ``bias_NE[n]`` produced ``load_NE[n]``; the last bias has produced nothing yet, hence one row more.
    """

    bias_NE: NDArray[np.float64]
    """Biases, shape (N + 1, E), score units."""
    load_NE: NDArray[np.int64]
    """Tokens per expert, shape (N, E)."""
    target_E: NDArray[np.float64]
    """Target loads, tokens."""
    series: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """One array of shape (N,) for each observer."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """num_tokens, top_k, seed, stream, rule, backend, and static (whether every batch was the same one)."""

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.load_NE)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one ``.npz``, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes: the same bytes for the same run."""
        arrays: dict[str, NDArray[Any]] = {
            "bias": self.bias_NE,
            "load": self.load_NE,
            "target": self.target_E,
            "meta": np.array(json.dumps(dict(self.meta), sort_keys=True)),
            **{f"series/{name}": values for name, values in self.series.items()},
        }
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        return content.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote; ValueError for any other file."""
        arrays = read_arrays(path)
        missing = {"bias", "load", "target", "meta"} - set(arrays)
        if missing:
            raise ValueError(f"{path} is not a saved trajectory: it lacks {', '.join(sorted(missing))}")
        series = {name.removeprefix("series/"): values for name, values in arrays.items() if name.startswith("series/")}
        return cls(arrays["bias"], arrays["load"], arrays["target"], series, json.loads(str(arrays["meta"])))


def simulate(
    stream: Stream,
    rule: Rule,
    *,
    top_k: int,
    num_steps: int,
    seed: int = 0,
    backend: str = "numba",
    observers: Sequence[Observer] = (),
    bias_init: ArrayLike | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Run ALF-LB: route batch t with bias p_t, then let the rule move the bias by the loads.

    Parameters
    ----------
    stream : Stream
        Source of (T, E) score batches; T must not change during a run.
    rule : Rule
        Dual update.
    top_k, num_steps : int
        K, and N >= 1.
    seed : int
        Chooses the tokens of a random stream; same seed, same bits, on every backend.
    backend : {"numba", "reference", "torch", "torch:cpu", "torch:cuda"}
        Kernels to use (`alflb.kernels.get_kernels`); all give the same biases and loads. "torch" draws the scores of
        a `DrawnStream` on its device and fetches the loads only.
    observers : sequence of Observer
        Numbers to record each step that need the scores.
    bias_init : array_like, shape (E,), optional
        p_1; zeros by default.
    on_step : callable, optional
        Called with t after each step, for progress display.

    Returns
    -------
    Trajectory

    Raises
    ------
    ValueError
        For bad arguments, NaN or +inf in a batch, or a stream that ends early or changes shape.

    Notes
    -----
    Without observers nobody sees the scores, so those of a `DrawnStream` are drawn where they are routed and
    never stored, and of scores that stay the same only tokens that may have moved are routed again
    (`alflb.kernels.counting`). Biases and loads are the same, bit for bit.

    References
    ----------
    Wang et al., arXiv 2408.15664, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from alflb.rules import make_rule
    >>> from alflb.streams import Static
    >>> run = simulate(Static([[0.75, 0.25], [0.75, 0.5]]), make_rule("sign", 0.5), top_k=1, num_steps=3)
    >>> run.bias_NE.tolist()
    [[0.0, 0.0], [-0.5, 0.5], [0.0, 0.0], [-0.5, 0.5]]
    >>> run.load_NE.tolist()
    [[2, 0], [0, 2], [2, 0]]
    """
    num_steps = check_count(num_steps, "num_steps")
    num_tokens, num_experts = stream.num_tokens, stream.num_experts
    top_k = check_top_k(top_k, num_experts)
    target_E = target_load_E(num_tokens, num_experts, top_k)
    kernels = get_kernels(backend)

    bias_NE = np.zeros((num_steps + 1, num_experts))
    load_NE = np.zeros((num_steps, num_experts), dtype=np.int64)
    series = {observer.name: np.zeros(num_steps) for observer in observers}
    if bias_init is not None:
        bias_NE[0] = check_bias(bias_init, num_experts, name="bias_init")

    state = rule.init(num_experts)
    counter = LoadCounter(kernels, top_k)
    previous: Step | None = None
    static = True
    score_rule = rule if isinstance(rule, ScoreRule) else None
    hindsight_rule = rule if isinstance(rule, HindsightRule) else None
    as_arrays = bool(observers) or sees_scores(rule)
    for n, batch in enumerate(_batches(stream, seed, num_steps, as_arrays=as_arrays)):
        if score_rule is not None:
            bias_NE[n] = score_rule.route_with(batch, bias_NE[n], target_E, top_k)
        step = Step(n + 1, batch, top_k, target_E, bias_NE[n], bias_NE[n + 1], kernels)
        same_scores = previous is not None and previous.scores_TE is batch
        static &= same_scores or n == 0
        if observers:
            if same_scores and score_rule is None and previous is not None and "next_allocation" in vars(previous):
                step.allocation = previous.next_allocation
            load_NE[n] = step.allocation.load_E
        else:
            load_NE[n] = counter.loads(batch, bias_NE[n])
        if hindsight_rule is not None:
            bias_NE[n + 1] = hindsight_rule.learn_from(batch, bias_NE[n], target_E, top_k)
        else:
            bias_NE[n + 1], state = rule.update(bias_NE[n], load_NE[n], target_E, n + 1, state)
        for observer in observers:
            series[observer.name][n] = observer(step)
        previous = step
        if on_step is not None:
            on_step(n + 1)
    meta = {
        "num_tokens": num_tokens,
        "top_k": top_k,
        "seed": seed,
        "stream": repr(stream),
        "rule": repr(rule),
        "backend": backend,
        "static": static,
    }
    return Trajectory(bias_NE, load_NE, target_E, series, meta)


def _batches(stream: Stream, seed: int, num_steps: int, *, as_arrays: bool) -> Iterator[Any]:
    """The first num_steps batches: arrays, or draws (`alflb.kernels.draws`) where nobody needs to see the scores."""
    if isinstance(stream, DrawnStream) and not as_arrays:
        return itertools.islice(stream.draws(seed), num_steps)
    return _checked_batches(stream, seed, num_steps)


def _checked_batches(stream: Stream, seed: int, num_steps: int) -> Iterator[FloatArray]:
    """The first num_steps batches, each checked unless it is the very array checked just before."""
    shape = (stream.num_tokens, stream.num_experts)
    raw: FloatArray | None = None
    count = 0
    for batch in itertools.islice(stream.batches(check_count(seed, "seed", minimum=0)), num_steps):
        count += 1
        if batch is not raw:
            raw, checked = batch, check_scores(batch, name=f"scores of batch {count}")
            if checked.shape != shape:
                raise ValueError(f"batch {count} of {stream!r} has shape {checked.shape}; every batch must be {shape}")
        yield checked
    if count < num_steps:
        raise ValueError(f"{stream!r} ended after {count} batches; ask for num_steps <= {count}")
