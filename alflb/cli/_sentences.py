"""What a command concludes: one sentence that a reader can act on, with the units and the floor beside the number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alflb.io import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alflb.advice import Advice
    from alflb.advice_log import LogAdvice
    from alflb.exact import AssignmentSolution
    from alflb.verdict import Verdict

UNITS = {
    "affinity_final": "score units",
    "arrival_steps": "steps",
    "bias_distance": "score units",
    "bias_spread": "score units",
    "curvature": "per score unit",
    "bias_spread_final": "score units",
    "first_step_size": "score units per step",
    "first_steps": "steps",
    "gap": "score units",
    "lower_bound": "score units",
    "num_steps": "steps",
    "num_tokens": "tokens",
    "regret": "score units per token",
    "residual_load": "tokens",
    "residual_slackness": "score units",
    "score_range": "score units",
    "settling_time_10": "steps",
    "softest_mode": "per score unit",
    "step_size": "score units per step",
    "stiffest_mode": "per score unit",
    "target_load": "tokens",
    "tokens_first_batch": "tokens",
    "unbalanced_topk_affinity": "score units",
    "upper_bound": "score units",
    "value": "score units",
    "walk_of_optimum": "score units per step",
}
"""Units of the numbers that commands print; what is missing here is a pure number or words."""


def of_run(facts: Row) -> str:
    """Whether and when a run was balanced, and how much of what is left is sampling."""
    tail, floor, cycle = facts["max_vio_tail"], facts["max_vio_sampling_floor"], facts.get("cycle")
    when = (
        f"Steady from step {facts['steady_from']:,} on" if facts["steady_from"] else "Not steady yet: take more steps"
    )
    if facts["static"]:
        where = (
            f"in a cycle of {cycle['period']} steps, and a decaying --schedule goes lower" if cycle else "at the end"
        )
        return f"{when}: MaxVio {tail:.3g} {where}. The batch is the same at every step, so none of it is sampling."
    share = f"of which {floor:.3g} is sampling" if tail > floor else f"no more than sampling alone leaves, {floor:.3g}"
    split = f"MaxVio {tail:.3g}, {share}"
    if tail > 1.5 * floor and facts["steady_from"] == 1:
        return (
            f"MaxVio has not fallen in {facts['num_steps']:,} steps: {split}. Take more steps or larger ones: "
            "`alflb advise` finds a step size, and `--rule self_tuning` needs none."
        )
    if tail <= 1.1 * floor:
        return f"{when}: {split}. No rule that sees loads only does better on such batches."
    if tail <= 1.5 * floor:
        return f"{when}: {split}. A smaller --step-size takes off most of the rest, and takes longer to arrive."
    return (
        f"{when}: {split}. The step size does not fit: save the run with --out, and `alflb advise --log` says whether "
        "it is too large or too small. `--rule self_tuning` needs none."
    )


def of_solution(solution: AssignmentSolution, max_vio_unbiased: float) -> str:
    """What the certificate means."""
    return (
        f"Certified: there is a balanced plan worth {solution.value:.10g} score units, and by weak duality none "
        "is worth more. "
        f"Without a bias the busiest expert takes {1 + max_vio_unbiased:.3g} times its share."
    )


def of_advice(advice: Advice, num_steps: int | None) -> str:
    """Which step size, and what to expect of it."""
    arrival = f"balanced after about {advice.arrival_steps:,} steps"
    if advice.first_step_size is not None:
        start = f"Begin with u = {advice.first_step_size:.2g} for {advice.first_steps:,} steps, then use"
    else:
        start = "Use"
        arrival += "" if num_steps is None else f", early enough in a run of {num_steps:,}"
    return (
        f"{start} the sign rule with u = {advice.step_size:.2g}: {arrival}; "
        f"MaxVio {advice.max_vio:.3g}, of which {advice.max_vio_floor:.3g} is sampling."
    )


def log_facts(advice: LogAdvice) -> Row:
    """What a log says, by name; estimates with their 95% intervals, [value, low, high] in JSON."""
    return {
        "curvature": advice.curvature,
        "overdispersion": advice.overdispersion,
        "walk_of_optimum": advice.walk,
        "gain": advice.gain,
        "best_gain": advice.best_gain,
        "factor_for_step_size": advice.step_factor,
        "factor_for_sign_step_size": advice.sign_step_factor,
        "max_vio": advice.max_vio,
        "max_vio_possible": advice.max_vio_possible,
        "lagging_experts": ", ".join(map(str, advice.lagging)) or "none",
    }


def of_log(advice: LogAdvice) -> str:
    """Whether the steps were too large or too small, and what a better size would have gained."""
    factor, for_sign = advice.step_factor, advice.sign_step_factor
    if factor.low <= 1.0 <= factor.high:
        size = "The step size fits, as far as this log can tell"
    elif factor.value == 0.0:
        size = (
            "The steps were too large: the optimum does not move, so let the step size decay; a constant one should be "
            f"at most {factor.high:.2g} times as large, or {for_sign.high:.2g} times with the sign rule"
        )
    else:
        size = (
            f"The steps were too {'small' if factor.value > 1.0 else 'large'}: multiply the step size by "
            f"{factor.value:.2g}, or by {for_sign.value:.2g} with the sign rule"
        )
    return f"{size}. MaxVio was {advice.max_vio:.3g}; the best gain would have left {advice.max_vio_possible:.3g}."


def of_trace(facts: Row) -> str:
    """How unbalanced the router is, and what to do next."""
    if "max_vio_bias_0" not in facts:  # group-limited
        return "Its experts are in groups: plain top-K says nothing about its loads."
    words = f"Without a bias the busiest expert takes {1 + facts['max_vio_bias_0']:.3g} times its share"
    if "max_vio_own_bias" in facts:
        words += f", with the bias in force {1 + facts['max_vio_own_bias']:.3g} times"
    ties = facts["boundary_ties"]
    tied = f" {ties:,} tokens tie at the top-K boundary: keep the scores in float32." if ties else ""
    return f"{words}.{tied} `alflb solve` gives the best bias, `alflb advise` a step size."


def of_loads(facts: Row) -> str:
    """How balanced a recorded run was, batch by batch and on the whole."""
    return (
        f"The busiest expert took {1 + facts['max_vio_batch_mean']:.3g} times its share of a batch on average, and "
        f"{1 + facts['max_vio_global']:.3g} times its share of all {facts['num_batches']:,} batches."
    )


def of_verification(verdicts: Sequence[Verdict]) -> str:
    """Whether all bounds hold, and which of them say something."""
    failed = [one.claim for one in verdicts if not one.holds]
    if failed:
        return f"{', '.join(failed)} FAILED on this instance: a counterexample, or a bug. Please report it."
    empty = [one.claim for one in verdicts if one.vacuous]
    if not empty:
        return "All bounds hold, and each of them says something about this instance."
    return (
        f"All bounds hold, but {', '.join(empty)} {'says' if len(empty) == 1 else 'say'} nothing here; "
        "a smaller --step-size narrows the band of C4, more --num-steps reach the entry time of C5."
    )


def of_regret(final: float, num_steps: int, exponent: float, uncertainty: float) -> str:
    """How much was lost, and how that grows."""
    doubt = f" (to within {uncertainty:.1g})" if uncertainty else ""
    lost = f"In {num_steps:,} steps the rule lost {final:.3g} score units per token{doubt} to the best fixed bias."
    if exponent != exponent:  # NaN: too short, or negative on the way
        return lost
    growth = f"It grew like n^{exponent:.2g} over the second half of the run"
    if exponent > 0.9:
        return f"{lost} {growth}: the bias is still off, or the step size too large to settle."
    return f"{lost} {growth}: per step, less and less is lost."
