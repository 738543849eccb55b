"""The guarantees of the theory for one instance, held against a run on it: bound, observed, and their ratio."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb import bounds, duality
from alflb.exact import recertify, solve_exact
from alflb.metrics import settled_from
from alflb.problem import AssignmentProblem, check_count, check_number, check_problem
from alflb.rules import make_rule
from alflb.simulation import simulate
from alflb.streams import Static
from alflb.trajectory import Trajectory, check_trajectory
from alflb.verdict import Verdict

ROUNDING = 1e-10
"""Score units per pick that float64 sums over a batch may be off, with room."""


def verify_balance(
    problem: AssignmentProblem,
    run: Trajectory | None = None,
    *,
    step_size: float | None = None,
    num_steps: int | None = None,
    num_points: int = 24,
) -> list[Verdict]:
    r"""Hold claims C1, C2, C4, C5 and C6 against a run on one fixed batch.

    Parameters
    ----------
    problem : AssignmentProblem
        The batch that every step of the run routes.
    run : Trajectory, optional
        A run on that batch by any rule. By default the sign rule runs from bias 0.
    step_size, num_steps : float, int, optional
        u (score units per step) and N of the default run, 1e-3 and 1000 if not given; refused together with `run`.
    num_points : int
        Steps, spaced evenly on a logarithmic scale, at which C1, C2 and C6 are computed in plain numpy.

    Returns
    -------
    list of Verdict
        One per claim, with what was observed (`measured`), the bound, and their ratio:

        * C1, C2: how far the Lagrangian identity and the sandwich are violated, score units per pick;
        * C4: largest :math:`|A_k - L|`, tokens, from the first step inside the band on, against the band: the sharp one
          for equal targets, m (E - 1) for unequal ones (C16);
        * C5: steps until all loads are inside the band for good, against the sharpened entry time;
        * C6: dual gap :math:`D(p) - LP^*`, score units, at the step where it is nearest to its bound.

        C4 and C5 speak of the sign rule with one step size (C5: from bias 0); of another run they are left out. A
        verdict whose bound says nothing here names the reason in `vacuous`: a band wider than L, an entry time beyond
        the run, a gap bound above the gap of no bias at all.

    Raises
    ------
    ValueError
        If the loads of the run are not those of this batch under its biases, a number is out of range, or both a run
        and numbers of the default run are given.
    SolverError
        If no balanced assignment exists.

    References
    ----------
    Han & Zhong, arXiv 2512.03915; docs/theory/balancing.md and docs/claims.md for C4 and C5.

    Examples
    --------
    >>> problem = AssignmentProblem(np.random.default_rng(0).random((256, 4)), top_k=1)
    >>> found = {verdict.claim: verdict for verdict in verify_balance(problem, step_size=1e-3, num_steps=400)}
    >>> sorted(found), all(verdict.holds for verdict in found.values())
    (['C1', 'C2', 'C4', 'C5', 'C6'], True)
    """
    check_problem(problem)
    if run is None:
        run = _default_run(problem, 1e-3 if step_size is None else step_size, 1000 if num_steps is None else num_steps)
    elif step_size is not None or num_steps is not None:
        raise ValueError("step_size and num_steps have no effect on a run that is given; leave them out")
    check_trajectory(run)
    point_P = np.unique(np.geomspace(1, run.num_steps, check_count(num_points, "num_points")).astype(int)) - 1
    _check_same_batch(problem, run, point_P)
    found = [*_step_verdicts(problem, run, point_P)]
    sign_step = _sign_step(problem, run)
    if sign_step is not None:
        found += _band_verdicts(problem, run, sign_step)
    return [*found, _gap_verdict(problem, run, point_P)]


def _default_run(problem: AssignmentProblem, step_size: float, num_steps: int) -> Trajectory:
    """The sign rule on the batch, from bias 0."""
    check_number(step_size, "step_size", positive=True)
    return simulate(Static(problem.scores_TE), make_rule("sign", step_size), top_k=problem.top_k, num_steps=num_steps)


def _check_same_batch(problem: AssignmentProblem, run: Trajectory, point_P: NDArray[np.int64]) -> None:
    """A run on other scores is noticed by its loads; ties may fall differently in another precision."""
    if run.load_NE.shape[1] != problem.num_experts:
        raise ValueError(
            f"run has {run.load_NE.shape[1]} experts, the problem {problem.num_experts}; pass its own batch"
        )
    for n in point_P:
        load_E = duality.allocate(problem, run.bias_NE[n]).load_E
        moved = int(np.abs(load_E - run.load_NE[n]).sum()) // 2
        if moved > 0.01 * problem.num_tokens * problem.top_k:
            raise ValueError(
                f"run: its loads at step {n + 1} are not those of this batch ({moved} picks differ); pass the one "
                "batch that every step of the run routed"
            )


def _step_verdicts(problem: AssignmentProblem, run: Trajectory, point_P: NDArray[np.int64]) -> list[Verdict]:
    """C1 and C2: what a step does to the Lagrangian, computed from the scores."""
    picks = problem.num_tokens * problem.top_k
    steps = [duality.step_certificate(problem, run.bias_NE[n], run.bias_NE[n + 1]) for n in point_P]
    outside = [max(step.lower - step.change, step.change - step.upper, 0.0) for step in steps]
    rises = sum(step.change > ROUNDING * picks for step in steps)
    return [
        Verdict.of(
            "C1",
            "change of D = benefit + ⟨A − L, δ⟩, error per pick (score units)",
            measured=max(abs(step.identity_residual) for step in steps) / picks,
            bound=ROUNDING,
            instances=len(steps),
        ),
        Verdict.of(
            "C2",
            f"⟨A − L, δ⟩ ≤ change of D ≤ ⟨A′ − L, δ⟩, excess per pick (score units); D rose at {rises} of "
            f"{len(steps)} steps",
            measured=max(outside) / picks,
            bound=ROUNDING,
            instances=len(steps),
        ),
    ]


def _sign_step(problem: AssignmentProblem, run: Trajectory) -> float | None:
    """U if every step of the run is u sign(L - A), up to rounding; None for any other run."""
    move_NE = np.diff(run.bias_NE, axis=0)
    step_size = float(np.abs(move_NE).max())
    expected_NE = step_size * np.sign(problem.target_E - run.load_NE)
    rounding = 8 * np.finfo(np.float64).eps * float(np.abs(run.bias_NE).max(initial=step_size))
    return step_size if step_size > 0 and np.all(np.abs(move_NE - expected_NE) <= rounding) else None


def _band_verdicts(problem: AssignmentProblem, run: Trajectory, step_size: float) -> list[Verdict]:
    """C4 and C5: how far loads may stray, and from when on."""
    off_N = np.abs(run.load_NE - problem.target_E).max(axis=1)
    # biases are rounded to the scores' dtype before they are added, so crossing values are known to that precision
    largest = float(np.abs(problem.scores_TE[np.isfinite(problem.scores_TE)]).max()) + float(np.abs(run.bias_NE).max())
    blur = 4 * float(np.finfo(problem.scores_TE.dtype).eps) * largest
    most = bounds.crossing_multiplicity(problem.scores_TE, 2 * step_size + blur)
    band_of = bounds.sharp_band if np.ptp(problem.target_E) == 0 else bounds.absorbing_band
    band = band_of(most, problem.num_experts)
    inside = np.flatnonzero(off_N <= float(band))
    wide = f"the band, {float(band):.4g} tokens, is wider than L = {problem.target_load:.4g}"
    vacuous = wide if band >= problem.target_load else ""
    found = []
    if inside.size:
        found.append(
            Verdict.of(
                "C4",
                f"|A − L| from step {inside[0] + 1} on (tokens), m(2u) = {most}",
                measured=float(off_N[inside[0] :].max()),
                bound=float(band),
                instances=run.num_steps - int(inside[0]),
                vacuous=vacuous,
            )
        )
    if np.all(run.bias_NE[0] == run.bias_NE[0][0]) and np.isfinite(problem.score_range):
        allowed = bounds.sharp_entry_time(problem.num_experts, duality.optimal_spread(problem), step_size)
        settled = settled_from(off_N, float(band))
        late = f"the bound, {allowed:,} steps, is longer than the run" if allowed >= run.num_steps else ""
        found.append(
            Verdict.of(
                "C5",
                "steps until |A − L| is inside that band for good",
                measured=run.num_steps if settled is None else settled - 1,
                bound=allowed,
                vacuous=late or vacuous,
            )
        )
    return found


def _gap_verdict(problem: AssignmentProblem, run: Trajectory, point_P: NDArray[np.int64]) -> Verdict:
    """C6: how far from optimal a bias can be whose loads are that unbalanced."""
    optimum = recertify(problem, solve_exact(problem)).value
    certificates = [duality.gap_certificate(problem, run.bias_NE[n]) for n in point_P]
    reach = "2ρ" if duality.optimal_spread(problem) > problem.score_range else "ρ"
    verdicts = [
        Verdict.of(
            "C6",
            f"D(p) − LP* at step {n + 1} (score units), bound ½ ‖A − L‖₁ (spread(p) + {reach})",
            measured=max(one.dual_value - optimum, 0.0),
            bound=one.gap_bound + ROUNDING * problem.num_tokens * problem.top_k,
            instances=len(point_P),
        )
        for n, one in zip(point_P, certificates)
    ]
    worst = max(verdicts, key=lambda verdict: verdict.ratio)
    unbiased = duality.dual_value(problem, np.zeros(problem.num_experts)) - optimum
    if worst.bound > max(unbiased, worst.measured):
        reason = f"the bound is above the gap of no bias at all, {unbiased:.4g}"
        worst = Verdict(**{**vars(worst), "vacuous": reason})
    return worst
