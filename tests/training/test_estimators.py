"""Which estimate of the quantiles: one of all tokens from summed bins, or the mean over micro-batches or ranks.

``python -m tests.training.test_estimators`` prints the table of docs/training.md.
"""

import numpy as np

from alflb import duality, make_rule, make_stream, metrics, solve_exact
from alflb.problem import AssignmentProblem
from alflb.rules.quantiles import quantile_bias

TOP_K, NUM_EXPERTS, NUM_TOKENS, SEEDS = 8, 64, 8192, range(3)
STREAMS = ("logistic", "zipf", "linear_router")
RULE = make_rule("binned_qb")


def one_round(scores_TE, bias_E):
    target_E = np.full(NUM_EXPERTS, len(scores_TE) * TOP_K / NUM_EXPERTS)
    return duality.center(quantile_bias(scores_TE, bias_E, target_E, TOP_K))


def summed_bins(scores_TE, bias_E, num_parts):
    """One estimate from the bins of all parts."""
    counts_EB = sum(RULE.count(part, bias_E, TOP_K) for part in np.split(scores_TE, num_parts))
    return RULE.bias_of_counts(counts_EB, bias_E, np.full(NUM_EXPERTS, len(scores_TE) * TOP_K / NUM_EXPERTS))


def mean_of_parts(scores_TE, bias_E, num_parts):
    """The mean of one estimate per part."""
    return np.mean([one_round(part, bias_E) for part in np.split(scores_TE, num_parts)], axis=0)


def measure(stream, estimate, num_parts):
    """Gap to the optimum per token, MaxVio on the batch itself and on the next one; means over populations."""
    rows = []
    for seed in SEEDS:
        source = make_stream(stream, num_tokens=NUM_TOKENS, num_experts=NUM_EXPERTS, population_seed=seed)
        batches = source.batches(seed)
        problem, following = (AssignmentProblem(next(batches).astype(float), TOP_K) for _ in range(2))
        scores_TE = problem.scores_TE
        start_E = one_round(scores_TE, one_round(scores_TE, np.zeros(NUM_EXPERTS)))
        bias_E = estimate(scores_TE, start_E, num_parts)
        gap = (duality.dual_value(problem, bias_E) - solve_exact(problem).upper_bound) / NUM_TOKENS
        loads = [duality.allocate(each, bias_E).load_E for each in (problem, following)]
        rows.append([gap, *(float(metrics.max_vio(load_E)) for load_E in loads)])
    return np.mean(rows, axis=0)


def test_bins_do_not_depend_on_the_split_and_means_do():
    for stream in STREAMS:
        whole = measure(stream, summed_bins, 1)
        assert measure(stream, summed_bins, 256).tolist() == whole.tolist()
        mean = measure(stream, mean_of_parts, 256)
        assert mean[1] > 1.5 * whole[1], "on its own batch the mean of quantiles is further off balance"
        assert abs(mean[2] - whole[2]) < 0.25 * whole[2], "on the next batch both are within sampling noise"


if __name__ == "__main__":
    for stream in STREAMS:
        for estimate, num_parts in ((summed_bins, 256), (mean_of_parts, 8), (mean_of_parts, 64), (mean_of_parts, 256)):
            gap, own, following = measure(stream, estimate, num_parts)
            print(f"| {stream} | {estimate.__name__}, {num_parts} | {gap:.1e} | {own:.3f} | {following:.3f} |")  # noqa: T201
