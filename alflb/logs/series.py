"""From named series of numbers to records: which series is the load, or the bias, of which expert in which layer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.logs.hints import Hints
from alflb.logs.record import Record

Points = dict[str, list[tuple[int, Any]]]
"""Steps and values of series by name; a value is a number, or a list with one per expert."""

_EXPERT = re.compile(r"(?:^|[^a-z])(?:experts?|exp)[^a-z0-9]*(\d+)|(?:^|[^a-z0-9])e_?(\d+)(?![a-z0-9])", re.IGNORECASE)
_LAYER = re.compile(r"(?:^|[^a-z])(?:layers?|blocks?|h)[^a-z0-9]*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_LOAD = re.compile(r"load|token|count|usage|util|frac|share|routed|assign|freq|tpe", re.IGNORECASE)
_NO_LOAD = re.compile(r"loss|grad|norm|vio|entropy|weight|drop|capacity", re.IGNORECASE)
_BIAS = re.compile(r"bias", re.IGNORECASE)


class Place(NamedTuple):
    """Where a series belongs, as its name says."""

    metric: str
    """The name without the numbers of layer and expert."""
    layer: tuple[int, ...]
    expert: int


def records_of(points: Points, hints: Hints) -> dict[str, Record]:
    """The records that a set of series holds.

    Raises
    ------
    ValueError
        If no series, or more than one kind of them, can be the loads; or if values are missing, negative or no tokens.
    """
    series = _placed(_one_number_each(points))
    metrics = {place.metric for place in series}
    loads = _only(_candidates(metrics, hints.loads, _loads_among), "loads")
    if loads is None:
        raise ValueError(
            f"none of its {len(points)} series holds a number per expert, with a name like 'layer_3/tokens/expert_12'; "
            "name those that do by loads (--loads), a pattern such as '*tokens*'"
        )
    bias = _only(_candidates(metrics - {loads}, hints.bias, _biases_among), "bias")
    load_of, bias_of = _by_layer(series, loads), _by_layer(series, bias)
    notes = tuple(f"{name} read from {metric!r}" for name, metric in (("loads", loads), ("biases", bias)) if metric)
    return {
        _label(layer): _record(_label(layer), load_of[layer], bias_of.get(layer), hints, notes) for layer in load_of
    }


def place_of(name: str) -> tuple[Place, bool] | None:
    """Where a series belongs, and whether its name says "expert"; None if there is no number for one.

    Examples
    --------
    >>> place_of("moe/layer_3/tokens/expert_12")
    (Place(metric='moe/layer_#/tokens/expert_#', layer=(3,), expert=12), True)
    >>> place_of("decoder.layers.3.tpe.12")
    (Place(metric='decoder.layers.#.tpe.#', layer=(3,), expert=12), False)
    >>> place_of("train/loss") is None
    True
    """
    layers = [match.span(1) for match in _LAYER.finditer(name)]
    said = [match.span(match.lastindex or 0) for match in _EXPERT.finditer(name)]
    free = [match.span() for match in _NUMBER.finditer(name) if match.span() not in layers]
    if not said and not free:
        return None
    expert = (said or free)[-1]
    layers = [span for span in layers if span != expert]
    metric = name
    for start, end in sorted([expert, *layers], reverse=True):
        metric = f"{metric[:start]}#{metric[end:]}"
    return Place(metric, tuple(int(name[slice(*span)]) for span in layers), int(name[slice(*expert)])), bool(said)


def _one_number_each(points: Points) -> Points:
    """Series of lists, one number per expert, as one series per expert; lists of lists have a row per layer."""
    flat: Points = {}
    for name, values in points.items():
        for step, value in values:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                flat.setdefault(name, []).append((step, value))
            elif isinstance(value, list):
                for path, number in _numbers_in(value):
                    flat.setdefault(f"{name}/{path}", []).append((step, number))
    return flat


def _numbers_in(value: list[Any]) -> Iterable[tuple[str, Any]]:
    for number, entry in enumerate(value):
        if isinstance(entry, list):
            yield from ((f"layer_{number}/{path}", one) for path, one in _numbers_in(entry))
        else:
            yield f"expert_{number}", entry


def _placed(points: Points) -> dict[Place, dict[int, Any]]:
    """Series by place; names that say "expert", if any do, or else those that end in a number."""
    found = {name: place_of(name) for name in points}
    says_expert = any(place is not None and place[1] for place in found.values())
    series: dict[Place, dict[int, Any]] = {}
    for name, place in found.items():
        if place is not None and place[1] == says_expert:
            if place[0] in series:
                raise ValueError(f"two of its series are of one layer and expert; one of them is {name!r}")
            series[place[0]] = _by_step(name, points[name])
    experts: dict[str, set[int]] = {}
    for one in series:
        experts.setdefault(one.metric, set()).add(one.expert)
    return {one: values for one, values in series.items() if len(experts[one.metric]) > 1}


def _by_step(name: str, values: list[tuple[int, Any]]) -> dict[int, Any]:
    found = dict(values)
    if len(found) < len(values):
        steps = [step for step, _ in values]
        twice = next(step for step in found if steps.count(step) > 1)
        raise ValueError(f"{name!r} has two values at step {twice}; keep those of one run only")
    return found


def _candidates(metrics: set[str], pattern: str | None, among: Any) -> list[str]:
    if pattern is None:
        return among(metrics)
    found = [metric for metric in metrics if fnmatch.fnmatchcase(metric, pattern)]
    if not found:
        listing = ", ".join(sorted(metrics)[:8]) or "none"
        raise ValueError(f"no series is called {pattern!r}; with a number per expert there are: {listing}")
    return found


def _loads_among(metrics: set[str]) -> list[str]:
    """What may be loads: what is named like it, or else whatever is neither a bias nor something else."""
    possible = [metric for metric in metrics if not _BIAS.search(metric) and not _NO_LOAD.search(metric)]
    named = [metric for metric in possible if _LOAD.search(metric)]
    return named or possible


def _biases_among(metrics: set[str]) -> list[str]:
    return [metric for metric in metrics if _BIAS.search(metric) and not _NO_LOAD.search(metric)]


def _only(candidates: list[str], what: str) -> str | None:
    if len(candidates) > 1:
        raise ValueError(
            f"several kinds of series may be its {what}: {', '.join(sorted(candidates)[:8])}; choose one by {what} "
            f"(--{what}), a pattern such as {sorted(candidates)[0].replace('#', '*')!r}"
        )
    return candidates[0] if candidates else None


def _by_layer(
    series: Mapping[Place, dict[int, Any]], metric: str | None
) -> dict[tuple[int, ...], dict[int, dict[int, Any]]]:
    """The series of one kind by layer and expert."""
    found: dict[tuple[int, ...], dict[int, dict[int, Any]]] = {}
    for place in sorted(series, key=lambda one: (one.layer, one.expert)):
        if place.metric == metric:
            found.setdefault(place.layer, {})[place.expert] = series[place]
    return found


def _label(layer: tuple[int, ...]) -> str:
    return "_".join(["layer", *(f"{number:02d}" for number in layer)])


def _record(
    label: str,
    load_of: Mapping[int, Mapping[int, Any]],
    bias_of: Mapping[int, Mapping[int, Any]] | None,
    hints: Hints,
    notes: tuple[str, ...],
) -> Record:
    """The record of one layer."""
    step_N, value_NE = _matrix(f"{label}: loads", load_of)
    seen_N = value_NE.any(axis=1)
    if not seen_N.any():
        raise ValueError(f"{label}: no step counts a token")
    step_N, load_NE = step_N[seen_N], _as_counts(value_NE[seen_N], hints, f"{label}: loads")
    if bias_of is None:
        return Record(load_NE, step_N, top_k=hints.top_k, notes=notes).checked(hints.top_k, hints.num_experts)
    bias_steps, logged = _matrix(f"{label}: biases", bias_of)
    if logged.shape[1] != load_NE.shape[1] or not np.isin(step_N, bias_steps).all():
        raise ValueError(
            f"{label}: biases are of {logged.shape[1]} experts and {len(bias_steps)} steps, loads of "
            f"{load_NE.shape[1]} and {len(step_N)}; log both at the same steps"
        )
    record = _aligned(load_NE, step_N, logged[np.searchsorted(bias_steps, step_N)], hints.top_k, notes)
    return record.checked(hints.top_k, hints.num_experts)


def _matrix(what: str, series: Mapping[int, Mapping[int, Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps (N,) and values (N, E) of a layer's series; ValueError if one lacks what others have."""
    first = min(series)
    if first > 1 or sorted(series) != list(range(first, first + len(series))):
        lacking = sorted(set(range(max(series))) - set(series))
        raise ValueError(f"{what} of expert {lacking[0]} are missing, and there are some of expert {max(series)}")
    steps = sorted({step for values in series.values() for step in values})
    for expert, values in series.items():
        if len(values) < len(steps):
            lacking_step = next(step for step in steps if step not in values)
            raise ValueError(f"{what} of expert {expert} are missing at step {lacking_step}, where others have some")
    value_NE = np.array([[series[expert][step] for expert in sorted(series)] for step in steps], dtype=np.float64)
    if not np.isfinite(value_NE).all():
        raise ValueError(f"{what} hold numbers that are not finite")
    return np.array(steps, dtype=np.int64), value_NE


def _as_counts(value_NE: NDArray[np.float64], hints: Hints, what: str) -> NDArray[np.int64]:
    """Tokens per expert: as they are, or from shares and the tokens of a batch."""
    if value_NE.min() < 0:
        raise ValueError(f"{what} hold {value_NE.min():g}; tokens per expert, or shares of them, are needed")
    if np.all(value_NE == np.rint(value_NE)) and value_NE.max() < 2**53:
        return value_NE.astype(np.int64)
    if hints.batch_tokens is None or hints.top_k is None:
        raise ValueError(
            f"{what} are shares or means, such as {value_NE[value_NE != np.rint(value_NE)][:1].tolist()}, and no whole "
            "tokens: pass batch_tokens and top_k (--batch-tokens, --top-k), which make tokens of them"
        )
    picks = hints.batch_tokens * hints.top_k
    exact_NE = picks * value_NE / value_NE.sum(axis=1, keepdims=True)
    load_NE = np.floor(exact_NE).astype(np.int64)
    order_NE = np.argsort(load_NE - exact_NE, axis=1, kind="stable")
    rank_NE = np.argsort(order_NE, axis=1, kind="stable")
    return load_NE + (rank_NE < picks - load_NE.sum(axis=1, keepdims=True))


def _aligned(
    load_NE: NDArray[np.int64],
    step_N: NDArray[np.int64],
    logged_NE: NDArray[np.float64],
    top_k: int | None,
    notes: tuple[str, ...],
) -> Record:
    """One bias more than loads: which end is missing is seen from what the biases follow.

    Logged after the update, a bias has followed the load beside it; logged before, it follows the load of the step
    before. The first or the last load, whose update is not in the log, is left out.
    """
    if len(step_N) < 2 or np.any(np.diff(step_N) != 1):
        reason = "steps are missing in between" if len(step_N) > 1 else "there is one step only"
        return Record(load_NE, step_N, top_k=top_k, notes=(*notes, f"biases are left out: {reason}"))
    moves_NE = np.diff(logged_NE, axis=0)
    if abs(_following(moves_NE, load_NE[1:])) >= abs(_following(moves_NE, load_NE[:-1])):
        notes = (*notes, "biases taken as those after the update of their step")
        return Record(load_NE[1:], step_N[1:], logged_NE, top_k, notes)
    notes = (*notes, "biases taken as those in force at their step")
    return Record(load_NE[:-1], step_N[:-1], logged_NE, top_k, notes)


def _following(moves_NE: NDArray[np.float64], load_NE: NDArray[np.int64]) -> float:
    """Correlation of the biases' moves with the shortfalls of the loads."""
    shortfall_NE = load_NE.mean(axis=1, keepdims=True) - load_NE
    moves_NE = moves_NE - moves_NE.mean(axis=1, keepdims=True)
    size = float(np.sqrt((moves_NE**2).sum() * (shortfall_NE**2).sum()))
    return float((moves_NE * shortfall_NE).sum()) / size if size > 0 else 0.0
