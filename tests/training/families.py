"""The MoE blocks of every model family in the installed transformers, tiny and with random weights."""

import ast
import contextlib
import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

from tests.training.models import NUM_EXPERTS, TOP_K, torch, training, transformers

HIDDEN, TOKENS = 16, 24
LAYER = 3
"""Place of the block in its model, for those that ask: one that chooses by scores also where the first do not."""

SMALL = {
    "hidden_size": HIDDEN, "d_model": HIDDEN, "intermediate_size": 8, "moe_intermediate_size": 8, "ffn_hidden_size": 8,
    "expert_ffn_hidden_size": 8, "shared_expert_intermediate_size": 8, "moe_shared_expert_intermediate_size": 8,
    "intermediate_size_mlp": 8, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 64, "head_dim": 8, "zero_expert_num": 2, "mlp_expansion": 8, "moe_latent_size": 8,
    "shared_intermediate_size": 8, "moe_shared_intermediate_size": 8, "kv_channels": 8,
    "num_experts": NUM_EXPERTS, "num_local_experts": NUM_EXPERTS, "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "moe_topk": TOP_K, "moe_top_k": TOP_K, "moe_k": TOP_K,
    "top_k_experts": TOP_K, "part_features": 4, "n_group": 1, "topk_group": 1, "num_shared_experts": 1,
    "n_shared_experts": 1,
}  # fmt: skip
"""Sizes by the names that configs give them; a config takes those that it has."""

IN_CHECKPOINTS_ONLY = {"Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 8}}
"""What a block reads from its config and only checkpoints set, by class of config."""

CALLS = {
    "JetMoeMoA": lambda block, x: block.map(x)[0],
    "JetMoeAttention": lambda block, x: block(x, position_embeddings=(torch.ones_like(x[..., :8]),) * 2),
    "VitPoseBackboneMoeMLP": lambda block, x: block(x, torch.zeros(len(x), dtype=torch.int64)),
}
"""How to call blocks that take more than hidden states."""

WHOLE_LAYERS = ("gemma4", "diffusion_gemma")

_OWNS_EXPERTS = re.compile(r"self\.experts = \w+\(|self\.router = \w*Gating\(")


class Row(NamedTuple):
    """What the balancer makes of one class of block."""

    family: str
    block: str
    verdict: str


def examine_all():
    """A row for every class of transformers that owns a module of experts, in the order of their names."""
    return [examine(family, cls, configs) for family, cls, configs in moe_blocks()]


def moe_blocks():
    """Family, class of block, and the classes of configs to try."""
    for file in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        family = file.parent.name
        text = file.read_text()
        if file.stem != f"modeling_{family}" or not _OWNS_EXPERTS.search(text):
            continue
        sources = class_sources(text)
        module = importlib.import_module(f"transformers.models.{family}.{file.stem}")
        configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
        configs = [value for value in vars(configuration).values() if is_own(value, configuration)]
        for cls in vars(module).values():
            own = is_own(cls, module) and issubclass(cls, torch.nn.Module)
            if own and is_block(family, cls.__name__, sources[cls.__name__]):
                yield family, cls, configs


def class_sources(text):
    """The source of every class of a file by name; `inspect.getsource` would parse the file once per class."""
    lines = text.splitlines()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in classes}


def is_block(family, name, source):
    """Whether a class owns experts; where those belong to a whole decoder layer, its router is taken instead."""
    if family in WHOLE_LAYERS:
        return name.endswith("Router")
    return _OWNS_EXPERTS.search(source) is not None


def is_own(value, module):
    return inspect.isclass(value) and value.__module__ == module.__name__


def examine(family, cls, configs):
    """Build a block, balance it, with an added bias if it has none, and check what the table will say."""
    block = build(cls, configs)
    if block is None:
        return Row(family, cls.__name__, "not examined: the block cannot be built alone")
    x = torch.randn(2, TOKENS // 2, HIDDEN)
    try:
        before = outputs(block, x)
    except Exception:  # a block that needs more than hidden states
        return Row(family, cls.__name__, "not examined: the block cannot be called with hidden states alone")
    model = torch.nn.ModuleDict({"mlp": block})
    try:
        balancer = training.LoadBalancer.attach(model, "sign", 10.0)
        verdict = f"works: `{training.find_routers(model)[0].layout.bias}`"
    except ValueError:
        try:
            balancer = training.LoadBalancer.attach(model, "sign", 10.0, add_bias=True)
        except ValueError as error:
            return Row(family, cls.__name__, f"refused: {str(error).split(': ', 1)[-1].splitlines()[0]}")
        verdict = "opt-in: `add_bias=True`"
    assert torch.equal(outputs(block, x), before), f"{cls.__name__}: attaching changed an output"
    check_that_it_steers(balancer, block, x)
    return Row(family, cls.__name__, verdict)


def check_that_it_steers(balancer, block, x):
    """Every token is counted K times; a step of 10 then sends all of them to experts that had fewer than the mean."""
    first = balancer.step().layers[0]
    assert first.load_E.sum() == TOKENS * first.top_k
    outputs(block, x)
    second = balancer.step().layers[0]
    poor_E = first.load_E < first.load_E.mean()
    assert second.load_E[poor_E].sum() == second.load_E.sum() or poor_E.sum() < first.top_k


def build(cls, configs):
    """A block with random weights in training mode, from the first config that it takes; None if there is none."""
    required = [p for p in list(inspect.signature(cls.__init__).parameters.values())[2:] if p.default is p.empty]
    extra = [LAYER] * sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in required)
    for config in configs:
        torch.manual_seed(0)
        with contextlib.suppress(Exception):
            sized = small(config())
            for name, value in IN_CHECKPOINTS_ONLY.get(config.__name__, {}).items():
                setattr(sized, name, value)
            block = cls(sized, *extra)
            for parameter in block.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            if any(parameter.requires_grad for parameter in block.parameters()):
                return block.train()
    return None


def small(config):
    """A config with every size it has made small, inside as well."""
    for name, value in SMALL.items():
        with contextlib.suppress(Exception):  # a size that varies over layers, or is not to be set
            if hasattr(config, name):
                setattr(config, name, value)
    for value in vars(config).values():
        if isinstance(value, transformers.PretrainedConfig):
            small(value)
    return config


def outputs(block, x):
    """The first output of a block, without dropout or jitter drawing other numbers."""
    torch.manual_seed(1)
    output = CALLS.get(type(block).__name__, lambda block, x: block(x))(block, x.clone())
    return output if isinstance(output, torch.Tensor) else output[0]
