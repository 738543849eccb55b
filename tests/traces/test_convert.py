"""Conversion: what each option means, and that nothing impossible, ambiguous or without effect is accepted."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from alflb.cli.app import app
from alflb.traces import TraceError, convert_experts, convert_loads, convert_scores, open_scores, read_trace

RNG = np.random.default_rng(0)
SCORES = RNG.random((3, 10, 4)).astype(np.float32)
EXPERTS = RNG.random((10, 3, 6)).argsort(axis=2)[..., :2]


@pytest.fixture
def save(tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "raw.npz", **arrays)
        return tmp_path / "raw.npz"

    return saved


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_of_scores_is_taken_from_the_first_axis(save, layer):
    path = save(s=SCORES, b=np.arange(12.0).reshape(3, 4))
    trace = convert_scores(path, array="s", bias_array="b", top_k=2, layer=layer)
    np.testing.assert_array_equal(trace.scores_TE, SCORES[layer])
    assert trace.bias_E.tolist() == list(range(4 * layer, 4 * layer + 4))
    assert trace.metadata == {"layer": layer}


def test_padding_is_dropped_where_a_mask_says_so_and_refused_otherwise(save):
    scores = SCORES[0].copy()
    scores[[2, 7]] = -np.inf
    padding = np.isneginf(scores).all(axis=1)
    path = save(s=scores, p=padding, ints=padding.astype(int), short=padding[:3], every=np.ones(10, bool))
    np.testing.assert_array_equal(
        convert_scores(path, array="s", padding_array="p", top_k=2).scores_TE, scores[~padding]
    )
    with pytest.raises(TraceError, match=r"token 2 has no expert .*2 such tokens.*padding"):
        convert_scores(path, array="s", top_k=2)
    with pytest.raises(TraceError, match="token 2 has no expert"):
        open_scores(path, array="s", top_k=2)
    for name, words in {"ints": "dtype int64", "short": r"shape \(3,\)", "every": "marks every token"}.items():
        with pytest.raises(TraceError, match=words):
            convert_scores(path, array="s", padding_array=name, top_k=2)


def test_batches_with_padding_have_no_one_length(save):
    path = save(s=SCORES, p=np.arange(30).reshape(3, 10) % 7 == 0)
    trace = convert_scores(path, array="s", padding_array="p", top_k=2)
    assert len(trace.scores_TE) == 25
    assert "batch_tokens" not in trace.metadata


IMPOSSIBLE_LOADS = [
    (np.array([[64, 0, 0, 0]]), 2, "expert 0 has 64"),
    (np.array([[3, 3, 0, 0], [5, 1, 0, 0]]), 2, "batch 1 has 3 tokens"),
    (np.array([[1.5, 2.5]]), 1, "not whole"),
    (np.array([[np.nan, 2.0]]), 1, "not whole"),
    (np.array([[np.inf, 2.0]]), 1, "outside 0"),
    (np.array([[2.0**24 + 2, 2.0]], dtype=np.float32), 1, "float32 cannot count"),
    (np.array([[4096.0, 0.0]], dtype=np.float16), 1, "float16 cannot count"),
    (np.array([[True, False]]), 1, "dtype bool"),
    (np.array([[-1, 2]]), 1, "outside 0"),
    (np.array([[0, 0]]), 1, "positive multiple"),
    (np.array([1, 2]), 1, "shape"),
]


@pytest.mark.parametrize(("loads", "top_k", "words"), IMPOSSIBLE_LOADS)
def test_impossible_loads_are_refused(save, loads, top_k, words):
    with pytest.raises(TraceError, match=words):
        convert_loads(save(n=loads), array="n", top_k=top_k)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1", ">i4", ">f8"])
def test_whole_counts_of_any_dtype_are_taken(save, dtype):
    loads = [[3, 1, 2, 2], [4, 4, 0, 0]]
    assert convert_loads(save(n=np.array(loads, dtype)), array="n", top_k=2).loads_NE.tolist() == loads


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counting_chosen_experts_agrees_with_counting_by_hand(tmp_path_factory, data):
    num_experts = data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, num_experts))
    rows = data.draw(
        st.lists(st.permutations(range(num_experts)).map(lambda order: order[:top_k]), min_size=1, max_size=20)
    )
    marked = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    ignore = data.draw(st.sampled_from([-1, 255, num_experts]))
    assume(not all(marked))
    experts = np.array([[ignore] * top_k if out else row for row, out in zip(rows, marked)])
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, experts)
    trace = convert_experts(path, array=None, top_k=top_k, num_experts=num_experts, ignore=ignore)
    by_hand = [sum(expert in row for row, out in zip(rows, marked) if not out) for expert in range(num_experts)]
    assert trace.loads_NE.tolist() == [by_hand]
    if any(marked):
        with pytest.raises(TraceError, match="ignore"):
            convert_experts(path, array=None, top_k=top_k, num_experts=num_experts)


BAD_EXPERTS = [
    ([[0, 0]] * 20, {}, "token 0 lists expert 0 more than once"),
    ([[0, 1], [2, 2]], {}, "token 1 lists expert 2 more than once"),
    ([[0, 1], [2, 9]], {}, "token 1 lists 9"),
    ([[0, 1], [-1, -1]], {}, "token 1 lists -1"),
    ([[0, 1], [2, -1]], {"ignore": -1}, "token 1 lists -1"),
    ([[-1, -1]], {"ignore": -1}, "every token"),
    ([[0, 1]], {"ignore": True}, "ignore is True"),
    ([[0, 1]], {"ignore": "all"}, "ignore is 'all'"),
    ([[0, 1]], {"top_k": 1}, "lists 2 experts per token but top_k is 1"),
    ([[0, 1]], {"top_k": 4}, "lists 2 experts per token but top_k is 4"),
    ([[0, 1]], {"top_k": 5, "num_experts": 4}, "top_k is 5 but there are 4"),
    ([[0, 1]], {"batch_tokens": 2}, "batch_tokens is 2 but there are 1 tokens"),
    ([[0, 1]], {"batch_tokens": 0}, "batch_tokens is 0"),
    ([[0, 1]], {"layer": 0}, "no layers"),
    ([[0.0, 1.0]], {}, "must be integers"),
    ([0, 1], {}, "must be integers"),
]


@pytest.mark.parametrize(("experts", "changes", "words"), BAD_EXPERTS)
def test_impossible_picks_are_refused(save, experts, changes, words):
    with pytest.raises(TraceError, match=words):
        convert_experts(save(n=np.array(experts)), array="n", **{"top_k": 2, "num_experts": 8, **changes})


def test_an_id_that_may_be_padding_must_be_said_to_be_an_expert(save):
    path = save(n=np.array([[3, 255], [255, 255]], np.uint8), real=np.array([[3, 255], [4, 5]], np.uint8))
    for array in ("n", "real"):
        with pytest.raises(TraceError, match="255 in uint8 is either expert 255 or a padding id of -1"):
            convert_experts(path, array=array, top_k=2, num_experts=256)
    with pytest.raises(TraceError, match="lists expert 255 more than once"):
        convert_experts(path, array="n", top_k=2, num_experts=256, ignore="none")
    assert convert_experts(path, array="n", top_k=2, num_experts=256, ignore=255).loads_NE.sum() == 2
    assert convert_experts(path, array="real", top_k=2, num_experts=256, ignore="none").loads_NE[0, 255] == 1


def test_tokens_that_fill_no_batch_are_reported(save, tmp_path):
    path = save(n=EXPERTS)
    arguments = [path, tmp_path / "t.npz", "--kind", "experts", "--experts", 6, "--top-k", 2, "--layer", 1]
    done = convert(*arguments, "--batch-tokens", 4)
    assert "the last 2 tokens" in done.stdout
    metadata = read_trace(tmp_path / "t.npz").metadata
    assert (metadata["batch_tokens"], metadata["tokens_left_out"], metadata["layer"]) == (4, 2, 1)


OPTIONS = {
    "--bias-array": "b",
    "--padding-array": "p",
    "--layer": "0",
    "--num-experts": "6",
    "--batch-tokens": "2",
    "--ignore": "-1",
}
TAKEN = {
    "scores": {"--bias-array", "--padding-array", "--layer"},
    "loads": {"--layer"},
    "experts": {"--num-experts", "--layer", "--batch-tokens", "--ignore"},
}


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, option) for kind, option in itertools.product(TAKEN, OPTIONS) if option not in TAKEN[kind]],
)
def test_options_without_effect_are_refused(save, tmp_path, kind, option):
    path = save(n=SCORES[0], b=np.zeros(4), p=np.zeros(10, bool))
    done = convert(path, tmp_path / "t.npz", "--array", "n", "--top-k", 2, "--kind", kind, option, OPTIONS[option])
    assert done.exit_code == 2
    assert f"{option} has no effect with kind '{kind}'" in done.stderr
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--array", "s2", "--layer", "0"], "no layers"),
        (["--array", "s", "--layer", "3"], "choose a layer from 0 to 2"),
        (["--array", "s", "--layer", "-1"], "choose a layer from 0 to 2"),
        (["--array", "s4"], "2-D"),
        (["--array", "s2", "--bias-array", "b2"], "bias has shape"),
        (["--array", "s2", "--meta", "top_k=3"], "metadata has top_k"),
        (["--array", "s2", "--meta", "a=1", "--meta", "a=2"], "twice"),
        (["--array", "s2", "--meta", "n_group=3", "--meta", "topk_group=1"], "1 of 3 groups"),
        (["--array", "s2", "--meta", "n_group=2"], "give both"),
        (["--array", "s2", "--meta", "x=NaN"], "JSON"),
        (["--array", "nope_*"], "no array"),
        (["--array", "*"], "equal length"),
    ],
)
def test_bad_conversions_of_scores_are_refused(save, tmp_path, arguments, words):
    path = save(s=SCORES, s2=SCORES[0], s4=SCORES[None], b2=np.zeros((2, 4)))
    done = convert(path, tmp_path / "t.npz", "--top-k", 2, *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert not (tmp_path / "t.npz").exists()


def test_files_of_other_tools(tmp_path):
    """The same loads from each kind of file that people have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    loads = [[3, 1, 0], [2, 0, 2]]
    lines = "\n".join(",".join(map(str, [step, *row, "x"])) for step, row in enumerate(loads))
    (tmp_path / "table.csv").write_text(f"step,expert_0,expert_1,expert_2,note\n{lines}\n")
    (tmp_path / "table.tsv").write_text((tmp_path / "table.csv").read_text().replace(",", "\t"))
    (tmp_path / "plain.csv").write_text("\n".join(",".join(map(str, row)) for row in loads))
    (tmp_path / "plain.json").write_text(json.dumps(loads))
    (tmp_path / "named.json").write_text(json.dumps({"loads": loads, "step": 5}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in loads))
    (tmp_path / "named.jsonl").write_text("".join(json.dumps({"loads": row, "tag": "a"}) + "\n" for row in loads))
    pq.write_table(pa.table({"loads": loads, "step": [0, 1]}), tmp_path / "lists.parquet")
    names = {f"expert_{k}": [row[k] for row in loads] for k in range(3)}
    pq.write_table(pa.table({"step": [0, 1], **names}), tmp_path / "columns.parquet")
    arrays = {
        "table.csv": "expert_*", "table.tsv": "expert_*", "plain.csv": None, "plain.json": None, "named.json": None,
        "rows.jsonl": None, "named.jsonl": "loads", "lists.parquet": "loads", "columns.parquet": "expert_?",
    }  # fmt: skip
    for name, array in arrays.items():
        assert convert_loads(tmp_path / name, array=array, top_k=1).loads_NE.tolist() == loads, name
    with pytest.raises(TraceError, match=r"name one of its arrays \(or columns.*step \(2,\), expert_0 \(2,\)"):
        convert_loads(tmp_path / "table.csv", array=None, top_k=1)
    with pytest.raises(TraceError, match="'note' has missing entries, entries that are no numbers"):
        convert_loads(tmp_path / "table.csv", array="note", top_k=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("s.safetensors", "safetensors.numpy"), ("s.pkl", "never loaded"), ("s.csv.gz", "unpack"), ("s.xyz", "none of")],
)
def test_files_that_are_not_read_say_what_to_do(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(TraceError, match=words):
        open_scores(tmp_path / name, top_k=1)


def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    scores = torch.randn(6, 4, dtype=torch.bfloat16)
    torch.save(scores, tmp_path / "one.pt")
    torch.save({"layer": {"deep": 1}, "s": scores.double(), "p": torch.nn.Parameter(scores)}, tmp_path / "named.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    read = open_scores(tmp_path / "one.pt", top_k=1).scores_TE
    np.testing.assert_array_equal(read, scores.float().numpy())
    for name in ("s", "p"):
        np.testing.assert_array_equal(open_scores(tmp_path / "named.pth", array=name, top_k=1).scores_TE, read)
    with pytest.raises(TraceError, match="save the tensors alone"):
        open_scores(tmp_path / "model.pt", top_k=1)


def test_torch_files_without_torch_say_what_to_do(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(2, 2), tmp_path / "s.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(TraceError, match=r"alflb\[torch\]"):
        open_scores(tmp_path / "s.pt", top_k=1)
