"""What the child processes of the tests do: ranks of a process group, and a training run that gets killed.

The children are forked from a server that has imported this module, so what takes seconds to import is imported here.
"""

import os
import time
from datetime import timedelta

import numpy as np

from alflb.io import atomic_write
from alflb.rules import make_rule
from tests._extras import require
from tests.training.models import Feed, bias_tensors, make_model, text_batches, torch, training, transformers

LoadBalancer = training.LoadBalancer
distributed = torch.distributed
fully_shard = require("torch.distributed.fsdp").fully_shard
_ = transformers.DeepseekV3ForCausalLM, transformers.AfmoeForCausalLM

NUM_STEPS, NUM_SHARDS = 4, 4
NUM_BINS = 50
SIGN = make_rule("sign", 0.01)


def shards():
    """Data of every step in NUM_SHARDS micro-batches, which any number of ranks that divides it can share."""
    return text_batches(NUM_STEPS * NUM_SHARDS).unflatten(0, (NUM_STEPS, NUM_SHARDS))


def join(rank, world, folder):
    """Become one rank of a gloo group that meets in a file."""
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=120), world_size=world, rank=rank
    )


def run_rank(rank, world, folder, kind):
    """One rank: join, do the job called `kind`, leave its result as rank_N.npz."""
    join(rank, world, folder)
    jobs = [
        union,
        union_on_device,
        union_of_bins,
        ddp,
        pairs,
        sharded,
        stages,
        empty_stage,
        unlike_biases,
        unlike_sizes,
        faulty_rank,
        flattened,
        tensor_parallel,
        context_parallel,
        expert_parallel,
    ]
    np.savez(f"{folder}/rank_{rank}.npz", **next(job for job in jobs if job.__name__ == kind)(rank, world))
    distributed.barrier()
    distributed.destroy_process_group()


def union_on_device(rank, world):
    """The same with steps that do not wait for the device."""
    return union(rank, world, on_device=True)


def union_of_bins(rank, world):
    """The same by quantiles of scores, counted in bins."""
    return union(rank, world, rule=make_rule("binned_qb", bins=NUM_BINS))


def union(rank, world, rule=SIGN, on_device=False):
    """Train on this rank's share; gradients are summed in the order of the shards, so all worlds train one model."""
    reduced = []
    plain = distributed.all_reduce

    def spy(tensor, *args, **kwargs):
        reduced.append((tensor.dtype == torch.int64, tensor.numel()))
        return plain(tensor, *args, **kwargs)

    distributed.all_reduce = spy
    model = make_model()
    balancer = LoadBalancer.attach(model, rule, on_device=on_device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    biases, loads, losses = [], [], []
    for step in shards():
        gradients = []
        for shard in step[rank * NUM_SHARDS // world : (rank + 1) * NUM_SHARDS // world]:
            loss = model(input_ids=shard, labels=shard).loss
            loss.backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            gradients.append(torch.cat([loss.detach().view(1), *(p.grad.flatten() for p in trained)]))
            optimizer.zero_grad()
        everyone = [torch.empty(len(gradients), len(gradients[0])) for _ in range(world)]
        distributed.all_gather(everyone, torch.stack(gradients))
        total = torch.zeros(len(gradients[0]))
        for gradient in torch.cat(everyone):
            total += gradient
        for p, part in zip(trained, total[1:].split([p.numel() for p in trained])):
            p.grad = part.view_as(p)
        optimizer.step()
        optimizer.zero_grad()
        report = balancer.step()
        losses.append(total[0])
        biases.append(list(balancer.biases.values()))
        loads.append([layer.load_E for layer in report.layers])
    in_model = np.stack([tensor.numpy() for tensor in bias_tensors(model).values()])
    return {"biases": biases, "loads": loads, "losses": losses, "in_model": in_model, "reduced": reduced}


def ddp(rank, world):
    """Ordinary training under DistributedDataParallel, attached to the wrapped model."""
    model = torch.nn.parallel.DistributedDataParallel(make_model())
    balancer = LoadBalancer.attach(model, schedule=0.01, rule="sign")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in shards():
        shard = step[rank]
        model(input_ids=shard, labels=shard).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report = balancer.step()
    biases = list(balancer.biases.values())
    return {"biases": biases, "load": report.layers[0].load_E, "names": balancer.layer_names}


def pairs(rank, world):
    """Two groups of two ranks: each balancer sums over its own group only."""
    groups = [distributed.new_group([0, 1]), distributed.new_group([2, 3])]
    model = make_model()
    balancer = LoadBalancer.attach(model, process_group=groups[rank // 2], rule="sign")
    with torch.no_grad():
        model(shards()[0, rank])
    return {"load": balancer.step().layers[0].load_E}


def tensor_parallel(rank, world):
    """Ranks 0 and 1 route the same tokens, and so do 2 and 3: sum over [0, 2] and [1, 3]; all ranks count twice."""
    groups = [distributed.new_group([0, 2]), distributed.new_group([1, 3])]
    loads = {}
    for name, group in {"data_parallel": groups[rank % 2], "all": None}.items():
        model = make_model()
        balancer = LoadBalancer.attach(model, schedule=0.5, process_group=group, rule="sign")
        model(shards()[0, rank // 2])
        loads[name] = balancer.step().layers[0].load_E
        loads[f"bias_{name}"] = balancer.biases["model.layers.1.mlp"]
    return loads


def context_parallel(rank, world):
    """Each rank routes its part of every sequence; the group sums to whole sequences."""
    picks = torch.from_numpy(np.argsort(np.random.default_rng(0).random((2, 24, 8)), axis=-1)[..., :2].copy())
    model = feeds_of(["a"])
    balancer = LoadBalancer.attach(model, rule="sign")
    model["a"](picks[:, 24 * rank // world : 24 * (rank + 1) // world])
    return {"load": balancer.step().layers[0].load_E, "whole": np.bincount(picks.numpy().ravel(), minlength=8)}


class Dispatch(Feed):
    """Exchanges tokens, so that each rank gets those of its own experts: local indices, -1 for picks of others."""

    def forward(self, picks):
        parts = [torch.empty_like(picks) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, picks)
        own = len(self.bias) // len(parts)
        local = torch.cat(parts) - own * distributed.get_rank()
        return (torch.where((local >= 0) & (local < own), local, -1),)


class Dispatched(Dispatch):
    """The same, described by what comes out of it."""


training.describe_router(Dispatched, bias="bias", output=0)


def expert_parallel(rank, world):
    """Counted before the dispatch, every rank's own tokens add up; what comes out of it are local indices."""
    picks = torch.from_numpy(np.argsort(np.random.default_rng(rank).random((20, 8)))[:, :2].copy())
    before, after = torch.nn.ModuleDict({"a": Dispatch()}), torch.nn.ModuleDict({"a": Dispatched()})
    balancer = LoadBalancer.attach(before, rule="sign")
    before["a"](picks)
    load_E = balancer.step().layers[0].load_E
    balancer = LoadBalancer.attach(after, rule="sign")
    after["a"](picks)
    own_E = np.bincount(picks.numpy().ravel(), minlength=8)
    return {"load": load_E, "own": own_E, **refusal_of_step(balancer)}


def sharded(rank, world):
    """A model whose parameters FSDP2 shards: a bias in a buffer stays whole, one in a parameter is refused."""

    def shard(model):
        for layer in model.model.layers:
            fully_shard(layer)
        return fully_shard(model)

    model = shard(make_model())
    balancer = LoadBalancer.attach(model, schedule=0.01, rule="sign")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in shards():
        model(input_ids=step[rank], labels=step[rank]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        load_E = balancer.step().layers[0].load_E
    refusal = ""
    try:
        LoadBalancer.attach(shard(make_model("afmoe")), rule="sign")
    except ValueError as error:
        refusal = str(error)
    return {
        "biases": list(balancer.biases.values()),
        "names": balancer.layer_names,
        "load": load_E,
        "refusal": np.array(refusal),
    }


def feeds_of(names):
    """A model of `Feed` layers with these names."""
    return torch.nn.ModuleDict({name: Feed() for name in names})


def stages(rank, world):
    """Pipeline stages in one group: a layer is summed over the ranks that hold it, others do not disturb it."""
    names = [["a"], ["b", "a"]][rank]
    model = feeds_of(names)
    balancer = LoadBalancer.attach(model, schedule=1.0, rule="sign")
    for name in names:
        model[name](torch.full((8 if name == "a" else 3, 1), rank))
    report = balancer.step()
    return {layer.name: layer.load_E for layer in report.layers} | {"names": [layer.name for layer in report.layers]}


def empty_stage(rank, world):
    """A stage without MoE layers takes part by a balancer without layers."""
    if rank == 0:
        report = LoadBalancer.for_layers([], top_k=1, rule="sign").step()
        return {"layers": len(report.layers), "numbers": len(report.as_dict())}
    model = feeds_of(["a"])
    balancer = LoadBalancer.attach(model, rule="sign")
    model["a"](torch.arange(8).view(8, 1))
    return {"layers": len(balancer.step().layers), "load": 8}


def refusal_of_step(balancer):
    """The message of the error that a step ends in."""
    try:
        balancer.step()
    except ValueError as error:
        return {"refusal": np.array(str(error))}
    return {"refusal": np.array("")}


def unlike_biases(rank, world):
    """Ranks that attach with different biases, as after a checkpoint was loaded on one of them only."""
    model = feeds_of(["a"])
    model["a"].bias += 0.25 * rank
    balancer = LoadBalancer.attach(model, rule="sign")
    model["a"](torch.arange(8).view(8, 1))
    return refusal_of_step(balancer)


def unlike_sizes(rank, world):
    """Layers of one name and different numbers of experts."""
    model = torch.nn.ModuleDict({"a": Feed(8 - rank)})
    balancer = LoadBalancer.attach(model, rule="sign")
    model["a"](torch.arange(4).view(4, 1))
    return refusal_of_step(balancer)


def faulty_rank(rank, world):
    """Picks that are wrong on one rank are refused on all, so that none waits for another."""
    model = feeds_of(["a"])
    balancer = LoadBalancer.attach(model, rule="sign")
    model["a"](torch.tensor([[3], [8 * rank]]))
    return refusal_of_step(balancer)


def flattened(rank, world):
    """A bias in a parameter that FSDP1 has put into its flat one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = make_model("afmoe")
    bias_tensors(model).popitem()[1].requires_grad_(False)
    model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    try:
        LoadBalancer.attach(model, rule="sign")
    except ValueError as error:
        return {"refusal": np.array(str(error))}
    return {"refusal": np.array("")}


def run_until_killed(folder, steps, kill_at=None):
    """Train with a checkpoint every second step, from the last one if there is one, and log each step's bias.

    At step `kill_at` the run has written its log line for that step and waits to be killed.
    """
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    balancer = LoadBalancer.attach(model, "ema", 0.01)
    checkpoint = f"{folder}/checkpoint.pt"
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        balancer.load_state_dict(saved["balancer"])
    data = text_batches(steps)
    for t in range(balancer.num_steps, steps):
        model(input_ids=data[t], labels=data[t]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        balancer.step()
        np.save(f"{folder}/bias_{t}.npy", np.stack(list(balancer.biases.values())))
        if kill_at == t:
            open(f"{folder}/kill_me", "w").close()
            time.sleep(600)
        if t % 2 == 1:
            with atomic_write(checkpoint) as file:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "balancer": balancer.state_dict(),
                    },
                    file,
                )
