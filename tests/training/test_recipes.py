"""The recipe of docs/training.md for other trainers, on their modules or on buffers with their names."""

import importlib.metadata
import re
from pathlib import Path

import numpy as np
import pytest

from tests._extras import require
from tests.training.models import torch, training

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()
LoadBalancer = training.LoadBalancer
NUM_EXPERTS = 8


@pytest.fixture
def balance():
    (recipe,) = re.findall(r"```python\n(def balance\(.*?)```", PAGE, flags=re.DOTALL)
    assert len(recipe.strip().splitlines()) <= 10
    names = {"torch": torch}
    exec(recipe, names)
    return names["balance"]


def rows():
    return re.findall(r"^\| ([\w-]+) ([\d.]+) \| `\w+` \| `(\w+)` \| `(\w+)` \|", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_names_in_the_table_are_those_of_the_package(row):
    package, version, counts, bias = row
    require({"megatron-core": "megatron.core", "torchtitan": "torchtitan", "ai2-olmo-core": "olmo_core"}[package])
    if importlib.metadata.version(package) != version:
        pytest.skip(f"the page is of {package} {version}")
    files = importlib.metadata.files(package)
    text = "".join(file.read_text() for file in files if re.search(r"moe/router\.py$|common/moe\.py$", str(file)))
    assert re.search(rf"\b{counts}\b", text)
    assert re.search(rf"['\"]{bias}['\"]", text)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_recipe_moves_buffers_of_these_names(row, balance):
    _, _, counts, bias = row
    layers = {}
    for name in ("first", "second"):
        layers[name] = torch.nn.Module()
        layers[name].register_buffer(counts, torch.zeros(NUM_EXPERTS))
        layers[name].register_buffer(bias, torch.zeros(NUM_EXPERTS))
    balancer = LoadBalancer.for_layers(dict.fromkeys(layers, NUM_EXPERTS), top_k=2, schedule=0.25)
    load_E = np.array([5, 1, 3, 3, 3, 3, 3, 3])
    getattr(layers["first"], counts).add_(torch.from_numpy(load_E))
    getattr(layers["second"], counts).add_(torch.from_numpy(load_E[::-1].copy()))
    report = balance(layers, balancer, counts, bias)
    assert report.layers[1].load_E.tolist() == load_E[::-1].tolist()
    assert getattr(layers["first"], bias).tolist() == (0.25 * np.sign(3 - load_E)).tolist()
    assert not getattr(layers["first"], counts).any()


def test_olmo_core_is_balanced_by_the_recipe_as_by_itself(balance):
    """Two of their routers on the same inputs: one moved by their `post_batch`, one by the recipe."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    from _parity import olmo_module

    module = olmo_module("moe.router")

    def router():
        made = module.MoELinearRouter(
            d_model=NUM_EXPERTS, num_experts=NUM_EXPERTS, top_k=2, bias_gamma=2.0**-6, dtype=torch.float32,
            gating_function=module.MoERouterGatingFunction.sigmoid,
        )  # fmt: skip
        made.weight.data.copy_(torch.eye(NUM_EXPERTS).flatten())
        return made.train()

    theirs, ours = router(), router()
    balancer = LoadBalancer.for_layers({"router": NUM_EXPERTS}, top_k=2, schedule=2.0**-6)
    for step in range(20):
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(1, 64, NUM_EXPERTS)).astype("f4"))
        for one in (theirs, ours):
            one(x + torch.linspace(0, 0.5, NUM_EXPERTS))
        theirs.post_batch()
        balance({"router": ours}, balancer, "score_bias_batch_size_per_expert", "score_bias")
        assert torch.equal(theirs.score_bias, ours.score_bias)
    assert theirs.score_bias.any()
