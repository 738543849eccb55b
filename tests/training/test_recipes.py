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
    balancer = LoadBalancer.for_layers(dict.fromkeys(layers, NUM_EXPERTS), top_k=2, schedule=0.25, rule="sign")
    load_E = np.array([5, 1, 3, 3, 3, 3, 3, 3])
    getattr(layers["first"], counts).add_(torch.from_numpy(load_E))
    getattr(layers["second"], counts).add_(torch.from_numpy(load_E[::-1].copy()))
    report = balance(layers, balancer, counts, bias)
    assert report.layers[1].load_E.tolist() == load_E[::-1].tolist()
    assert getattr(layers["first"], bias).tolist() == (0.25 * np.sign(3 - load_E)).tolist()
    assert not getattr(layers["first"], counts).any()


def inputs(step, size=NUM_EXPERTS):
    """Tokens (64, D) of a step; with an identity for a gate, experts with a higher number are more popular."""
    x = np.random.default_rng(step).normal(size=(64, size)).astype("f4")
    return torch.from_numpy(x) + torch.linspace(0, 0.5, size)


def test_olmo_core_is_balanced_by_the_recipe_as_by_itself(balance):
    """Two of their routers on the same inputs: one moved by their `post_batch`, one by the recipe."""
    module = parity().olmo_module("moe.router")

    def router():
        made = module.MoELinearRouter(
            d_model=NUM_EXPERTS, num_experts=NUM_EXPERTS, top_k=2, bias_gamma=2.0**-6, dtype=torch.float32,
            gating_function=module.MoERouterGatingFunction.sigmoid,
        )  # fmt: skip
        made.weight.data.copy_(torch.eye(NUM_EXPERTS).flatten())
        return made.train()

    theirs, ours = router(), router()
    balancer = LoadBalancer.for_layers({"router": NUM_EXPERTS}, top_k=2, schedule=2.0**-6, rule="sign")
    for step in range(20):
        for one in (theirs, ours):
            one(inputs(step)[None])
        theirs.post_batch()
        balance({"router": ours}, balancer, "score_bias_batch_size_per_expert", "score_bias")
        assert torch.equal(theirs.score_bias, ours.score_bias)
    assert theirs.score_bias.any()


@pytest.mark.filterwarnings("ignore")  # of their configuration's defaults
def test_megatron_core_is_balanced_by_the_recipe_as_by_itself(balance, one_process, monkeypatch):
    """Two of their routers; one is moved as `finalize_model_grads` moves it, one by the recipe.

    Their constructor asks CUDA for a device, and without TransformerEngine 0.16.1 does not define a name it asks for.
    """
    moe_utils = require("megatron.core.transformer.moe.moe_utils")
    routers = require("megatron.core.transformer.moe.router")
    config = require("megatron.core.transformer.transformer_config").TransformerConfig(
        num_layers=1, hidden_size=NUM_EXPERTS, num_attention_heads=2, num_moe_experts=NUM_EXPERTS, moe_router_topk=2,
        moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True,
        moe_router_load_balancing_type="none", use_cpu_initialization=True, add_bias_linear=False,
        moe_ffn_hidden_size=NUM_EXPERTS,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    parallel_state = require("megatron.core.parallel_state")
    parallel_state.initialize_model_parallel()
    try:
        theirs, ours = (routers.TopKRouter(config, moe_utils.get_default_pg_collection()).train() for _ in range(2))
        balancer = LoadBalancer.for_layers({"router": NUM_EXPERTS}, top_k=2, schedule=2.0**-6, rule="sign")
        for router in (theirs, ours):
            router.weight.data.copy_(torch.eye(NUM_EXPERTS))
        for step in range(20):
            with torch.compiler.set_stance("force_eager"):
                for router in (theirs, ours):
                    router(inputs(step)[:, None])
            moved = moe_utils.get_updated_expert_bias(theirs.local_tokens_per_expert, theirs.expert_bias, 2.0**-6)
            theirs.expert_bias.copy_(moved)
            theirs.local_tokens_per_expert.zero_()
            balance({"router": ours}, balancer, "local_tokens_per_expert", "expert_bias")
            assert torch.equal(theirs.expert_bias, ours.expert_bias)
        assert theirs.expert_bias.any()
    finally:
        parallel_state.destroy_model_parallel()


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_torchtitan_is_balanced_by_the_recipe_as_by_itself(balance, one_process):
    """Two of their MoE layers, experts and all; one is moved by their optimizer hook, one by the recipe."""
    moe = require("torchtitan.models.common.moe")
    dispatcher = require("torchtitan.models.common.token_dispatcher").LocalTokenDispatcher
    optimizers = require("torchtitan.components.optimizer")
    distributed = require("torchtitan.distributed")

    def layer():
        experts = moe.GroupedExperts.Config(dim=16, hidden_dim=16, num_experts=NUM_EXPERTS)
        built = moe.MoE.Config(
            num_experts=NUM_EXPERTS,
            routed_experts=moe.RoutedExperts.Config(
                inner_experts=experts, token_dispatcher=dispatcher.Config(num_experts=NUM_EXPERTS, top_k=2)
            ),
            router=moe.TokenChoiceTopKRouter.Config(
                num_experts=NUM_EXPERTS, gate=moe.Linear.Config(in_features=16, out_features=NUM_EXPERTS), top_k=2
            ),
            load_balance_coeff=2.0**-6,
        ).build()
        for parameter in built.parameters():
            parameter.data.zero_()
        built.router.gate.weight.data[:, :NUM_EXPERTS] = torch.eye(NUM_EXPERTS)
        return built.train()

    theirs, ours = layer(), layer()
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleDict({"0": torch.nn.Module()})
    model.layers["0"].moe_enabled, model.layers["0"].moe = True, theirs
    frozen = optimizers.ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.0})
    container = optimizers.OptimizersContainer(
        optimizers.OptimizersContainer.Config(param_groups=[frozen], implementation="for-loop"), model_parts=[model]
    )
    one_rank = distributed.ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, world_size=1)
    optimizers.register_moe_load_balancing_hook(container, [model], one_rank)
    balancer = LoadBalancer.for_layers({"moe": NUM_EXPERTS}, top_k=2, rule="recentred_sign", schedule=2.0**-6)
    for step in range(20):
        for one in (theirs, ours):
            one(inputs(step, 16)[None])
        container.step()
        balance({"moe": ours}, balancer, "tokens_per_expert_E", "expert_bias_E")
        assert torch.equal(theirs.expert_bias_E, ours.expert_bias_E)
    assert theirs.expert_bias_E.any()


def parity():
    """What the comparisons with production code share."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    import _parity

    return _parity


@pytest.fixture
def one_process():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
