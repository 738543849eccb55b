"""One run, and the files that other tools would have made of it."""

import base64
import io
import json
from typing import NamedTuple

import numpy as np

from tests._extras import require

STEPS, LAYERS, EXPERTS, TOP_K, TOKENS = 24, 2, 4, 2, 20
PICKS_NLTK = np.argsort(
    np.random.default_rng(0).random((STEPS, LAYERS, TOKENS, EXPERTS)) + np.linspace(0, 0.4, EXPERTS), axis=-1
)[..., -TOP_K:]
"""Chosen experts of a run: by step, layer and token."""
LOADS_LNE = np.array(
    [[np.bincount(step.ravel(), minlength=EXPERTS) for step in PICKS_NLTK[:, layer]] for layer in range(LAYERS)]
)
BIAS_LNE = np.concatenate(
    [np.zeros((LAYERS, 1, EXPERTS)), np.cumsum(0.01 * np.sign(TOKENS * TOP_K / EXPERTS - LOADS_LNE), axis=1)], axis=1
)
LABELS = ["layer_00", "layer_01"]


class Export(NamedTuple):
    """A file or folder of another tool."""

    path: object
    hints: dict
    loads_LNE: np.ndarray = LOADS_LNE
    biases: slice | None = None
    """Which of the run's biases can be known from it."""


def scalars(kind_of_load="tokens", bias=None):
    """Names and values by step of one series per layer and expert."""
    series = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            series[f"moe/layer_{layer}/{kind_of_load}/expert_{expert}"] = LOADS_LNE[layer, :, expert].tolist()
            if bias is not None:
                series[f"moe/layer_{layer}/bias/expert_{expert}"] = BIAS_LNE[layer, bias, expert].tolist()
    return series


AFTER, IN_FORCE = slice(1, None), slice(None, -1)


def wandb_csv(folder):
    """What W&B's interface exports: the run before each name, and the extremes beside it."""
    series = scalars(bias=AFTER)
    header = [
        "Step",
        *(f"{kind}" for name in series for kind in (f"r1 - {name}", f"r1 - {name}__MIN", f"r1 - {name}__MAX")),
    ]
    rows = [[n + 1, *(value for values in series.values() for value in 3 * [values[n]])] for n in range(STEPS)]
    path = folder / "wandb.csv"
    path.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows]))
    return Export(path, {}, biases=AFTER)


def wandb_history(folder):
    """Rows of a run's history: calls of ``log`` with other things in them, nested names, missing values."""
    series, lines = scalars(bias=IN_FORCE), []
    for n in range(STEPS):
        lines.append({"_step": 3 * n, "_runtime": 0.5 * n, "global_step": n, "train": {"loss": 1 / (n + 1)}})
        moved = {name: values[n] for name, values in series.items()}
        lines.append({"_step": 3 * n + 1, "global_step": n, **moved, "lr": 1e-3, "eval/acc1": None})
    lines.append({"_step": 3 * STEPS, "eval/acc1": float("nan")})
    path = folder / "history.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return Export(path, {}, biases=IN_FORCE)


def lists_per_layer(folder):
    """One list per layer and step, as loggers in plain Python write them."""
    lines = [
        {
            "step": n + 1,
            **{
                f"decoder.layers.{layer}.mlp.tokens_per_expert": LOADS_LNE[layer, n].tolist() for layer in range(LAYERS)
            },
            **{f"decoder.layers.{layer}.mlp.expert_bias": BIAS_LNE[layer, n + 1].tolist() for layer in range(LAYERS)},
        }
        for n in range(STEPS)
    ]
    path = folder / "lists.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return Export(path, {}, biases=AFTER)


def tensorboard_frame(folder):
    """A data frame of TensorBoard's scalars, long."""
    rows = [("run1", tag, n, values[n], 1.5e9 + n) for tag, values in scalars("load").items() for n in range(STEPS)]
    path = folder / "scalars.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [("run", "tag", "step", "value", "wall_time"), *rows]))
    return Export(path, {})


def tensorboard_downloads(folder):
    """What TensorBoard's interface downloads: one file per tag, named by it."""
    where = folder / "downloads"
    where.mkdir()
    for name, values in scalars("load").items():
        rows = [f"{1.5e9 + n},{n},{values[n]}" for n in range(STEPS)]
        (where / f"run-train-tag-{name.replace('/', '_')}.csv").write_text("\n".join(["Wall time,Step,Value", *rows]))
    return Export(where, {})


def tidy_csv(folder):
    """A row per step, layer and expert; experts without tokens have none."""
    rows = [
        (n + 1, layer, expert, LOADS_LNE[layer, n, expert])
        for n in range(STEPS) for layer in range(LAYERS) for expert in range(EXPERTS)
        if LOADS_LNE[layer, n, expert]
    ]  # fmt: skip
    path = folder / "tidy.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [("iteration", "layer", "expert", "count"), *rows]))
    return Export(path, {})


def early_sglang_csv(folder):
    """Sums of a recording: layer, expert, count."""
    total_LE = LOADS_LNE.sum(axis=1)
    rows = [f"{layer},{expert},{total_LE[layer, expert]}" for layer in range(LAYERS) for expert in range(EXPERTS)]
    path = folder / "expert_distribution_rank0.csv"
    path.write_text("\n".join(["layer_id,expert_id,count", *rows]))
    return Export(path, {}, total_LE[:, None])


def shares_parquet(folder):
    """Shares of the load, which batch_tokens and top_k make tokens of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    series = {name: np.array(values) / (TOKENS * TOP_K) for name, values in scalars("frac").items()}
    pq.write_table(pa.table({"step": np.arange(STEPS), **series}), folder / "shares.parquet")
    return Export(folder / "shares.parquet", {"batch_tokens": TOKENS, "top_k": TOP_K})


def megatron(folder, *, sidecar=False):
    """Two ranks, each with half of the tokens in two micro-batches."""
    where = folder / f"megatron{sidecar}"
    where.mkdir()
    for rank in range(2):
        lines = []
        for n in range(STEPS):
            for layer in range(LAYERS):
                for half in np.split(PICKS_NLTK[n, layer, rank::2], 2):
                    record = {"step": n, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank,
                              "num_tokens": len(half), "topk": TOP_K, "top_indices": half.tolist()}  # fmt: skip
                    if sidecar:
                        record |= {"logit_offset": 0, "logit_bytes": 4, "logit_shape": [len(half), EXPERTS]}
                    lines.append(json.dumps(record))
        (where / f"router_trace_rank{rank}.jsonl").write_text("\n".join(lines))
        (where / f"logits_rank{rank}.bin").write_bytes(b"not read")
    return Export(where, {} if sidecar else {"num_experts": EXPERTS})


def megatron_with_logits(folder):
    return megatron(folder, sidecar=True)


def sglang_stat(folder):
    torch = require("torch")
    path = folder / "expert_distribution_recorder_1.0.pt"
    counts = torch.from_numpy(LOADS_LNE.transpose(1, 0, 2).copy()).int()
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, path)
    return Export(path, {})


def sglang_per_token(folder):
    """Two ranks' records; expert 1 has a replica, which has the last place."""
    torch = require("torch")
    where = folder / "sglang"
    where.mkdir()
    physical = torch.tensor([[0, 1, 2, 3, 1]] * LAYERS)
    for rank in range(2):
        records = []
        for n in range(STEPS):
            picks = PICKS_NLTK[n, :, rank::2].copy()
            picks[:, ::2][picks[:, ::2] == 1] = 4
            counts = np.array([np.bincount(layer.ravel(), minlength=EXPERTS + 1) for layer in picks])
            record = {"forward_pass_id": n, "rank": rank, "gatherer_key": "primary", "input_ids": [1, 2],
                      "global_physical_count": torch.from_numpy(counts).int(), "misc_objects": []}  # fmt: skip
            records.append(record)
        data = {"records": records, "last_physical_to_logical_map": physical}
        torch.save(data, where / f"expert_distribution_recorder_1.0_{rank}.pt")
    return Export(where, {})


def vllm_window(folder):
    path = folder / "eplb.npz"
    np.savez(path, expert_load_window=LOADS_LNE.transpose(1, 0, 2), physical_to_logical_map=[[0, 1, 2, 3]] * LAYERS)
    return Export(path, {})


def responses(folder, encode, name, hints):
    """One response per step, with chosen experts (tokens, layers, K)."""
    lines = []
    for n in range(STEPS):
        experts_TLK = PICKS_NLTK[n].transpose(1, 0, 2).astype(np.int32)
        lines.append(json.dumps(encode(experts_TLK)))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return Export(path, {"num_experts": EXPERTS, **hints})


def vllm_lists(folder):
    return responses(folder, lambda ids: {"choices": [{"index": 0, "routed_experts": ids.tolist()}]}, "lists", {})


def vllm_base64(folder):
    def encode(ids):
        content = io.BytesIO()
        np.save(content, ids.astype(np.uint8))
        return {"choices": [{"routed_experts": base64.b64encode(content.getvalue()).decode()}]}

    return responses(folder, encode, "base64", {})


def sglang_base64(folder):
    def encode(ids):
        text = base64.b64encode(ids.tobytes()).decode()
        return {"meta_info": {"prompt_tokens": 8, "completion_tokens": TOKENS - 7, "routed_experts": text}}

    return responses(folder, encode, "int32", {"top_k": TOP_K})


EXPORTS = [
    wandb_csv, wandb_history, lists_per_layer, tensorboard_frame, tensorboard_downloads, tidy_csv, early_sglang_csv,
    shares_parquet, megatron, megatron_with_logits, sglang_stat, sglang_per_token, vllm_window, vllm_lists,
    vllm_base64, sglang_base64,
]  # fmt: skip
