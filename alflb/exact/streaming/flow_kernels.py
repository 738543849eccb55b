"""Compiled loops on the graph of experts: the cheapest flow that takes every surplus to a deficit.

Arc (k, j) is made of segments, one for each bin of swaps from k to j, used from the cheapest on: bin b takes up to
``capacity_EEB[k, j, b]`` units at ``price_EEB[k, j, b]`` each, prices not falling in b.
"""

from __future__ import annotations

import numpy as np

from alflb.kernels._jit import jit


@jit
def balance(capacity_EEB, price_EEB, potential_E, surplus_E, flow_EEB):  # type: ignore[no-untyped-def]
    """Fill `flow_EEB` until no surplus is left, along shortest paths; whether that was possible.

    On entry the flow must be optimal for `potential_E`: a segment is full if its price is below the difference of
    potentials, empty if above. `surplus_E` is what that flow leaves. All three arrays are updated in place.
    """
    num_experts = surplus_E.size
    next_EE = np.empty((num_experts, num_experts), np.int64)
    last_EE = np.empty((num_experts, num_experts), np.int64)
    for k in range(num_experts):
        for j in range(num_experts):
            _find_segments(capacity_EEB, flow_EEB, k, j, next_EE, last_EE)
    distance_E = np.empty(num_experts)
    parent_E = np.empty(num_experts, np.int64)
    is_done_E = np.empty(num_experts, np.bool_)
    while surplus_E.max() > 0:
        end = _shortest_path(
            capacity_EEB, price_EEB, potential_E, surplus_E, next_EE, last_EE, distance_E, parent_E, is_done_E
        )
        if end < 0:
            return False
        amount = -surplus_E[end]
        j = end
        while parent_E[j] >= 0:
            k = parent_E[j]
            amount = min(amount, _room(capacity_EEB, price_EEB, flow_EEB, k, j, next_EE, last_EE))
            j = k
        amount = min(amount, surplus_E[j])
        surplus_E[j] -= amount
        surplus_E[end] += amount
        j = end
        while parent_E[j] >= 0:
            k = parent_E[j]
            if _goes_back(price_EEB, k, j, next_EE, last_EE, capacity_EEB.shape[2]):
                flow_EEB[j, k, last_EE[j, k]] -= amount
                _find_segments(capacity_EEB, flow_EEB, j, k, next_EE, last_EE)
            else:
                flow_EEB[k, j, next_EE[k, j]] += amount
                _find_segments(capacity_EEB, flow_EEB, k, j, next_EE, last_EE)
            j = k
    return True


@jit
def _find_segments(capacity_EEB, flow_EEB, k, j, next_EE, last_EE):  # type: ignore[no-untyped-def]
    """The first segment with room (the number of bins if none has), and the last with flow (-1 if none has)."""
    num_bins = capacity_EEB.shape[2]
    first = 0
    while first < num_bins and flow_EEB[k, j, first] == capacity_EEB[k, j, first]:
        first += 1
    last = num_bins - 1
    while last >= 0 and flow_EEB[k, j, last] == 0:
        last -= 1
    next_EE[k, j] = first
    last_EE[k, j] = last


@jit
def _cost(price_EEB, k, j, next_EE, last_EE):  # type: ignore[no-untyped-def]
    """The least price of one more unit from k to j: by the next swap, or by undoing one from j to k."""
    cost = np.inf
    if next_EE[k, j] < price_EEB.shape[2]:
        cost = price_EEB[k, j, next_EE[k, j]]
    if last_EE[j, k] >= 0:
        cost = min(cost, -price_EEB[j, k, last_EE[j, k]])
    return cost


@jit
def _goes_back(price_EEB, k, j, next_EE, last_EE, num_bins):  # type: ignore[no-untyped-def]
    if last_EE[j, k] < 0:
        return False
    return next_EE[k, j] == num_bins or -price_EEB[j, k, last_EE[j, k]] <= price_EEB[k, j, next_EE[k, j]]


@jit
def _room(capacity_EEB, price_EEB, flow_EEB, k, j, next_EE, last_EE):  # type: ignore[no-untyped-def]
    if _goes_back(price_EEB, k, j, next_EE, last_EE, capacity_EEB.shape[2]):
        return flow_EEB[j, k, last_EE[j, k]]
    return capacity_EEB[k, j, next_EE[k, j]] - flow_EEB[k, j, next_EE[k, j]]


@jit
def _shortest_path(  # type: ignore[no-untyped-def]
    capacity_EEB, price_EEB, potential_E, surplus_E, next_EE, last_EE, distance_E, parent_E, is_done_E
):
    """Dijkstra from all surpluses to the nearest deficit, which is returned (-1 if none can be reached).

    Distances are of reduced prices, at least 0 up to rounding; the potentials are raised so that they stay so.
    """
    num_experts = surplus_E.size
    for k in range(num_experts):
        distance_E[k] = 0.0 if surplus_E[k] > 0 else np.inf
        parent_E[k] = -1
        is_done_E[k] = False
    while True:
        nearest = -1
        for k in range(num_experts):
            if not is_done_E[k] and distance_E[k] < np.inf and (nearest < 0 or distance_E[k] < distance_E[nearest]):
                nearest = k
        if nearest < 0:
            return -1
        if surplus_E[nearest] < 0:
            break
        is_done_E[nearest] = True
        for j in range(num_experts):
            if is_done_E[j] or j == nearest:
                continue
            cost = _cost(price_EEB, nearest, j, next_EE, last_EE)
            through = distance_E[nearest] + max(0.0, cost - (potential_E[j] - potential_E[nearest]))
            if through < distance_E[j]:
                distance_E[j] = through
                parent_E[j] = nearest
    for k in range(num_experts):
        potential_E[k] += min(distance_E[k], distance_E[nearest])
    return nearest
