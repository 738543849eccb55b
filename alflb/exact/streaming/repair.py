r"""From one routing to feasible assignments, and to the next bias.

**By swaps.** At the bias p every token holds its K best experts. Let each give up its last one in, k, for its first one
out, j, wholly or in part: a token with margin m loses m of score + bias. If the swaps f make all loads equal to their
targets, the assignment x' they lead to is feasible, and since :math:`\langle p, \cdot\rangle` of equal loads is equal,

.. math:: D(p) - \langle\gamma, x'\rangle = \sum_i \text{(what token i loses)} \ge D(p) - LP^*.

The cheapest such swaps are a flow of convex cost on the graph of experts, and the dual of that flow is a minimum of

.. math:: M_p(p + \delta) = D(p) + \langle A(p) - L, \delta\rangle
          + \sum_{kj} \sum_{i: k \to j} \max(0, \delta_j - \delta_k - m_i) \;\le\; D(p + \delta),

which is D wherever no token moves further than to its first one out: a cutting-plane model with two planes for *each
token*, at the price of E^2 histograms of margins. So one structure gives a step (`model_step`; where margins have a
density it is Newton's, whose Hessian is the Laplacian of claim C7) and a certified lower bound (`balance_by_swaps`).

**By reassignment.** All tokens but the closest few keep their experts; those few are assigned anew, exactly, to what is
left of the targets (`reassign_closest`). This is what closes the gap of small or lumpy problems, where single swaps in
bins are too coarse, and its optimal bias is the other candidate for the next pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.results import SolverError
from alflb.exact.screening import solve
from alflb.exact.streaming.flow_kernels import balance
from alflb.exact.streaming.passes import NUM_BINS, Routing
from alflb.problem import AssignmentProblem

FloatVector = NDArray[np.float64]

_MOST_STEPS = 50
_MOST_HALVINGS = 20
_BALANCED = 1e-6
"""Part of the misplaced tokens that the minimum of the model may leave."""
_FAR = 16.0
"""Spread of a shift, in terms of the margins that should be enough, beyond which the model is not trusted."""
_RIDGE = 1e-2
"""Part of the first curvature that stays in the Hessian where the histograms have holes."""
_ROUNDOFF = 2.0**-53


class Repair(NamedTuple):
    """A feasible assignment next to a routing, and the bias that goes with it."""

    loss: float
    """At most this much of score + bias is lost against the experts chosen, rounding included."""
    bias_E: FloatVector


def bin_edges(top_exponent: int) -> FloatVector:
    """Edges of the bins of margins, as `row_kernels.route_rows` has them; one more than bins."""
    return np.concatenate([[0.0], np.ldexp(1.0, np.arange(top_exponent + 1 - NUM_BINS, top_exponent + 1))])


class SwapModel:
    """M_p, with the margins spread evenly over each bin."""

    def __init__(self, surplus_E: FloatVector, count_EEB: NDArray[np.int64], edges: FloatVector) -> None:
        self.surplus_E = surplus_E
        self.edges = edges
        shape = (*count_EEB.shape[:2], len(edges))
        width_B = np.diff(edges)
        self.density = np.zeros(shape)
        self.density[..., :-1] = count_EEB / width_B
        self.moved = np.zeros(shape)
        np.cumsum(count_EEB, axis=2, out=self.moved[..., 1:])
        self.value = np.zeros(shape)
        np.cumsum((self.moved[..., :-1] + 0.5 * count_EEB) * width_B, axis=2, out=self.value[..., 1:])

    def __call__(self, shift_E: FloatVector) -> tuple[float, FloatVector, NDArray[np.float64]]:
        """M_p(p + shift) - D(p), its gradient, and its curvatures by pair of experts."""
        rise = shift_E[None, :] - shift_E[:, None]
        column = np.searchsorted(self.edges, rise, side="right") - 1
        inside = column >= 0
        column = np.maximum(column, 0)
        density, moved, value = (
            np.where(inside, np.take_along_axis(table, column[..., None], axis=2)[..., 0], 0.0)
            for table in (self.density, self.moved, self.value)
        )
        past = rise - self.edges[column]
        flow = moved + density * past
        total = self.surplus_E @ shift_E + np.where(inside, value + (moved + 0.5 * density * past) * past, 0.0).sum()
        flow = np.where(inside, flow, 0.0)
        return float(total), self.surplus_E + flow.sum(axis=0) - flow.sum(axis=1), density + density.T

    def chord(self) -> tuple[float, NDArray[np.float64]]:
        """A margin below which there are enough swaps for all misplaced tokens, and the curvatures up to there."""
        needed = np.abs(self.surplus_E).sum()
        moved_B = self.moved.sum(axis=(0, 1))
        column = max(1, min(int(np.searchsorted(moved_B, needed)), len(self.edges) - 1))
        slope = self.moved[..., column] / self.edges[column]
        return float(self.edges[column]), 0.5 * (slope + slope.T)


def model_step(surplus_E: FloatVector, count_EEB: NDArray[np.int64], edges: FloatVector) -> FloatVector:
    """The centered shift of the bias that minimizes the swap model, by Newton's method with halved steps."""
    shift_E = np.zeros(len(surplus_E))
    if not count_EEB.any():
        return shift_E
    model = SwapModel(surplus_E, count_EEB, edges)
    margin, first = model.chord()
    curvature = first
    value, gradient_E, _ = model(shift_E)
    enough = _BALANCED * np.abs(surplus_E).sum()
    for _ in range(_MOST_STEPS):
        if np.abs(gradient_E).sum() <= enough:
            break
        direction_E = _newton_direction(curvature + _RIDGE * first, gradient_E)
        direction_E *= min(1.0, _FAR * margin / max(np.ptp(direction_E), 1e-300))
        slope = float(gradient_E @ direction_E)
        length = 1.0
        for _ in range(_MOST_HALVINGS):
            next_value, next_gradient_E, next_curvature = model(shift_E + length * direction_E)
            if next_value <= value + 0.1 * length * slope:
                break
            length *= 0.5
        else:
            break
        shift_E = shift_E + length * direction_E
        value, gradient_E, curvature = next_value, next_gradient_E, next_curvature
        if np.ptp(shift_E) > _FAR * margin:
            break  # the model may have no minimum, when the swaps counted cannot balance the loads
    return shift_E - shift_E.mean()


def _newton_direction(curvature: NDArray[np.float64], gradient_E: FloatVector) -> FloatVector:
    """-H^+ g with H the Laplacian of the pairs' curvatures; the gauge is lifted by a constant matrix."""
    curvature = curvature.copy()
    np.fill_diagonal(curvature, 0.0)
    degree_E = curvature.sum(axis=1)
    scale = max(float(degree_E.mean()), 1e-300)
    hessian = np.diag(degree_E + 1e-9 * scale) - curvature + scale / len(degree_E)
    return np.asarray(np.linalg.solve(hessian / scale, -gradient_E / scale), dtype=np.float64)


def balance_by_swaps(
    routing: Routing, target_units_E: NDArray[np.int64], unit: int, bias_E: FloatVector, edges: FloatVector, size: float
) -> Repair:
    """The cheapest swaps that meet the targets exactly, in units; loss inf if the swaps counted cannot.

    Parameters
    ----------
    routing : Routing
    target_units_E : int64 array, shape (E,)
        Targets in units.
    unit : int
        Units in one pick.
    bias_E : array, shape (E,)
        The bias of the routing.
    edges : array
        `bin_edges`.
    size : float
        No |score + bias| is larger, bar -inf.
    """
    surplus_units_E = routing.load_E * unit - target_units_E
    count_EEB = routing.count_EEB
    shift_E = model_step(surplus_units_E / unit, count_EEB, edges)
    mean_EEB = routing.loss_EEB / np.maximum(count_EEB, 1)
    price_EEB = np.maximum.accumulate(np.clip(mean_EEB, 0.0, edges[1:]), axis=2)
    capacity_EEB = count_EEB * unit
    rise = shift_E[None, :] - shift_E[:, None]
    flow_EEB = np.where(price_EEB < rise[..., None], capacity_EEB, 0)
    left_E = surplus_units_E + flow_EEB.sum(axis=(0, 2)) - flow_EEB.sum(axis=(1, 2))
    if not balance(capacity_EEB, price_EEB, shift_E.copy(), left_E, flow_EEB):
        return Repair(math.inf, bias_E + shift_E)
    used = flow_EEB > 0
    moved = flow_EEB[used] / unit
    loss = math.fsum((moved / count_EEB[used]) * routing.loss_EEB[used])
    additions = routing.fingerprint.num_batches + float(count_EEB.max()) + 8.0
    rounding = _ROUNDOFF * 1.01 * (additions * np.abs(routing.loss_EEB[used]).sum() + 8.0 * size * moved.sum())
    return Repair(loss + rounding, bias_E + shift_E)


def reassign_closest(routing: Routing, target_E: FloatVector, top_k: int, bias_E: FloatVector, size: float) -> Repair:
    """Assign the closest rows anew to what the other tokens leave of the targets; loss inf if that is impossible."""
    rows, experts_MK = routing.close_ME, routing.experts_MK
    left_E = target_E - (routing.load_E - np.bincount(experts_MK.ravel(), minlength=len(target_E)))
    if left_E.min() < 0 or left_E.max() > len(rows):
        return Repair(math.inf, bias_E)
    try:
        found = solve(AssignmentProblem(rows.astype(np.float64), top_k, left_E), bias_E)
    except SolverError:
        return Repair(math.inf, bias_E)
    assert found.plan is not None, "problems in memory have one"
    tokens = np.repeat(np.arange(len(rows)), np.diff(found.plan.indptr))
    assigned = (rows[tokens, found.plan.indices].astype(np.float64) + bias_E[found.plan.indices]) * found.plan.data
    chosen = np.take_along_axis(rows, experts_MK, axis=1).astype(np.float64) + bias_E[experts_MK]
    rounding = _ROUNDOFF * 1.01 * 8.0 * (np.abs(assigned).sum() + np.abs(chosen).sum())
    residual = found.residuals.load * len(target_E) * size
    return Repair(math.fsum(chosen.ravel()) - math.fsum(assigned) + rounding + residual, found.bias_E)
