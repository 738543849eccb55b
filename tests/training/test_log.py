"""A run's log: what the balancer did comes back from its files, and can be diagnosed from the command line."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from alflb.cli.app import app
from alflb.logs import read_log
from alflb.traces import LoadTrace, TraceError, read_trace
from tests.training.models import NUM_EXPERTS, feed, feeds, training

LoadBalancer = training.LoadBalancer
TrainingLog = training.TrainingLog


def run(folder, steps, steps_per_file=3, state=None):
    """A run of some steps that is logged; its balancer."""
    model = feeds()
    with TrainingLog(folder, steps_per_file) as log:
        balancer = LoadBalancer.attach(model, "sign", 0.0123, on_step=log)
        if state is not None:
            balancer.load_state_dict(state)
        feed(model, balancer, steps)
    return balancer


def test_a_log_holds_the_loads_and_biases_of_every_layer_and_step(tmp_path):
    balancer = run(tmp_path, range(8))
    records = read_log(tmp_path)
    assert list(records) == ["layer_00", "layer_01"]
    for record, bias_E in zip(records.values(), balancer.biases.values()):
        assert record.load_NE.shape == (8, NUM_EXPERTS)
        assert (record.load_NE.sum(axis=1) == 100).all()
        assert not record.bias_NE[0].any()
        assert record.bias_NE[-1].tolist() == bias_E.tolist()
        assert record.top_k == 2
        steps = np.diff(record.bias_NE, axis=0) / 0.0123
        np.testing.assert_allclose(steps, np.sign(12.5 - record.load_NE), atol=1e-9)


def test_every_file_is_a_trace(tmp_path):
    run(tmp_path, range(4))
    trace = read_trace(tmp_path / "layer_01/step_000000001.npz")
    assert isinstance(trace, LoadTrace)
    assert trace.metadata["layer"] == "1"
    assert list(read_log(tmp_path / "layer_01")) == ["layer_01"]
    assert len(read_log(tmp_path / "layer_01/step_000000001.npz")["step_000000001"].load_NE) == 3


def test_a_resumed_run_goes_on_in_the_same_folder(tmp_path):
    """The run broke off after step 7, two steps after its checkpoint."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, range(9))
    state = run(parts, range(5)).state_dict()
    run(parts, range(5, 7), state=state)
    run(parts, range(5, 9), state=state)
    for one, other in zip(read_log(whole).values(), read_log(parts).values()):
        assert one.load_NE.tolist() == other.load_NE.tolist()
        assert one.bias_NE.tobytes() == other.bias_NE.tobytes()


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(TraceError, match="no log is recognized in it"):
        read_log(tmp_path)
    run(tmp_path, range(9))
    (tmp_path / "layer_00/step_000000004.npz").unlink()
    with pytest.raises(TraceError, match=r"step_000000007.npz does not go on where the file before it ends"):
        read_log(tmp_path)
    (tmp_path / "layer_00/step_000000007.npz").write_bytes(b"PK")
    with pytest.raises(TraceError, match="step_000000007"):
        read_log(tmp_path)
    with pytest.raises(ValueError, match="steps_per_file is 0"):
        TrainingLog(tmp_path, 0)


def test_alflb_diagnose_reads_a_log(tmp_path):
    run(tmp_path, range(40), steps_per_file=16)
    healthy = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert healthy.exit_code == 0
    assert "2 layers, 0 with something" in healthy.output
    faulty = CliRunner().invoke(app, ["diagnose", str(tmp_path), "--batch-tokens", "25", "--json"])
    assert faulty.exit_code == 1
    found = json.loads(faulty.output)["layers"]["layer_01"]
    assert found["suspicions"][0]["check"] == "totals"
    assert "2 times K T" in found["suspicions"][0]["evidence"]
    assert found["num_steps"] == 40
    assert -1 <= found["min_vio"] <= 0 <= found["avg_vio"] <= found["max_vio"]
    missing = CliRunner().invoke(app, ["diagnose", str(tmp_path / "nowhere.npz")])
    assert missing.exit_code == 2
