"""How far does a fitted bias carry? Fit on one piece of real text, route a piece that lies some tokens later.

If the text were stationary, the distance would not matter, and shuffling the tokens would change nothing.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from alflb import duality, load_router_trace, make_rule, metrics, simulate
from alflb.io import Row
from alflb.plotting import BLUE, RED, new_figure, styled
from alflb.problem import AssignmentProblem
from alflb.schedules import LinearDecay
from alflb.streams import Static
from alflb.verdict import Finding
from experiments._statistics import mean_interval

CLAIM = "A bias fitted on a piece of real text fails on later text, the more the farther away; shuffled, it carries."
VERDICT = (
    "Supported: text is not stationary over tens of thousands of tokens, and a frozen bias is as good as its "
    "last batches are representative."
)

GRID = [
    {"order": order, "piece": 2048, "distance": distance, "num_steps": 300}
    for order in ("text", "shuffled")
    for distance in (0, 2048, 4096, 6144, 8192, 10240, 12288)
]
SEEDS = 10
SMOKE = [cell | {"piece": 512, "num_steps": 60} for cell in GRID if cell["distance"] in (0, 2048)]


def run(cell: Row, seed: int) -> list[Row]:
    """Fit on a random piece by the annealed sign loop; MaxVio there, and on the piece `distance` tokens further on."""
    trace = load_router_trace()
    rng = np.random.default_rng(seed)
    scores_TE = trace.scores_TE
    if cell["order"] == "shuffled":
        scores_TE = scores_TE[rng.permutation(len(scores_TE))]
    piece, gap = cell["piece"], cell["distance"]
    start = int(rng.integers(0, len(scores_TE) - 2 * piece - gap + 1))
    fit_TE, test_TE = scores_TE[start : start + piece], scores_TE[start + piece + gap :][:piece]
    rule = make_rule("sign", LinearDecay(0.02, cell["num_steps"]))
    bias_E = simulate(Static(fit_TE), rule, top_k=trace.top_k, num_steps=cell["num_steps"]).bias_NE[-1]
    measured = {"fit": (fit_TE, bias_E), "later": (test_TE, bias_E), "no_bias": (test_TE, np.zeros(len(bias_E)))}
    return [{f"max_vio_{name}": _max_vio(*pair, trace.top_k) for name, pair in measured.items()}]


def findings(rows: list[Row]) -> list[Finding]:
    """MaxVio on the fitted piece, on the next one and on the farthest one, in both orders."""
    far = max(row["distance"] for row in rows)
    later = {
        (order, distance): mean_interval(_column(rows, "max_vio_later", order, distance))
        for order in ("text", "shuffled")
        for distance in (0, far)
    }
    unbiased = mean_interval(row["max_vio_no_bias"] for row in rows if row["distance"] == 0)
    return [
        Finding("the fitted piece itself", "near 0", str(mean_interval(_column(rows, "max_vio_fit", "text", 0))), None),
        Finding("no bias at all, for comparison", "-", str(unbiased), None),
        Finding(
            "the piece right after it, text order against shuffled",
            "text worse",
            f"{later['text', 0]} against {later['shuffled', 0]}",
            later["text", 0].low > later["shuffled", 0].high,
        ),
        Finding(
            f"the piece {far} tokens on against the piece right after, text order",
            "farther is worse",
            f"{later['text', far]} against {later['text', 0]}",
            later["text", far].low > later["text", 0].mean,
        ),
        Finding(
            f"the same, shuffled: the piece {far} tokens on against the piece right after",
            "distance does not matter",
            f"{later['shuffled', far]} against {later['shuffled', 0]}",
            later["shuffled", far].low <= later["shuffled", 0].high
            and later["shuffled", 0].low <= later["shuffled", far].high,
        ),
    ]


def _column(rows: list[Row], name: str, order: str, distance: int) -> list[float]:
    return [row[name] for row in rows if row["order"] == order and row["distance"] == distance]


@styled
def figure(rows: list[Row]) -> Figure:
    """MaxVio of a fitted bias against the distance to the text it routes: mean and range over seeds."""
    drawing, (axis,) = new_figure(1, 1, height=3.2, width=5.0)
    for order, color in (("text", RED), ("shuffled", BLUE)):
        chosen = [row for row in rows if row["order"] == order]
        distances = sorted({row["distance"] for row in chosen})
        values = [[row["max_vio_later"] for row in chosen if row["distance"] == d] for d in distances]
        axis.plot(distances, [np.mean(v) for v in values], "o-", color=color, label=f"{order} order")
        axis.fill_between(distances, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15)
    unbiased = np.mean([row["max_vio_no_bias"] for row in rows])
    axis.axhline(float(unbiased), color="black", linewidth=0.8, linestyle=":", label="no bias, mean")
    axis.set(
        xlabel="distance from the fitted piece (tokens)",
        ylabel="MaxVio on the later piece",
        title="How far a fitted bias carries",
        ylim=(0, None),
    )
    axis.legend()
    return drawing


def _max_vio(scores_TE: np.ndarray, bias_E: np.ndarray, top_k: int) -> float:
    problem = AssignmentProblem(scores_TE, top_k)
    return float(metrics.max_vio(duality.allocate(problem, bias_E).load_E))
