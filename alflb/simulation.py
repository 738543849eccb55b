"""The loop: scores -> allocate(bias) -> load -> rule -> next bias -> observers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alflb.kernels import get_kernels
from alflb.kernels.counting import LoadCounter
from alflb.observers import Observer, Step
from alflb.problem import FloatArray, check_bias, check_count, check_scores, check_top_k, target_load_E
from alflb.rules import Observation, Rule, Sight, as_rule
from alflb.streams import DrawnStream, Stream, as_stream
from alflb.trajectory import Trajectory


def simulate(
    stream: Stream | str | ArrayLike,
    rule: Rule | str,
    *,
    top_k: int,
    num_steps: int,
    seed: int = 0,
    backend: str = "numba",
    observers: Sequence[Observer] = (),
    bias_init: ArrayLike | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Run ALF-LB: route batch t with bias p_t, then let the rule move the bias by what it is shown of the batch.

    Parameters
    ----------
    stream : Stream, str or array_like
        Source of (T, E) score batches, whose shape must not change during a run; the name of a stream
        (`alflb.stream_names`); or the scores of one batch, which then comes at every step.
    rule : Rule or str
        Dual update, or the name of one (`alflb.rule_names`) at its default step size.
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
        For bad arguments; NaN, +inf or a token without K experts in a batch; a stream that ends early or changes shape;
        a schedule that returns no step size; or a bias that overflows.

    Notes
    -----
    Without observers nothing reads the scores, so those of a `DrawnStream` are drawn where they are routed and
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
    rule, stream = as_rule(rule), as_stream(stream)
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
    as_arrays = bool(observers) or rule.sees is not Sight.LOADS
    for n, batch in enumerate(_batches(stream, top_k, seed, num_steps, as_arrays=as_arrays)):
        scores: dict[str, Any] = {"scores_TE": batch, "top_k": top_k} if as_arrays else {}
        drafted_E = bias_NE[n]
        routed_E, state = rule.before_routing(drafted_E, Observation(n + 1, target_E, **scores), state)
        bias_NE[n] = check_bias(routed_E, num_experts, name=f"the bias of step {n + 1} of {rule}")
        step = Step(n + 1, batch, top_k, target_E, bias_NE[n], bias_NE[n + 1], kernels)
        same_scores = previous is not None and previous.scores_TE is batch
        static &= same_scores or n == 0
        if observers:
            same_routing = same_scores and routed_E is drafted_E
            if same_routing and previous is not None and "next_allocation" in vars(previous):
                step.allocation = previous.next_allocation
            load_NE[n] = step.allocation.load_E
        else:
            load_NE[n] = counter.loads(batch, bias_NE[n])
        seen = Observation(n + 1, target_E, load_E=load_NE[n], **scores)
        next_E, state = rule.after_routing(bias_NE[n], seen, state)
        bias_NE[n + 1] = check_bias(next_E, num_experts, name=f"the bias after step {n + 1} of {rule}")
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


def _batches(stream: Stream, top_k: int, seed: int, num_steps: int, *, as_arrays: bool) -> Iterator[Any]:
    """The first num_steps batches: arrays, or draws (`alflb.kernels.draws`) where nothing reads the scores."""
    if isinstance(stream, DrawnStream) and not as_arrays:
        return itertools.islice(stream.draws(seed), num_steps)
    return _checked_batches(stream, top_k, seed, num_steps)


def _checked_batches(stream: Stream, top_k: int, seed: int, num_steps: int) -> Iterator[FloatArray]:
    """The first num_steps batches, each checked unless it is the very array checked just before."""
    shape = (stream.num_tokens, stream.num_experts)
    raw: FloatArray | None = None
    count = 0
    for batch in itertools.islice(stream.batches(check_count(seed, "seed", minimum=0)), num_steps):
        count += 1
        if batch is not raw:
            raw, checked = batch, check_scores(batch, top_k=top_k, name=f"scores of batch {count}")
            if checked.shape != shape:
                raise ValueError(f"batch {count} of {stream!r} has shape {checked.shape}; every batch must be {shape}")
        yield checked
    if count < num_steps:
        raise ValueError(f"{stream!r} ended after {count} batches; ask for num_steps <= {count}")
