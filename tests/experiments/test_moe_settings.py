"""What of `train_moe` needs no torch: arms, sizes, result files, and the line that says what is missing."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb.rules import make_rule
from alflb.schedules import InverseSqrt
from experiments import train_moe
from experiments._moe_settings import SIZES, Arm


def test_importing_needs_no_torch():
    code = "import sys, experiments.train_moe\nassert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_without_torch_says_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"train_moe needs torch, which is not installed: pip install 'alflb\[models\]'"
    ):
        train_moe.run(train_moe.SMOKE[0], 0)


def test_arms():
    assert Arm.parse("none").rule(10) is None
    assert Arm.parse("aux:0.01").auxiliary_weight == 0.01
    assert Arm.parse("sign:0.01").auxiliary_weight == 0.0
    assert Arm.parse("sign:0.01:inverse_sqrt").rule(10) == make_rule("sign", InverseSqrt(0.01))
    assert Arm.parse("qb").rule(10) == make_rule("qb")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none:1", "arm 'none:1' is not none, aux:WEIGHT or RULE"),
        ("aux", "arm 'aux' is not none, aux:WEIGHT or RULE"),
        ("sign:1:constant:2", "is not none, aux:WEIGHT or RULE"),
        ("sign:fast", "number in arm 'sign:fast' is nan"),
        ("sign:-1", "number in arm 'sign:-1' is -1.0"),
        ("sign:1:invers", "unknown schedule 'invers': did you mean 'inverse'"),
        ("sing:1", "unknown rule 'sing': did you mean 'sign'"),
    ],
)
def test_misspelled_arms(name, message):
    with pytest.raises(ValueError, match=message):
        Arm.parse(name).checked(10)


def test_unknown_corpus():
    with pytest.raises(ValueError, match="unknown corpus 'shakespear': did you mean 'shakespeare'"):
        train_moe.known_corpus("shakespear", 300)


def test_learning_rate_rises_and_falls():
    size = SIZES["5m"]
    rates = [size.learning_rate_at(step) for step in range(1, size.num_steps + 1)]
    assert max(rates) == size.learning_rate == rates[17]
    assert rates[0] == pytest.approx(size.learning_rate / 18)
    assert rates[-1] == pytest.approx(size.learning_rate / 10)
    assert size.look_at == (36, 90, 180)


@given(st.integers(1, 200), st.integers(1, 200))
def test_forwards_are_of_equal_size_and_no_larger_than_asked(per_step, per_forward):
    size = dataclasses.replace(SIZES["smoke"], sequences_per_forward=per_forward).changed(sequences_per_step=per_step)
    part = size.sequences_per_forward
    assert per_step % part == 0
    assert part <= per_forward
    assert not any(per_step % other == 0 for other in range(part + 1, min(per_step, per_forward) + 1))


def test_traces_are_no_longer_than_the_text_that_is_looked_at():
    size = SIZES["5m"].changed(evaluation_tokens=1024)
    assert size.trace_tokens == 1024
    assert SIZES["5m"].changed(evaluation_tokens=32768).trace_tokens == SIZES["5m"].trace_tokens


def rows_of(arm, seed, loss, max_vio, correlation=None):
    look = {"step": 3, "layer": 1, "gap": 0.1, "correlation": correlation, "halves": 0.9}
    summary = {"validation_loss": loss, "max_vio_global": max_vio, "max_vio_end": max_vio, "dead_experts": 0}
    common = {"arm": arm, "seed": seed}
    return [
        {**common, "kind": "run", **summary},
        {**common, "kind": "layer", "layer": 1, "max_vio": [3.0, 2.0, max_vio]},
        {**common, "kind": "look", **look},
    ]


def made_up(loss_of_sign):
    """Two arms, three seeds that differ much, arms that differ little."""
    return [
        row
        for seed in range(3)
        for row in (
            *rows_of("aux:0.001", seed, 3.0 + seed, 0.7),
            *rows_of("sign:0.001", seed, loss_of_sign + seed, 0.1 + 0.01 * seed, correlation=0.8),
        )
    ]


def test_findings_pair_the_seeds():
    found = {finding.statement: finding for finding in train_moe.findings(made_up(2.9))}
    assert found["MaxVio_global, sign u = 0.001 less auxiliary loss 0.001"].holds is True
    assert found["validation perplexity, sign u = 0.001 less auxiliary loss 0.001"].holds is None  # grows with the seed
    worse = [
        finding.holds for finding in train_moe.findings(made_up(3.0001)) if "perplexity, sign" in finding.statement
    ]
    assert worse == [None]
    flipped = [
        {**row, "arm": {"aux:0.001": "sign:0.001", "sign:0.001": "aux:0.001"}[row["arm"]]} for row in made_up(2.9)
    ]
    assert train_moe.findings(flipped)[0].holds is False
    arm = next(f for f in train_moe.findings(made_up(2.9)) if f.statement == "arm sign:0.001")
    assert "correlation with the optimal bias 0.800 (of two halves of the text 0.900)" in arm.measured


def test_results_come_back_as_written(tmp_path):
    rows = made_up(2.9)
    train_moe.write_results(tmp_path / "made.json", rows)
    back = train_moe.read_results(tmp_path / "made.json")
    columns = {key for row in rows for key in row}
    assert back == [{**dict.fromkeys(columns), **row} for row in rows]
    assert train_moe.findings(back) == train_moe.findings(rows)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"rows": 1, "common": {}}', '{"rows": [{}]}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a results file of train_moe"):
        train_moe.read_results(tmp_path / "other.json")
