"""Logs of other tools: recognized by their content, read to the same records, and refused in one line if damaged."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from alflb.cli.app import app
from alflb.logs import Record, read_log
from alflb.traces import TraceError
from tests.logs._exports import (
    AFTER,
    BIAS_LNE,
    EXPERTS,
    EXPORTS,
    LABELS,
    LOADS_LNE,
    STEPS,
    TOKENS,
    TOP_K,
    megatron,
    scalars,
    tensorboard_downloads,
    wandb_csv,
)
from tests.traces._damage import damage

CASES = int(os.environ.get("ALFLB_FUZZ_CASES", "300"))


def diagnose(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_every_export_is_read_to_the_loads_and_biases_of_the_run(export, tmp_path):
    path, hints, loads_LNE, biases = export(tmp_path)
    records = read_log(path, **hints)
    assert list(records) == LABELS
    for record, load_NE, bias_NE in zip(records.values(), loads_LNE, BIAS_LNE):
        if biases is None:
            assert record.load_NE.tolist() == load_NE.tolist()
            assert record.bias_NE is None
        else:
            assert record.load_NE.tolist() == load_NE[slice(1, None) if biases == AFTER else slice(None, -1)].tolist()
            np.testing.assert_allclose(record.bias_NE, bias_NE[biases], atol=1e-12)
            np.testing.assert_allclose(
                np.diff(record.bias_NE, axis=0), 0.01 * np.sign(TOKENS * TOP_K / EXPERTS - record.load_NE), atol=1e-12
            )


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_the_command_line_reads_every_export(export, tmp_path):
    path, hints, _, biases = export(tmp_path)
    names = {"num_experts": "--experts", "top_k": "--top-k", "batch_tokens": "--batch-tokens"}
    options = [text for name, value in hints.items() for text in (names[name], value)]
    done = diagnose(path, *options)
    assert done.exit_code in (0, 1), done.output
    assert "MaxVio over layers: p50" in done.output
    assert ("only the counts were checked" in done.output) == (biases is None)
    found = json.loads(diagnose(path, *options, "--ranks", 2, "--json").output)
    assert set(found["layers"]) == set(LABELS)
    assert found["max_vio_over_layers"]["p50"] < float(done.output.split("p50 ")[1].split(",")[0])
    if biases is None:
        advised = CliRunner().invoke(app, ["advise", "--log", str(path), "--top-k", str(TOP_K)])
        assert advised.exit_code == 2
        assert len(advised.stderr.strip().splitlines()) == 1


def test_advice_is_drawn_from_an_export(tmp_path):
    rng, bias_E, rows = np.random.default_rng(0), np.zeros(EXPERTS), []
    for n in range(300):
        scores_TE = rng.logistic(size=(400, EXPERTS)) + np.linspace(0, 1, EXPERTS) + bias_E
        load_E = np.bincount(scores_TE.argmax(axis=1), minlength=EXPERTS)
        bias_E = bias_E + 0.3 * np.sign(400 / EXPERTS - load_E)
        cells = {
            f"layer_7/{kind}/e{e}": values[e]
            for kind, values in (("load", load_E), ("bias", bias_E))
            for e in range(EXPERTS)
        }
        rows.append({"step": n, **{name: float(value) for name, value in cells.items()}})
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    advised = CliRunner().invoke(app, ["advise", "--log", str(path), "--json"])
    assert advised.exit_code == 0, advised.output
    value, _, high = json.loads(advised.output)["layer_07"]["factor_for_sign_step_size"]
    assert value <= high < 1, "steps of 0.3 score units are far too large"


def write_table(path, columns):
    rows = [list(columns), *zip(*columns.values())]
    path.write_text("\n".join(",".join("" if cell is None else str(cell) for cell in row) for row in rows))
    return path


def table(**changes):
    """The columns of a wide table, changed."""
    columns = {"step": list(range(STEPS)), **scalars()}
    columns.update(changes)
    return {name: values for name, values in columns.items() if values is not None}


FIRST = "moe/layer_0/tokens/expert_0"

REFUSALS = {
    "an expert is missing": (table(**{"moe/layer_1/tokens/expert_2": None}), "expert 2 are missing"),
    "a value is missing": (table(**{FIRST: [None, *range(1, STEPS)]}), "missing at step 0"),
    "no steps": (table(step=None), "no column of steps"),
    "a step that is no number": (table(step=["a", *range(1, STEPS)]), "whole numbers are needed"),
    "a step twice": (table(step=[1, *range(1, STEPS)]), "two values at step 1"),
    "negative": (table(**{FIRST: [-1] * STEPS}), "hold -1"),
    "infinite": (table(**{FIRST: ["inf"] * STEPS}), "not finite"),
    "shares": (table(**{FIRST: [0.25] * STEPS}), "pass batch_tokens and top_k"),
    "no tokens": ({"step": [1], **{name: [0] for name in scalars()}}, "no step counts a token"),
    "nothing per expert": ({"step": [1, 2], "loss": [1, 2], "lr": [1, 2]}, "none of its 2 series"),
    "two kinds of loads": (
        {**table(), **{name.replace("tokens", "usage"): values for name, values in scalars().items()}},
        "choose one by loads",
    ),
    "two runs": (
        {"Step": [1], **{f"{run} - {name}": [1] for name in scalars() for run in ("a", "b")}},
        "several runs (a, b",
    ),
    "two runs of TensorBoard": (
        {"run": ["a", "b"], "tag": [FIRST] * 2, "step": [1, 1], "value": [1, 2]},
        "several runs (a, b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line(case, tmp_path):
    columns, message = REFUSALS[case]
    path = write_table(tmp_path / "table.csv", columns)
    with pytest.raises(TraceError) as refused:
        read_log(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert diagnose(path).exit_code == 2


def test_a_pattern_chooses_among_kinds_of_loads(tmp_path):
    path = write_table(tmp_path / "table.csv", REFUSALS["two kinds of loads"][0])
    assert read_log(path, loads="*tokens*")["layer_00"].load_NE.tolist() == LOADS_LNE[0].tolist()
    with pytest.raises(TraceError, match="no series is called 'x'; with a number per expert there are"):
        read_log(path, loads="x")
    with pytest.raises(TraceError, match=r"loads \(--loads\) chooses among series with names"):
        read_log(megatron(tmp_path).path, num_experts=EXPERTS, loads="*")


def test_biases_of_steps_that_are_not_consecutive_are_left_out(tmp_path):
    columns = {"step": list(range(0, 10 * STEPS, 10)), **scalars(bias=AFTER)}
    record = read_log(write_table(tmp_path / "table.csv", columns))["layer_00"]
    assert record.bias_NE is None
    assert "biases are left out: steps are missing in between" in record.notes
    advised = CliRunner().invoke(app, ["advise", "--log", str(tmp_path / "table.csv")])
    assert advised.exit_code == 2
    assert "steps are missing in between" in advised.stderr


def test_what_the_log_says_is_compared_with_what_the_user_says(tmp_path):
    path = megatron(tmp_path).path
    for hints, message in [
        ({}, "not how many there are: pass num_experts"),
        ({"num_experts": 3}, "a token chose expert 3 of 3"),
        ({"num_experts": EXPERTS, "top_k": 3}, "top_k is 3, but the log says 2"),
        ({"num_experts": 0}, "num_experts is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_log(path, **hints)
    with pytest.raises(TraceError, match="num_experts is 7, but the log has 4 experts"):
        read_log(wandb_csv(tmp_path).path, num_experts=7)


def test_tensor_parallel_ranks_that_trace_the_same_tokens_count_once(tmp_path):
    where = tmp_path / "trace"
    where.mkdir()
    chosen = np.argsort(np.random.default_rng(1).random((40, EXPERTS)))[:, :TOP_K].tolist()
    for rank in range(2):
        record = {"step": 0, "layer": 3, "rank": rank, "num_tokens": 40, "topk": TOP_K, "top_indices": chosen}
        (where / f"router_trace_rank{rank}.jsonl").write_text(json.dumps(record))
    (record,) = read_log(where, num_experts=EXPERTS).values()
    assert record.load_NE.sum() == 40 * TOP_K
    assert "count once" in record.notes[0]


def test_router_weights_beside_a_trace_say_how_many_experts_there_are(tmp_path):
    from tests._extras import require

    torch = require("torch")
    path = megatron(tmp_path).path
    state = {("decoder", None, 0): {"weight": torch.zeros(EXPERTS, 8), "expert_bias": None, "topk": TOP_K}}
    torch.save(state, path / "router_state_rank0.pt")
    assert read_log(path)["layer_00"].load_NE.tolist() == LOADS_LNE[0].tolist()


def test_printed_balancedness_is_explained(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("INFO EPLB step: 12 for model m: avg_tokens=12.00, max_tokens=20, balancedness=0.6000\n")
    with pytest.raises(TraceError, match="no loads of experts"):
        read_log(path)


def test_files_of_several_tables_are_not_mixed(tmp_path):
    where = tensorboard_downloads(tmp_path).path
    write_table(where / "other.csv", table())
    with pytest.raises(TraceError, match="is a table of its own"):
        read_log(where)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return [export(folder) for export in EXPORTS]


def refusal_or_records(path, **hints):
    """The line in which a log is refused, or its path and its records."""
    try:
        return str(path), read_log(path, **hints)
    except (ValueError, MemoryError) as error:
        return str(error), {}


@settings(max_examples=CASES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_logs_are_read_or_refused_in_one_line(whole, tmp_path_factory, seed):
    rng = random.Random(seed)
    path, hints, *_ = rng.choice(whole)
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target = folder / path.name
    if path.is_dir():
        shutil.copytree(path, target)
        victim = rng.choice(sorted(target.iterdir()))
    else:
        shutil.copy(path, target)
        victim = target
    content = victim.read_bytes()
    for _ in range(rng.randint(1, 3)):
        content = damage(content, rng) or b"x"
    victim.write_bytes(content)
    said, records = refusal_or_records(target, **hints)
    assert str(folder) in said
    assert "\n" not in said
    assert all(isinstance(record, Record) and record.load_NE.min() >= 0 for record in records.values())


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["routed_experts", "step", "layer", "rank", "topk", "num_tokens", "top_indices", "logical_count",
                 "expert_load", "physical_to_logical_map", "records", "last_physical_to_logical_map", "value", "tag",
                 "expert", "count", "layer_1/load/expert_0", "layer_1/load/expert_1", "bias/expert_0"]
            ),
            inner,
            max_size=6,
        ),
        max_leaves=25,
    )
)  # fmt: skip
@settings(max_examples=CASES, deadline=None)
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    said, _ = refusal_or_records(path, num_experts=4, top_k=2)
    assert str(path) in said
    assert "\n" not in said
