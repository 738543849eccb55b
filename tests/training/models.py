"""Tiny models of real classes, and real text as bytes.

The tests import torch, transformers and `alflb.training` from here, where they are required or skipped.
"""

# ruff: noqa: C408  # a config as dict(a=1) reads like the call it becomes

import re
from pathlib import Path

import numpy as np

from tests._extras import require

torch = require("torch")
transformers = require("transformers")
training = require("alflb.training")
require("alflb.training.memory")

torch.set_num_threads(1)  # tiny models are only slowed down by more

ROOT = Path(__file__).parents[2]
NUM_EXPERTS, TOP_K, NUM_LAYERS = 8, 2, 3
BATCH, LENGTH = 2, 24

_COMMON = dict(
    vocab_size=256, hidden_size=32, num_hidden_layers=NUM_LAYERS, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=64, num_experts_per_tok=TOP_K, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    use_cache=False,
)  # fmt: skip
_DENSE = dict(intermediate_size=32, moe_intermediate_size=16)
_FULL_ATTENTION = ["full_attention"] * NUM_LAYERS
_SPARSE = dict(mlp_layer_types=["dense"] + ["sparse"] * (NUM_LAYERS - 1))

CONFIGS = {
    "deepseek_v3": dict(
        _DENSE, n_routed_experts=NUM_EXPERTS, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "glm4_moe": dict(_DENSE, n_routed_experts=NUM_EXPERTS, first_k_dense_replace=1, head_dim=16),
    "dots1": dict(_DENSE, n_routed_experts=NUM_EXPERTS, first_k_dense_replace=1, n_shared_experts=1),
    "exaone_moe": dict(_DENSE, num_experts=NUM_EXPERTS, layer_types=_FULL_ATTENTION, **_SPARSE),
    "minimax_m2": dict(intermediate_size=16, num_local_experts=NUM_EXPERTS, head_dim=16),
    "lfm2_moe": dict(
        _DENSE, num_experts=NUM_EXPERTS, num_dense_layers=1, layer_types=["conv", "conv", "full_attention"]
    ),
    "ernie4_5_moe": dict(_DENSE, moe_num_experts=NUM_EXPERTS, moe_k=TOP_K),
    "afmoe": dict(_DENSE, num_experts=NUM_EXPERTS, head_dim=16, layer_types=_FULL_ATTENTION),
    "laguna": dict(
        _DENSE, num_experts=NUM_EXPERTS, shared_expert_intermediate_size=16, head_dim=16, layer_types=_FULL_ATTENTION,
        **_SPARSE,
    ),
    "hy_v3": dict(_DENSE, num_experts=NUM_EXPERTS, head_dim=16, **_SPARSE),
    "qwen3_moe": dict(_DENSE, num_experts=NUM_EXPERTS, head_dim=16),
    "olmoe": dict(intermediate_size=16, num_experts=NUM_EXPERTS),
    "mixtral": dict(intermediate_size=16, num_local_experts=NUM_EXPERTS, head_dim=16),
}  # fmt: skip
BIASED = [name for name in CONFIGS if name not in ("qwen3_moe", "olmoe", "mixtral")]


def make_model(name="deepseek_v3", seed=0, **overrides):
    """A tiny model of a real class with random weights, in training mode."""
    config = transformers.AutoConfig.for_model(name, **{**_COMMON, **CONFIGS[name], **overrides})
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).train()


class Feed(torch.nn.Module):
    """The least that can be balanced: it takes picks, returns them, and owns a bias."""

    def __init__(self, num_experts=NUM_EXPERTS):
        super().__init__()
        self.bias = torch.nn.Buffer(torch.zeros(num_experts))

    def forward(self, picks):
        return picks


training.describe_router(Feed, bias="bias", argument="picks")


def feeds(num_layers=2):
    """A model of a few `Feed` layers, named "0", "1", ..."""
    return torch.nn.Sequential(*(Feed() for _ in range(num_layers)))


def feed(model, balancer, steps):
    """Steps t in `steps` on picks that only t decides, the same for every layer; the reports."""
    reports = []
    for t in steps:
        scores = np.random.default_rng(t).random((50, NUM_EXPERTS)) + np.linspace(0, 0.5, NUM_EXPERTS)
        model(torch.from_numpy(np.argsort(scores)[:, -TOP_K:].copy()))
        reports.append(balancer.step())
    return reports


def text_batches(num_batches, batch=BATCH, length=LENGTH):
    """Consecutive pieces of the license text as bytes, shape (num_batches, batch, length)."""
    text = re.sub(rb"\s+", b" ", (ROOT / "LICENSE").read_bytes())
    size = num_batches * batch * length
    return torch.tensor(list(text[:size])).view(num_batches, batch, length)


def bias_tensors(model):
    """Every selection bias of a model by path, whatever it is called."""
    names = ("e_score_correction_bias", "expert_bias")
    tensors = dict(model.named_buffers()) | dict(model.named_parameters())
    return {name: tensor for name, tensor in tensors.items() if name.endswith(names)}


def train(model, balancer, batches, optimizer=None):
    """Ordinary training steps, one batch each; the reports of the balancer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    reports = []
    for batch in batches:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        reports.append(balancer.step())
    return reports


def enable_checkpointing(model, use_reentrant):
    """Activation checkpointing under whichever of its two names this transformers has."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
