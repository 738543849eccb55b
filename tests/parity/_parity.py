"""What the comparisons with production code share: load sequences, our side of the trajectory, and their modules."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from _extras import require
from hypothesis import strategies as st

import alflb
from alflb.rules import Observation

EXACT_PICKS = 2**24
"""Their counts and means are float32: exact for batches of fewer picks (K T) than this."""


@st.composite
def load_sequences(draw, *, experts=None, max_steps=8):
    """Loads (N, E) of batches of one size: skewed, even, exactly balanced, or collapsed onto few experts."""
    num_experts = draw(st.integers(2, 300) if experts is None else experts)
    mean = draw(st.sampled_from([1, 7, 512, 40_960, (EXACT_PICKS - 1) // num_experts]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(["skewed", "even", "balanced", "collapsed"]), min_size=1, max_size=max_steps))
    return np.array([one_load(rng, kind, num_experts, mean) for kind in kinds])


def one_load(rng, kind, num_experts, mean):
    """One load vector of mean * num_experts picks in all."""
    if kind == "balanced":
        return np.full(num_experts, mean)
    concentration = {"skewed": 1.0, "even": 1e6, "collapsed": 0.01}[kind]
    share_E = rng.gamma(concentration, size=num_experts) + 1e-300
    return rng.multinomial(mean * num_experts, share_E / share_E.sum())


def our_step(rule, bias_E, load_E, t=1):
    """One update of our rule on a float32 bias: computed in float64, as always, and stored in float32."""
    target_E = np.full(len(load_E), load_E.sum() / len(load_E))
    seen = Observation(t, target_E, load_E=load_E)
    new_bias_E, _ = rule.step(bias_E.astype(np.float64), seen, rule.init(len(load_E)))
    return new_bias_E.astype(np.float32)


def our_rule(name, step_size):
    """Our rule with the step size their code has: a Python float multiplied into a float32 tensor becomes float32."""
    return alflb.make_rule(name, schedule=float(np.float32(step_size)))


def our_biases(name, step_size, load_NE):
    """Float32 biases (N, E) after each load, from zero."""
    rule = our_rule(name, step_size)
    bias_E, biases = np.zeros(load_NE.shape[1], dtype=np.float32), []
    for load_E in load_NE:
        bias_E = our_step(rule, bias_E, load_E)
        biases.append(bias_E)
    return np.array(biases)


def assert_same_bits(theirs, ours):
    """Equal as numbers and in every bit but the sign of zero, dtype included."""
    assert theirs.dtype == ours.dtype
    np.testing.assert_array_equal(theirs, ours)


def tie_free(scores_TE, bias_E, top_k, n_group=1, topk_group=1):
    """Tokens (T,) whose choice no tie decides: of groups, and of experts within the groups that are kept."""
    num_tokens, num_experts = scores_TE.shape
    biased_TE = scores_TE + bias_E.astype(scores_TE.dtype)
    decided_T = np.ones(num_tokens, dtype=bool)
    if topk_group < n_group:
        best_two = np.sort(biased_TE.reshape(num_tokens, n_group, -1), axis=2)[:, :, -2:]
        group_score_TG = best_two[:, :, 0] + best_two[:, :, 1]
        sorted_TG = np.sort(group_score_TG, axis=1)[:, ::-1]
        decided_T &= sorted_TG[:, topk_group - 1] > sorted_TG[:, topk_group]
        kept_TG = group_score_TG >= sorted_TG[:, topk_group - 1, None]
        kept_TE = np.repeat(kept_TG, num_experts // n_group, axis=1)
        biased_TE = np.where(kept_TE, biased_TE, -np.inf)
    if top_k < num_experts // n_group * topk_group:
        sorted_TE = np.sort(biased_TE, axis=1)[:, ::-1]
        decided_T &= sorted_TE[:, top_k - 1] > sorted_TE[:, top_k]
    return decided_T


def olmo_module(name: str) -> ModuleType:
    """A module below ``olmo_core.nn``, such as "moe.router", without everything else OLMo-core can do.

    ``olmo_core.nn`` imports data loading and cloud storage from its ``__init__``. So its packages are entered without
    running their ``__init__`` files, and ``cached_path``, with which OLMo-core downloads configuration files, is
    replaced by a function that raises. The module itself, and all it imports, is OLMo-core's own code, unchanged.
    """
    require("olmo_core")
    root = Path(importlib.util.find_spec("olmo_core").submodule_search_locations[0])
    for package in ("nn", "nn.moe", "nn.moe.v2"):
        bare = ModuleType(f"olmo_core.{package}")
        bare.__path__ = [str(root.joinpath(*package.split(".")))]
        sys.modules.setdefault(bare.__name__, bare)
    if importlib.util.find_spec("cached_path") is None:
        stand_in = ModuleType("cached_path")
        stand_in.cached_path = _no_downloads
        sys.modules["cached_path"] = stand_in
    try:
        return require(f"olmo_core.nn.{name}")
    finally:
        if getattr(sys.modules.get("cached_path"), "cached_path", None) is _no_downloads:
            del sys.modules["cached_path"]


def _no_downloads(*_, **__):
    raise AssertionError("these tests download nothing")
