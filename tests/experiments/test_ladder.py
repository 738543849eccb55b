"""Studies of the ladder of sizes, each against a case whose answer is known."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from alflb import AssignmentProblem, RouterTrace, metrics, solve_exact, write_trace
from alflb.bounds import sampling_max_vio
from alflb.rules import make_rule
from experiments import train_moe
from experiments._moe_settings import SIZES, Arm
from experiments.ladder import along, frozen, tables
from experiments.ladder.__main__ import _speed, app
from experiments.ladder.resolution import paired_loss_sd, resolution
from tests._extras import require

RNG = np.random.default_rng


def test_floors_are_what_independent_tokens_leave():
    rung = resolution(SIZES["5m"], num_seeds=3, loss_sd=0.01)
    rng = RNG(0)
    load_NE = rng.binomial(384, 6 / 64, (4000, 64))  # the sum of 64 loads hardly varies
    assert rung.batch_floor == pytest.approx(float(np.mean(load_NE.max(axis=1) / 36 - 1)), rel=0.03)
    assert rung.held_out_floor == sampling_max_vio(16384, 6, 64)
    assert rung.travel == pytest.approx(0.36)
    assert math.isnan(resolution(SIZES["5m"], num_seeds=1, loss_sd=0.01).perplexity_width)


def test_scatter_of_loss_differences_by_hand():
    losses = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.5, 3.0], "c": [0.0]}
    rows = [
        {"kind": "run", "arm": arm, "seed": seed, "validation_loss": loss}
        for arm, of_arm in losses.items()
        for seed, loss in enumerate(of_arm)
    ]
    assert paired_loss_sd(rows) == pytest.approx(np.std([0.0, -0.5, 0.0], ddof=1))
    with pytest.raises(ValueError, match="no two arms with two seeds"):
        paired_loss_sd([row for row in rows if row["arm"] != "a"])


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([1e-3, 3e-3]), st.floats(0.5, 2.0))
def test_the_sign_rule_lags_as_the_law_says(step_size, curvature):
    """One mode, Gaussian load surplus, a price that moves much more slowly than u per step."""
    num_tokens, top_k, num_experts = 384, 6, 64
    lag = along.sign_lag(step_size, num_tokens, top_k, np.full(num_experts - 1, curvature))
    share = top_k / num_experts
    noise = math.sqrt(share * (1 - share) / num_tokens)
    speed, rng = step_size / 10, RNG(1)
    behind_R, total = np.zeros(2000), 0.0
    steps = round(20 * lag) + 200
    for step in range(steps):
        surplus_R = curvature * behind_R + noise * rng.standard_normal(len(behind_R))
        behind_R += speed - step_size * np.sign(surplus_R)
        total += float(behind_R.mean()) if step >= steps // 2 else 0.0
    assert total / (steps - steps // 2) / speed == pytest.approx(lag, rel=0.1)


def test_pooled_prices_agree_as_spearman_and_brown_say():
    """Prices with independent noise: the mean of m of them is a price of m batches."""
    rng = RNG(2)
    truth_E = rng.standard_normal(400)
    price_NE = truth_E + rng.standard_normal((64, 400))
    one = along.mean_correlation(price_NE[1:], price_NE[:-1])
    of_four = price_NE.reshape(16, 4, 400).mean(axis=1)
    assert along.mean_correlation(of_four[1:], of_four[:-1]) == pytest.approx(along.reliability_of(one, 4), abs=0.03)


def test_overdispersion_sees_dependence_and_not_drift():
    rng = RNG(3)
    share_NE = np.linspace(0.1, 0.3, 2000)[:, None] * np.ones(4)
    drifting_NE = rng.binomial(100, share_NE)
    pairs_NE = 2 * rng.binomial(50, 0.2, (2000, 4))  # tokens come in pairs that choose alike
    assert along.overdispersion(drifting_NE, 100, 1) == pytest.approx(1.0, abs=0.1)
    assert along.overdispersion(pairs_NE, 100, 1) == pytest.approx(2.0, abs=0.2)


def made_up_traces(num_batches=12, num_tokens=48, bias_of=lambda offset_E: 0 * offset_E):
    rng = RNG(4)
    offset_E = rng.standard_normal(8)
    scores_NTE = (offset_E + rng.gumbel(size=(num_batches, num_tokens, 8))).astype(np.float32)
    bias_NE = np.tile(bias_of(offset_E), (num_batches, 1))
    return along.BatchTraces(5 * np.arange(1, num_batches + 1), bias_NE, scores_NTE, 2)


def test_regret_of_no_bias_is_larger_than_of_the_right_one():
    unbiased, right = made_up_traces(), made_up_traces(bias_of=lambda offset_E: -offset_E)
    assert along.regret_per_token(unbiased).mean() > 10 * along.regret_per_token(right).mean()
    assert along.regret_per_token(right).mean() > along.regret_per_token(right, 12).mean() > 0
    assert along.regret_per_token(right, 5).shape == (10,)  # two batches are left over
    assert (along.batch_max_vio(unbiased) >= 0).all()
    assert (along.batch_loads(right).sum(axis=1) == 2 * 48).all()


def test_speed_of_a_price_that_moves_steadily():
    assert _speed(np.arange(30.0)[:, None] * np.array([0.5, -0.5])) == pytest.approx(0.5)


def test_traces_come_back_in_order_and_gaps_are_refused(tmp_path):
    traces = made_up_traces(3)
    for step, bias_E, scores_TE in zip((5, 10, 15), traces.bias_NE, traces.scores_NTE, strict=True):
        write_trace(tmp_path / f"layer2_step{step}.npz", RouterTrace(scores_TE, 2, bias_E + step))
    assert along.batch_layers(tmp_path) == [2]
    back = along.read_batches(tmp_path, 2)
    assert np.array_equal(back.scores_NTE, traces.scores_NTE)
    assert back.bias_NE[:, 0].tolist() == [5.0, 10.0, 15.0]
    assert back.spacing == 5
    assert back.since(10).steps_N.tolist() == [10, 15]
    (tmp_path / "layer2_step10.npz").rename(tmp_path / "layer2_step11.npz")
    with pytest.raises(ValueError, match=r"layer 2 at steps \[5, 11, 15\]; it takes two or more, evenly spaced"):
        along.read_batches(tmp_path, 2)


def independent_texts(num_sequences=64, offset_E=None):
    """Five texts of independent tokens from the same law."""
    offset_E = np.zeros(8) if offset_E is None else offset_E
    draw = RNG(5).gumbel(size=(5, num_sequences, 32, 8)) + offset_E
    return frozen.Texts(*draw.astype(np.float32))


def test_nothing_but_sampling_is_left_of_the_right_bias_on_independent_tokens():
    offset_E = RNG(6).standard_normal(8)
    taken = frozen.parts(independent_texts(400, offset_E), -offset_E, make_rule("sign", 1e-3), 2, batch=16)
    assert taken.floor == sampling_max_vio(400 * 32, 2, 8)
    for part in taken:
        assert part == pytest.approx(taken.floor, abs=2.5 * taken.floor)
    wrong = frozen.parts(independent_texts(400, offset_E), np.zeros(8), None, 2, batch=16)
    assert wrong.training_mixed == wrong.frozen == wrong.averaged > 10 * wrong.floor
    assert wrong.priced == taken.priced


def test_a_rule_that_goes_on_moves_a_wrong_bias_away():
    offset_E = 0.2 * RNG(7).standard_normal(8)
    taken = frozen.parts(independent_texts(200, offset_E), np.zeros(8), make_rule("sign", 0.01), 2, batch=16)
    assert taken.averaged < taken.frozen < taken.training_mixed


def test_computation_batches_end_at_the_whole_text():
    scores_STE = independent_texts().training_mixed_STE
    batches = frozen.computation_batches(scores_STE, np.zeros(8), 2)
    assert [batch.tokens for batch in batches] == [32 * 2**power for power in range(7)]
    whole_E = frozen.loads(scores_STE, np.zeros(8), 2).sum(axis=0)
    assert batches[-1].max_vio == float(metrics.max_vio(whole_E))
    for batch in batches[:4]:  # means over at least eight batches
        assert batch.max_vio == pytest.approx(batch.floor, rel=0.3)


def test_composition_of_a_batch_matters_for_dependent_tokens_only():
    kinds = frozen.compositions(independent_texts().training_STE, np.zeros(8), 2, batch=4)
    assert [one.bias_correlation for one in kinds] == [None] * 3
    assert all(one.overdispersion == pytest.approx(1.0, abs=0.3) for one in kinds)
    alike = np.repeat(independent_texts(8).training_STE, 8, axis=0)  # eight sequences, each eight times on end
    drawn = {one.drawn: one.overdispersion for one in frozen.compositions(alike, np.arange(8.0), 2, batch=4)}
    assert drawn["neighboring sequences"] > 1.5 * drawn["tokens from all over the text"]


def test_means_are_over_layers_first():
    rows = [
        {
            "kind": "regret",
            "arm": "a",
            "step": 1,
            "seed": seed,
            "layer": layer,
            "own": float(seed + layer),
            "near": None,
        }
        for seed in range(2)
        for layer in range(2 - seed)  # the second seed has one layer only
    ]
    (group,) = tables.averaged(rows, ["arm", "step"], ["own", "near"]).values()
    assert group[0].mean == pytest.approx((0.5 + 1.0) / 2)
    assert group[1] is None


def test_phases_cover_the_run_once():
    shares = zip(tables.PHASES[:-1], tables.PHASES[1:], strict=True)
    assert [step for low, high in shares for step in tables._slice(range(20), low, high)] == list(range(20))


def test_resolution_is_printed_before_a_run(tmp_path):
    rows = [
        {"kind": "run", "arm": arm, "seed": seed, "validation_loss": 3.0 + 0.01 * seed * (arm == "none")}
        for arm in ("none", "aux:0.01")
        for seed in range(3)
    ]
    train_moe.write_results(tmp_path / "earlier.json", rows)
    arguments = [
        "--size",
        "5m",
        "--steps",
        "600",
        "--batch",
        "3",
        "--sequence",
        "128",
        "--evaluate",
        "16384",
        "--seeds",
        "3",
        "--like",
    ]
    done = CliRunner().invoke(app, ["resolve", *arguments, str(tmp_path / "earlier.json")])
    assert done.exit_code == 0, done.output
    assert "sampling alone leaves a MaxVio of 0.39 per batch and 0.058 on the held-out text" in done.output
    assert "differences of perplexity below 2.5% are not seen" in done.output


def test_from_training_to_tables_and_figure(tmp_path):
    """Every study on the smallest model that trains."""
    require("torch")
    moe = require("experiments._moe_training")
    require("transformers")
    size = dataclasses.replace(SIZES["smoke"], layers=2, num_steps=40, sequences_per_step=2, sequences_per_forward=2)
    text = train_moe.known_corpus("package", size.vocab_size)
    rows = []
    for arm in ("sign:0.01", "aux:0.01"):
        files = moe.Files(
            traces=tmp_path / "traces", trace_every=1, model=tmp_path / f"smoke_{arm.replace(':', '-')}_seed0"
        )
        of_arm, _ = moe.measure(size, Arm.parse(arm), text, 0, files=files)
        rows += [{"arm": arm, "seed": 0, "size": "smoke", **row} for row in of_arm]
    train_moe.write_results(tmp_path / "smoke.json", rows)

    def invoke(*arguments):
        done = CliRunner().invoke(app, [str(part) for part in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    names = sorted((tmp_path / "traces").glob("*_batches"))
    invoke("along", *names, "--out", tmp_path / "along.json", "--settled", 2)
    models = sorted(tmp_path.glob("smoke_*_seed0"))
    invoke("frozen", *models, "--out", tmp_path / "frozen.json", "--tokens", 1024, "--corpus", "package")
    shown = invoke("show", tmp_path / "along.json", tmp_path / "frozen.json")
    assert all(f"{kind}\n\n|" in shown for kind in tables.STUDIES)
    compared = invoke("compare", tmp_path / "smoke.json")
    assert "| `sign:0.01` |" in compared
    assert "MaxVio_global, sign u = 0.01 less auxiliary loss 0.01" in compared
    studies = ["--along", tmp_path / "along.json", "--frozen", tmp_path / "frozen.json"]
    invoke("draw", tmp_path / "smoke.json", *studies, "--out", tmp_path / "ladder")
    assert (tmp_path / "ladder.png").stat().st_size > 1000
    invoke("card", tmp_path / "traces")
    card = (tmp_path / "traces" / "README.md").read_text()
    assert card.count("\n| aux-0.01_seed0") == 3  # one layer at three steps
    assert "- **Text**: the sources of alflb (Apache-2.0). Documents" in card
    # The routers' own counts and the traces of their batches agree.
    traces = along.read_batches(names[0], 1)
    (layer,) = [row for row in rows if row["arm"] == "aux:0.01" and row["kind"] == "layer" and row["layer"] == 1]
    assert along.batch_max_vio(traces) == pytest.approx(layer["max_vio"], abs=1e-4)
    prices_NE = along.prices(traces.scores_NTE[:1], traces.top_k)
    assert solve_exact(AssignmentProblem(traces.scores_NTE[0], 2)).bias_E == pytest.approx(prices_NE[0], abs=1)


@pytest.mark.parametrize("command", ["along", "frozen"])
def test_folders_of_other_names_are_refused(command, tmp_path):
    done = CliRunner().invoke(app, [command, str(tmp_path / "elsewhere"), "--out", str(tmp_path / "rows.json")])
    assert done.exit_code == 2
    assert "elsewhere is not named" in done.stderr
