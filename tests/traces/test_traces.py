"""The trace format, the shipped trace with its known facts, and conversion."""

import itertools
import json
import zipfile

import numpy as np
import pytest

from alflb import duality, metrics
from alflb.problem import AssignmentProblem
from alflb.rules import make_rule
from alflb.schedules import LinearDecay
from alflb.simulation import simulate
from alflb.streams import Static
from alflb.traces import (
    LoadTrace,
    RouterTrace,
    TraceError,
    convert_experts,
    convert_loads,
    convert_scores,
    load_router_trace,
    open_scores,
    read_trace,
    write_trace,
)

SCORES = np.random.default_rng(0).random((10, 4))


@pytest.fixture(scope="module")
def shipped():
    return load_router_trace()


def max_vio(scores, top_k, bias):
    problem = AssignmentProblem(scores, top_k)
    return metrics.max_vio(duality.allocate(problem, bias).load_E)


def fit(scores, top_k, steps):
    run = simulate(Static(scores), make_rule("sign", LinearDecay(0.02, steps)), top_k=top_k, num_steps=steps)
    return run.bias_NE[-1], metrics.max_vio(run)[-1]


def test_shipped_trace_says_what_it_is(shipped):
    assert shipped.scores_TE.shape == (16384, 64)
    assert shipped.scores_TE.dtype == np.float32
    assert shipped.top_k == 6
    assert shipped.metadata["license"] == "Apache-2.0"
    assert shipped.metadata["score_function"] == "sigmoid"
    assert shipped.scores_TE.min() > 0
    assert shipped.scores_TE.max() < 1


def test_shipped_trace_is_unbalanced_without_a_bias_and_with_its_own(shipped):
    assert max_vio(shipped.scores_TE, 6, np.zeros(64)) == pytest.approx(2.954, abs=1e-3)
    assert max_vio(shipped.scores_TE, 6, shipped.bias_E) == pytest.approx(1.411, abs=1e-3)


def test_offline_sign_loop_balances_it_in_sample(shipped):
    assert fit(shipped.scores_TE, 6, 600)[1] < 0.01


def test_real_text_is_not_stationary(shipped):
    """A bias fitted on the first half, in order, fails on the second; fitted on a random half it does not."""
    half = len(shipped.scores_TE) // 2
    order = np.random.default_rng(0).permutation(2 * half)
    in_order, _ = fit(shipped.scores_TE[:half], 6, 300)
    random, _ = fit(shipped.scores_TE[order[:half]], 6, 300)
    assert 2.6 < max_vio(shipped.scores_TE[half:], 6, in_order) < 3.3
    assert 0.05 < max_vio(shipped.scores_TE[order[half:]], 6, random) < 0.2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_round_trip_keeps_every_bit(tmp_path, dtype):
    scores = SCORES.astype(dtype)
    bias = np.array([0.1, -0.2, 0.3, 0.0])
    write_trace(tmp_path / "t.npz", RouterTrace(scores, 2, bias, {"layer": 3, "model": "γ-router"}))
    trace = read_trace(tmp_path / "t.npz")
    np.testing.assert_array_equal(trace.scores_TE, scores)
    np.testing.assert_array_equal(trace.bias_E, bias)
    assert trace.top_k == 2
    assert trace.metadata["layer"] == 3
    assert trace.metadata["model"] == "γ-router"


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_trace(tmp_path / name, RouterTrace(SCORES, 2))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_loads_round_trip(tmp_path):
    write_trace(tmp_path / "t.npz", LoadTrace(np.array([[3, 1], [2, 2]], dtype=np.int16), 1))
    trace = read_trace(tmp_path / "t.npz")
    assert isinstance(trace, LoadTrace)
    assert trace.loads_NE.tolist() == [[3, 1], [2, 2]]
    assert trace.loads_NE.dtype == np.int64


def write_parts(path, metadata, **arrays):
    np.savez(path, metadata=np.array(metadata if isinstance(metadata, str) else json.dumps(metadata)), **arrays)


OK = {"format": "alflb-trace", "version": 1, "top_k": 2}


@pytest.mark.parametrize(
    ("metadata", "arrays", "words"),
    [
        (OK, {"scores": np.full((3, 4), np.nan)}, "holds nan"),
        (OK, {"scores": np.zeros((3, 4), dtype=int)}, "dtype int64"),
        (OK, {"scores": np.zeros(3)}, "2-D"),
        (OK, {"scores": SCORES, "bias": np.zeros(3)}, "bias has shape"),
        (OK, {"scores": SCORES, "loads": np.ones((2, 2), dtype=int)}, "exactly one"),
        (OK, {}, "exactly one"),
        (OK, {"loads": np.array([[1, 2]])}, "multiple of top_k"),
        (OK, {"loads": np.array([[-1, 3]])}, "outside 0"),
        (OK, {"loads": np.array([[2**63, 2]], dtype=np.uint64)}, "outside 0"),
        (OK, {"loads": np.array([[1.5, 2.5]])}, "dtype float64"),
        ({**OK, "top_k": 5}, {"scores": SCORES}, "top_k is 5 but there are 4"),
        ({**OK, "top_k": "2"}, {"scores": SCORES}, "metadata top_k is '2'"),
        ({"format": "alflb-trace", "version": 1}, {"scores": SCORES}, "metadata top_k is None"),
        ({**OK, "version": 2}, {"scores": SCORES}, "trace version 2"),
        ({**OK, "format": "other"}, {"scores": SCORES}, "not an alflb trace"),
        ("not json", {"scores": SCORES}, "not JSON"),
        ("[1]", {"scores": SCORES}, "not an alflb trace"),
    ],
)
def test_invalid_traces_are_refused(tmp_path, metadata, arrays, words):
    write_parts(tmp_path / "t.npz", metadata, **arrays)
    with pytest.raises(TraceError, match=words) as caught:
        read_trace(tmp_path / "t.npz")
    assert str(tmp_path / "t.npz") in str(caught.value)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    whole = tmp_path / "whole.npz"
    write_trace(whole, RouterTrace(SCORES, 2))
    data = whole.read_bytes()
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "text": b"hello, world",
        "damaged": data[:200] + bytes(byte ^ 0xFF for byte in data[200:260]) + data[260:],
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=r"cannot be read|not an alflb trace"):
            read_trace(path)
    with pytest.raises(TraceError, match="does not exist"):
        read_trace(tmp_path / "missing.npz")
    with pytest.raises(TraceError, match="is a folder"):
        read_trace(tmp_path)


def test_pickles_are_never_loaded(tmp_path):
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self):
            return (open, (str(fired), "w"))

    np.savez(tmp_path / "bomb.npz", scores=np.array([Bomb()], dtype=object))
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object))
    for name in ("bomb.npz", "bomb.npy"):
        with pytest.raises(TraceError, match="pickled"):
            open_scores(tmp_path / name, top_k=1)
    assert not fired.exists()


def test_members_that_are_no_arrays_are_left_out(tmp_path):
    path = tmp_path / "mixed.npz"
    np.savez(path, a=SCORES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "not an array")
    np.testing.assert_array_equal(open_scores(path, top_k=1).scores_TE, SCORES)


def test_open_scores_from_any_file(tmp_path):
    np.save(tmp_path / "plain.npy", SCORES)
    np.savez(tmp_path / "two.npz", a=SCORES, b=SCORES[:, :2])
    write_trace(tmp_path / "trace.npz", RouterTrace(SCORES, 2, np.zeros(4)))
    np.testing.assert_array_equal(open_scores(tmp_path / "plain.npy", top_k=1).scores_TE, SCORES)
    assert open_scores(tmp_path / "two.npz", array="b", top_k=1).scores_TE.shape == (10, 2)
    assert open_scores(tmp_path / "trace.npz").top_k == 2
    overridden = open_scores(tmp_path / "trace.npz", top_k=3)
    assert overridden.top_k == 3
    assert overridden.bias_E is not None
    with pytest.raises(TraceError, match=r"name one of its arrays .* a \(10, 4\), b \(10, 2\)"):
        open_scores(tmp_path / "two.npz", top_k=1)
    with pytest.raises(TraceError, match="has no array 'c'"):
        open_scores(tmp_path / "two.npz", array="c", top_k=1)
    with pytest.raises(TraceError, match="--top-k"):
        open_scores(tmp_path / "plain.npy")


def test_loads_are_not_scores(tmp_path):
    write_trace(tmp_path / "t.npz", LoadTrace(np.array([[2, 2]]), 1))
    with pytest.raises(TraceError, match="records loads only"):
        open_scores(tmp_path / "t.npz")


def test_convert_scores_lays_batches_end_to_end(tmp_path):
    batches = SCORES.reshape(5, 2, 4).astype(np.float16)
    np.savez(tmp_path / "raw.npz", s=batches, p=np.arange(4.0))
    trace = convert_scores(tmp_path / "raw.npz", array="s", bias_array="p", top_k=2, metadata={"layer": 1})
    np.testing.assert_array_equal(trace.scores_TE, batches.reshape(10, 4))
    assert trace.metadata == {"layer": 1, "batch_tokens": 2}
    assert trace.bias_E.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_convert_counts_and_chosen_experts(tmp_path):
    experts = np.random.default_rng(0).random((10, 3, 6)).argsort(axis=2)[..., :2].astype(np.uint8)
    counts = np.stack(
        [[np.bincount(experts[4 * b : 4 * b + 4, layer].ravel(), minlength=6) for layer in range(3)] for b in range(2)]
    )
    np.savez(tmp_path / "raw.npz", ids=experts, counts=counts)
    for layer, (array, convert, more) in itertools.product(
        range(3),
        (("counts", convert_loads, {}), ("ids", convert_experts, {"num_experts": 6, "batch_tokens": 4})),
    ):
        trace = convert(tmp_path / "raw.npz", array=array, top_k=2, layer=layer, **more)
        np.testing.assert_array_equal(trace.loads_NE, counts[:, layer])


def test_padding_and_documents_are_honored(tmp_path):
    padding = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    write_parts(
        tmp_path / "t.npz", {**OK, "batch_tokens": 5}, scores=SCORES, padding=padding, document_starts=[0, 3, 5, 7]
    )
    trace = read_trace(tmp_path / "t.npz")
    np.testing.assert_array_equal(trace.scores_TE, SCORES[~padding])
    assert trace.document_starts_D.tolist() == [0, 2, 4]  # the document of rows 3 and 4 was padding only
    assert "batch_tokens" not in trace.metadata
    write_trace(tmp_path / "again.npz", trace)
    assert read_trace(tmp_path / "again.npz").document_starts_D.tolist() == [0, 2, 4]


@pytest.mark.parametrize("starts", [[1, 2], [0, 0], [0, 10], [], [0.0], [[0]]])
def test_document_starts_that_cannot_be_are_refused(starts):
    with pytest.raises(ValueError, match="document_starts must be"):
        RouterTrace(SCORES, 2, document_starts_D=np.array(starts))


def test_grouped_routers_are_refused_where_plain_top_k_is_needed(tmp_path):
    path = tmp_path / "t.npz"
    write_trace(path, RouterTrace(SCORES, 2, metadata={"n_group": 2, "topk_group": 1}))
    with pytest.raises(TraceError, match="1 of 2 groups"):
        open_scores(path)
    assert open_scores(path, grouped=True).is_grouped
    assert read_trace(path).is_grouped
    write_trace(path, RouterTrace(SCORES, 2, metadata={"n_group": 2, "topk_group": 2}))
    assert not open_scores(path).is_grouped


@pytest.mark.parametrize(
    "groups",
    [
        {"n_group": 3, "topk_group": 1},
        {"n_group": 2},
        {"n_group": 2, "topk_group": 3},
        {"n_group": 4, "topk_group": 1},
        {"n_group": "2", "topk_group": 1},
    ],
)
def test_groups_that_cannot_be_are_refused(groups):
    with pytest.raises(ValueError, match=r"group"):
        RouterTrace(SCORES, 2, metadata=groups)


def test_metadata_that_are_not_json_are_not_written(tmp_path):
    for value in (float("nan"), float("inf"), {1, 2}, b"x"):
        with pytest.raises(ValueError, match="JSON"):
            write_trace(tmp_path / "t.npz", RouterTrace(SCORES, 2, metadata={"x": value}))
    assert not list(tmp_path.iterdir())


def test_masked_arrays_are_refused():
    with pytest.raises(ValueError, match="masked array"):
        RouterTrace(np.ma.masked_less(SCORES, 0.5), 2)
