"""Torch kernels against the reference and against numba, integer by integer, on each device there is."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from _extras import require
from _score_families import constant, denormal, distinct, forbidden, signed_zeros, tied
from hypothesis import given
from hypothesis import strategies as st

from alflb import Static, make_rule, make_stream, simulate
from alflb.kernels import get_kernels, numba_, reference
from alflb.kernels.counting import LoadCounter
from alflb.kernels.draws import DISTRIBUTIONS, Draw
from alflb.streams import DrawnStream, stream_names

torch = require("torch")
torch_ = require("alflb.kernels.torch_")

pytestmark = pytest.mark.jit  # none of this is numba's

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [
    (1, 1, 1),
    (1, 5, 2),
    (17, 8, 8),
    (33, 16, 1),
    (31, 3, 2),
    (100, 64, 8),
    (1023, 64, 6),
    (1025, 33, 9),
    (1025, 256, 8),
    (300, 512, 16),
    (300, 257, 9),
    (65, 320, 20),
    (70, 140, 65),
    (20, 600, 599),
]
DTYPES = [np.float32, np.float64]


def all_forbidden(rng, shape):
    return np.full(shape, -np.inf)


def tied_at_the_bar(rng, shape):
    """Few distinct scores high up, many equal ones around the K-th."""
    return np.where(rng.random(shape) < 0.1, rng.random(shape) + 1, rng.integers(0, 2, shape) / 4)


SCORES = [distinct, tied, constant, forbidden, all_forbidden, signed_zeros, denormal, tied_at_the_bar]


@pytest.fixture(params=DEVICES)
def kernels(request):
    return get_kernels(f"torch:{request.param}")


def assert_equals_reference(kernels, scores_TE, bias_E, top_k):
    expected = reference.allocate(scores_TE, bias_E, top_k)
    actual = kernels.allocate(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
    np.testing.assert_array_equal(actual.load_E, expected.load_E)
    assert (actual.experts_TK.dtype, actual.load_E.dtype) == (np.int32, np.int64)
    assert actual.dual_sum == pytest.approx(expected.dual_sum, rel=1e-12, abs=1e-9)
    load_E, dual_sum = kernels.loads(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(load_E, expected.load_E)
    assert dual_sum == actual.dual_sum
    return expected, actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_scores", SCORES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(kernels, shape, make_scores, dtype):
    num_tokens, num_experts, top_k = shape
    rng = np.random.default_rng(num_tokens + num_experts)
    scores_TE = make_scores(rng, (num_tokens, num_experts)).astype(dtype)
    for bias_E in (np.zeros(num_experts), rng.integers(-4, 5, num_experts) / 1024):
        assert_equals_reference(kernels, scores_TE, bias_E, top_k)
        expected, margin_T = reference.allocate_with_margins(scores_TE, bias_E, top_k)
        actual, actual_margin_T = kernels.allocate_with_margins(scores_TE, bias_E, top_k)
        np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
        np.testing.assert_array_equal(actual_margin_T, margin_T)


@given(st.data())
def test_equals_reference_on_small_tied_batches(data):
    kernels = get_kernels(f"torch:{data.draw(st.sampled_from(DEVICES))}")
    num_experts = data.draw(st.integers(1, 70))
    top_k = data.draw(st.integers(1, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = data.draw(st.integers(1, 2000))
    scores_TE = rng.integers(0, levels, (data.draw(st.integers(1, 40)), num_experts)) / 1024
    scores_TE = scores_TE.astype(data.draw(st.sampled_from(DTYPES)))
    bias_E = rng.integers(-levels, levels, num_experts) / 1024
    expected, actual = assert_equals_reference(kernels, scores_TE, bias_E, top_k)
    assert actual.dual_sum == expected.dual_sum  # dyadic: every sum is exact


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make_scores", SCORES, ids=lambda make: make.__name__)
def test_half_precision_is_rounded_once_and_compared_as_such(make_scores, dtype, device):
    """Numpy has no bfloat16, so the reference routes the rounded sums, which float32 holds exactly."""
    rng = np.random.default_rng(3)
    for num_tokens, num_experts, top_k in [(300, 64, 8), (100, 37, 5), (50, 256, 16)]:
        scores = torch.from_numpy(make_scores(rng, (num_tokens, num_experts))).to(dtype)
        bias = torch.from_numpy(rng.standard_normal(num_experts) / 64)
        biased_TE = (scores.float() + bias.to(dtype).float()).to(dtype).float().numpy()
        expected = reference.allocate(biased_TE, np.zeros(num_experts), top_k)
        experts_TK, load_E, dual_sum = torch_.route(scores.to(device), bias.to(device), top_k)
        np.testing.assert_array_equal(experts_TK.cpu().numpy(), expected.experts_TK)
        np.testing.assert_array_equal(load_E.cpu().numpy(), expected.load_E)
        assert float(dual_sum) == pytest.approx(expected.dual_sum, rel=1e-12, abs=1e-9)


def test_dual_sum_depends_neither_on_threads_nor_on_blocks(monkeypatch):
    kernels = get_kernels("torch:cpu")
    rng = np.random.default_rng(5)
    scores_TE, bias_E = rng.standard_normal((70_001, 12)), rng.standard_normal(12)
    threads = torch.get_num_threads()
    found = set()
    try:
        for count, size in itertools.product((1, 3), (1 << 12, 1 << 18, 1 << 30)):
            torch.set_num_threads(count)
            monkeypatch.setitem(torch_._SCORES_AT_ONCE, "cpu", size)
            found.add(kernels.loads(scores_TE, bias_E, 5)[1])
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
def test_plain_torch_gives_the_same_bits_on_both_devices():
    rng = np.random.default_rng(5)
    scores, bias = torch.from_numpy(rng.standard_normal((70_001, 12))), torch.from_numpy(rng.standard_normal(12))
    here, there = (torch_.route_by_torch(scores.to(device), bias.to(device), 5) for device in ("cpu", "cuda"))
    for left, right in zip(here, there):
        assert torch.equal(left, right.cpu())


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
def test_routing_never_waits_for_the_gpu():
    scores = torch.randn(5000, 64, device="cuda")
    bias = torch.zeros(64, device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch_.route(scores.to(dtype), bias, 8)
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch_.route(scores.to(dtype), bias, 8)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
def test_rows_need_not_follow_one_another(device):
    wide = torch.randn(200, 50, device=device)
    for scores in (wide[:, :20], wide[::2, 3:40], wide[:, ::2], wide.T):
        expected = torch_.route(scores.contiguous(), torch.zeros(scores.shape[1], device=device), 4)
        actual = torch_.route(scores, torch.zeros(scores.shape[1], device=device), 4)
        assert all(torch.equal(left, right) for left, right in zip(expected, actual))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_scores", SCORES, ids=lambda make: make.__name__)
def test_groups_equal_the_reference(kernels, make_scores, dtype):
    rng = np.random.default_rng(8)
    for num_tokens, num_experts, groups in [(200, 64, (6, 8, 4)), (100, 24, (3, 4, 1)), (50, 12, (5, 2, 2))]:
        scores_TE = make_scores(rng, (num_tokens, num_experts)).astype(dtype)
        bias_E = rng.integers(-4, 5, num_experts) / 1024
        expected, actual = (k.allocate_in_groups(scores_TE, bias_E, *groups) for k in (reference, kernels))
        np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
        np.testing.assert_array_equal(actual.load_E, expected.load_E)


def test_inputs_are_not_changed(kernels):
    scores_TE, bias_E = np.random.default_rng(5).standard_normal((50, 8)), np.arange(8.0)
    before = scores_TE.copy(), bias_E.copy()
    kernels.allocate_with_margins(scores_TE, bias_E, 3)
    np.testing.assert_array_equal(scores_TE, before[0])
    np.testing.assert_array_equal(bias_E, before[1])


# ------------------------------------------------------------------------------------- draws and whole runs


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_drawn_scores_are_the_same_bits(kernels, distribution):
    rng = np.random.default_rng(2)
    for num_tokens, num_experts, key in [(1, 1, 7), (4097, 37, 5), (60_000, 16, 2**64 - 3), (3, 600, 2**63)]:
        draw = Draw(distribution, key, num_tokens, rng.standard_normal(num_experts).astype(np.float32))
        actual_TE = kernels.draw_scores(draw).cpu().numpy()
        np.testing.assert_array_equal(actual_TE.view(np.int32), draw.scores().view(np.int32))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_routing_unseen_equals_routing_the_array(kernels, distribution, monkeypatch):
    monkeypatch.setitem(torch_._SCORES_AT_ONCE, kernels.device.type, 1 << 15)
    draw = Draw(distribution, 11, 5000, np.linspace(-1, 1, 20, dtype=np.float32))
    bias_E = np.random.default_rng(1).standard_normal(20)
    load_E, dual_sum = kernels.drawn_loads(draw, bias_E, 3)
    expected_load_E, expected_dual_sum = kernels.loads(draw.scores(), bias_E, 3)
    np.testing.assert_array_equal(load_E, expected_load_E)
    assert dual_sum == expected_dual_sum
    np.testing.assert_array_equal(load_E, numba_.drawn_loads(draw, bias_E, 3)[0])


def assert_same_trajectory(stream, rule, device, **parameters):
    expected, actual = (
        simulate(stream, rule, top_k=3, num_steps=25, seed=4, backend=backend, **parameters)
        for backend in ("numba", f"torch:{device}")
    )
    assert actual.bias_NE.tobytes() == expected.bias_NE.tobytes()
    assert actual.load_NE.tobytes() == expected.load_NE.tobytes()
    assert actual.meta["backend"] == f"torch:{device}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in stream_names() if name != "trace"])
def test_trajectory_is_numbas_on_every_stream(name, device):
    stream = make_stream(name, num_tokens=3000, num_experts=20)
    for rule in (make_rule("sign", 0.01), make_rule("proportional", 0.01)):
        assert_same_trajectory(stream, rule, device)


def test_some_streams_are_drawn():
    assert any(isinstance(make_stream(name), DrawnStream) for name in stream_names() if name != "trace")


@pytest.mark.parametrize("device", DEVICES)
def test_trajectory_is_numbas_on_a_fixed_batch_large_enough_for_lazy_routing(device):
    scores_TE = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)
    assert_same_trajectory(Static(scores_TE), make_rule("sign", 1e-3), device)


@pytest.mark.parametrize("device", DEVICES)
def test_trajectory_is_numbas_with_a_rule_that_sees_scores(device):
    assert_same_trajectory(make_stream("logistic", num_tokens=64, num_experts=8), make_rule("exact"), device)


def test_lazy_routing_is_for_scores_in_host_memory(kernels):
    assert kernels.routes_lazily == (kernels.device.type == "cpu")
    scores_TE = np.random.default_rng(0).standard_normal((20_000, 16))
    scores_TE.flags.writeable = False
    counter, rng = LoadCounter(kernels, 3), np.random.default_rng(1)
    for _ in range(4):
        bias_E = rng.standard_normal(16) * 1e-3
        np.testing.assert_array_equal(counter.loads(scores_TE, bias_E), reference.loads(scores_TE, bias_E, 3)[0])


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("torch:nowhere", "names no torch device"),
        ("torch:meta", "'cpu' and 'cuda' only"),
        ("torch:cuda:99", "CUDA devices here"),
        ("numba:cpu", "unknown backend 'numba:cpu'"),
        ("troch", "did you mean 'torch'"),
    ],
)
def test_unknown_devices_are_refused_by_name(backend, words):
    with pytest.raises(ValueError, match=words):
        get_kernels(backend)


def test_without_a_device_the_gpu_is_taken_if_there_is_one():
    assert get_kernels("torch").device.type == DEVICES[-1]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), "dtype torch.int64"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(0, 4), r"shape \(0, 4\)"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), "token 1, expert 0"),
        (torch.tensor([[0.0, torch.inf]], dtype=torch.bfloat16), r"NaN or \+inf at token 0, expert 1"),
    ],
)
def test_bad_tensors_are_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        torch_.check_tensor(scores)


def test_good_tensors_pass():
    scores = torch.tensor([[0.0, -torch.inf]])
    assert torch_.check_tensor(scores) is scores


@pytest.mark.parametrize(
    ("scores", "bias", "top_k", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(3), 1, r"bias has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(2), 3, "top_k is 3"),
        (torch.zeros(3), torch.zeros(3), 1, r"scores has shape \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int32), torch.zeros(2), 1, "dtype torch.int32"),
    ],
)
def test_bad_arguments_of_route_are_refused(scores, bias, top_k, words):
    with pytest.raises(ValueError, match=words):
        torch_.route(scores, bias, top_k)


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import alflb
try:
    alflb.simulate(alflb.make_stream("uniform"), alflb.make_rule("sign", 0.1), top_k=2, num_steps=1, backend="torch")
except ValueError as error:
    print(error)
"""


def test_without_torch_one_line_names_the_extra():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["backend 'torch' needs torch; install it with: pip install 'alflb[torch]'"]
