"""Scores of a trained model on chosen texts. Importing this module needs torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DeepseekV3ForCausalLM

from experiments._moe_settings import Size
from experiments._moe_training import Routers
from experiments._text import Corpus
from experiments.ladder.frozen import Texts


class Frozen(NamedTuple):
    """One router of a trained model."""

    layer: int
    bias_E: NDArray[np.float64]
    texts: Texts


def frozen_routers(folder: Path, size: Size, corpus: Corpus, num_tokens: int, seed: int = 0) -> list[Frozen]:
    """The routers of a model that ``train_moe --keep`` left, each with its scores on five texts of `num_tokens`.

    Raises
    ------
    ValueError
        If the gate of the size is not sigmoid (a saved model does not say which it has), or the text is too short.
    """
    if size.gate != "sigmoid":
        raise ValueError(f"the gate is {size.gate!r}; saved models come back with a sigmoid gate only")
    model = DeepseekV3ForCausalLM.from_pretrained(folder).eval()
    routers = Routers(model, size.gate)
    sequences = _chosen_sequences(corpus, size.sequence, num_tokens, seed)
    scores = {name: _scores(model, routers, ids) for name, ids in sequences.items()}
    return [
        Frozen(layer, routers.bias_E(layer), Texts(**{name: of[layer] for name, of in scores.items()}))
        for layer in routers.gates
    ]


def _chosen_sequences(corpus: Corpus, length: int, num_tokens: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Sequences of the fields of `Texts`; the three texts from training have none in common."""
    rng = np.random.default_rng(seed)
    held_out, training = (_blocks(ids, length) for ids in (corpus.validation_ids, corpus.training_ids))
    count = num_tokens // length
    if count > len(held_out) or 3 * count > len(training):
        raise ValueError(
            f"the text has {len(held_out)} and {len(training)} sequences; for {num_tokens} tokens it takes {count} "
            f"held out and {3 * count} in training, so give more text or ask for fewer tokens"
        )
    start = int(rng.integers(len(training) - count + 1))
    others = rng.permutation(np.setdiff1d(np.arange(len(training)), np.arange(start, start + count)))
    return {
        "held_out_STE": held_out[:count],
        "held_out_mixed_STE": held_out[np.sort(rng.choice(len(held_out), count, replace=False))],
        "training_STE": training[start : start + count],
        "training_mixed_STE": training[np.sort(others[:count])],
        "practice_STE": training[np.sort(others[count : 2 * count])],
    }


def _blocks(ids: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    return ids[: len(ids) // length * length].reshape(-1, length).astype(np.int64)


def _scores(model: Any, routers: Routers, sequences: NDArray[np.int64]) -> dict[int, NDArray[np.float32]]:
    """Scores by layer, shape (sequences, tokens, E)."""
    scores: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in routers.gates}
    with torch.no_grad():
        for start in range(0, len(sequences), 8):
            part = sequences[start : start + 8]
            with routers.recording() as routed:
                model(input_ids=torch.from_numpy(part))
            for layer, routing in routed.items():
                scores[layer].append(routing.scores_TE().reshape(*part.shape, -1))
    return {layer: np.concatenate(parts) for layer, parts in scores.items()}
