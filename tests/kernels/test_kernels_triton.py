"""The Triton kernel where there is no GPU: run by Triton's interpreter, and compiled ahead of time for NVIDIA GPUs.

On a GPU it is what `tests/kernels/test_kernels_torch.py` runs there. The interpreter must be asked for before Triton is
imported, hence the process apart.
"""

import os
import subprocess
import sys

import pytest
from _extras import require

from experiments.benchmarks._triton_facts import compiled, resources

torch = require("torch")
triton = require("triton")
triton_ = require("alflb.kernels.triton_")

pytestmark = pytest.mark.jit  # none of this is numba's

INTERPRETED = """
import sys
from itertools import cycle
import numpy as np
import torch
from alflb.kernels import reference, torch_, triton_

MAKERS = [
    lambda rng, shape: rng.integers(0, 8, shape) / 1024,
    lambda rng, shape: rng.standard_normal(shape),
    lambda rng, shape: np.where(rng.random(shape) < 0.7, -np.inf, rng.integers(0, 99, shape) / 1024),
    lambda rng, shape: np.where(rng.random(shape) < 0.5, -0.0, 0.0),
    lambda rng, shape: rng.integers(-4, 5, shape) * 2.0**-133,
    lambda rng, shape: np.where(rng.random(shape) < 0.1, rng.random(shape) + 1, rng.integers(0, 2, shape) / 4),
    lambda rng, shape: 1 + rng.integers(0, 256, shape) / 128,  # bfloat16 sums that end halfway between two
    lambda rng, shape: rng.choice([-3e38, 3e38, 1e-38, -np.inf], shape),
    lambda rng, shape: np.full(shape, -np.inf),
]
dtype = getattr(torch, sys.argv[1])
shipped = triton_._TILE, triton_.TOKENS
rows = 0
for (num_tokens, num_experts, top_k), make in zip(SHAPES, cycle(MAKERS)):
    rng = np.random.default_rng(num_tokens + num_experts)
    scores = torch.from_numpy(make(rng, (num_tokens, num_experts))).to(dtype)
    bias = torch.from_numpy(rng.integers(-8, 9, num_experts) / 1024).to(dtype)
    biased_TE = (scores + bias).float().numpy()
    expected = reference.allocate(biased_TE, np.zeros(num_experts), top_k)
    small = num_tokens < 100
    triton_._TILE, triton_.TOKENS = shipped if small else (1 << 17, 1024)  # large tiles are interpreted sooner
    parts = torch_.route_by_triton(scores, bias, top_k)
    np.testing.assert_array_equal(parts.experts_TK.numpy(), expected.experts_TK)
    np.testing.assert_array_equal(parts.load_E.numpy(), expected.load_E)
    dual_sum = float(torch_._sum_in_order(parts.dual_C))
    finite = np.abs(biased_TE[np.isfinite(biased_TE)]).sum(dtype=float)
    assert np.isclose(dual_sum, expected.dual_sum, rtol=0, atol=1e-12 * finite), (dual_sum, expected.dual_sum)
    if small:
        unwritten = torch_.route_by_triton(scores, bias, top_k, experts=False)
        assert torch.equal(unwritten.load_E, parts.load_E) and torch.equal(unwritten.dual_C, parts.dual_C)
    rows += num_tokens
print(rows)
"""

SHAPES = [
    (1, 1, 1),
    (5, 7, 7),
    (33, 9, 4),
    *((200 + top_k, 4 * top_k + 1, top_k) for top_k in range(1, 17)),
    *((200, num_experts, 8) for num_experts in (9, 15, 31, 63, 64, 65, 127)),
    (700, 64, 6),
    (120, 255, 8),
    (129, 511, 3),
    (100, 512, 16),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interpreted_kernel_equals_the_reference(dtype):
    code = INTERPRETED.replace("SHAPES", repr(SHAPES))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-W", "error", "-c", code, dtype]
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == sum(num_tokens for num_tokens, _, _ in SHAPES) > 5000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("num_experts", "top_k", "dtype"),
    [(64, 8, "fp32"), (256, 8, "bf16"), (512, 16, "fp32"), (37, 5, "bf16")],
)
def test_compiles_for_hopper_without_spills(num_experts, top_k, dtype):
    """Down to machine code by the assembler in Triton's wheel; whether it is fast only a GPU can say."""
    needs = resources(compiled(num_experts, top_k, dtype))
    assert needs.stack_bytes == needs.spilled_bytes == 0
    assert 0 < needs.registers <= 128
    assert needs.instructions > 100


def test_machine_code_keeps_denormals_and_turns_minus_zero_into_zero():
    additions = [line for line in compiled(64, 8, "fp32").asm["ptx"].splitlines() if "add" in line and ".f32" in line]
    assert not any("ftz" in line for line in additions)
    zeros = sum("0f00000000" in line for line in additions)
    assert zeros == len(additions) / 2 > 0  # score + bias, then + 0
