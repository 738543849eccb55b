"""One of two processes, each with half of a batch's loads: what every package makes of them goes to a file as JSON.

Run by test_two_ranks.py as ``python _two_ranks.py RANK RENDEZVOUS_FILE LOADS_JSON OUT``.
"""

import json
import sys
import warnings
from pathlib import Path


def main(rank, rendezvous, loads, out):
    """Both halves are summed by their own all_reduce; the biases after one step of size 1 are written."""
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=Path(rendezvous).as_uri(), rank=rank, world_size=2)
    load_E = torch.tensor(json.loads(loads)[rank], dtype=torch.float32)
    biases = {"megatron": megatron(load_E), "torchtitan": torchtitan(load_E), "olmo": olmo(load_E)}
    Path(out).write_text(json.dumps({name: bias_E.tolist() for name, bias_E in biases.items()}))
    dist.destroy_process_group()


def megatron(load_E):
    """`get_updated_expert_bias` with two data-parallel ranks."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import get_updated_expert_bias

    parallel_state.initialize_model_parallel()
    return get_updated_expert_bias(load_E.clone(), torch.zeros_like(load_E), 1.0)


def torchtitan(load_E):
    """The hook, its loss mesh spanning two data-parallel ranks."""
    import torch
    from test_torchtitan import model_with_layers
    from torchtitan.components.optimizer import register_moe_load_balancing_hook
    from torchtitan.distributed import ParallelDims

    model = model_with_layers(len(load_E), 1.0, num_layers=1)
    moe = model.layers["0"].moe
    moe.tokens_per_expert_E += load_E
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dims = ParallelDims(dp_replicate=2, dp_shard=1, cp=1, tp=1, pp=1, ep=1, world_size=2)
    register_moe_load_balancing_hook(optimizer, [model], dims)
    optimizer.step()
    return moe.expert_bias_E


def olmo(load_E):
    """`post_batch` of the linear router."""
    from _parity import olmo_module

    router_module = olmo_module("moe.router")
    router = router_module.MoELinearRouter(d_model=1, num_experts=len(load_E), bias_gamma=1.0).train()
    router.score_bias_batch_size_per_expert += load_E
    router.post_batch()
    return router.score_bias


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
