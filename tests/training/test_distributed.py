"""Ranks on gloo: the same biases as one process on all the data, one all-reduce a step, groups respected."""

import numpy as np
import pytest

from tests.training.models import BATCH, LENGTH, NUM_EXPERTS, TOP_K
from tests.training.workers import NUM_STEPS


@pytest.fixture(scope="module")
def run_ranks(spawn, tmp_path_factory):
    """Run a job of `workers.run_rank` on so many ranks; what each left."""

    def run(world, job):
        folder = tmp_path_factory.mktemp(f"{job}_{world}")
        processes = [spawn("run_rank", rank, world, str(folder), job) for rank in range(world)]
        for process in processes:
            process.join(180)
        assert [process.exitcode for process in processes] == [0] * world
        return [np.load(folder / f"rank_{rank}.npz") for rank in range(world)]

    return run


@pytest.fixture(scope="module")
def alone(run_ranks):
    return run_ranks(1, "union")[0]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process_on_all_the_data(world, run_ranks, alone):
    assert alone["biases"].shape == (NUM_STEPS, 2, NUM_EXPERTS)
    assert np.ptp(alone["biases"][-1]) > 0.02
    for rank in run_ranks(world, "union"):
        assert rank["losses"].tolist() == alone["losses"].tolist(), "the ranks did not train the same model"
        assert rank["loads"].tolist() == alone["loads"].tolist()
        assert rank["biases"].tobytes() == alone["biases"].tobytes()
        assert rank["in_model"].tobytes() == alone["in_model"].tobytes()
        assert rank["reduced"].tolist() == [[True, 2 * (NUM_EXPERTS + 1)]] * NUM_STEPS, "one call, int64, all layers"


def test_ranks_that_do_not_wait_for_the_device_get_the_same_bits(run_ranks, alone):
    for rank in run_ranks(2, "union_on_device"):
        for name in ("loads", "biases", "in_model", "reduced"):
            assert rank[name].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("job", ["ddp", "sharded"])
def test_wrapped_models_keep_equal_biases_and_their_own_names(job, run_ranks):
    first, second = run_ranks(2, job)
    assert first["biases"].tobytes() == second["biases"].tobytes()
    assert np.ptp(first["biases"]) > 0.02
    assert first["load"].sum() == 2 * BATCH * LENGTH * TOP_K
    assert first["names"].tolist() == ["model.layers.1.mlp", "model.layers.2.mlp"]
    if job == "sharded":
        assert "model.layers.1.mlp.expert_bias is sharded; leave it out of sharding" in str(first["refusal"])


def test_loads_are_summed_over_the_given_group_only(run_ranks):
    loads = [rank["load"].tolist() for rank in run_ranks(4, "pairs")]
    assert loads[0] == loads[1]
    assert loads[2] == loads[3]
    assert loads[0] != loads[2]
    assert sum(loads[0]) == 2 * BATCH * LENGTH * TOP_K


def test_a_layer_is_summed_over_the_ranks_that_hold_it(run_ranks):
    """Pipeline stages, and ranks that hold other layers in another order."""
    first, second = run_ranks(2, "stages")
    assert first["names"].tolist() == ["a"]
    assert second["names"].tolist() == ["b", "a"]
    assert first["a"].tolist() == second["a"].tolist() == [8, 8, 0, 0, 0, 0, 0, 0]
    assert second["b"].tolist() == [0, 3, 0, 0, 0, 0, 0, 0]


def test_a_stage_without_moe_layers_takes_part(run_ranks):
    empty, other = run_ranks(2, "empty_stage")
    assert (empty["layers"], other["layers"]) == (0, 1)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("unlike_biases", "ranks 0 and 1 of the process group have different biases in layer 'a', by up to 0.25"),
        ("unlike_sizes", "ranks 0 and 1 of the process group have 8 and 7 experts in layer 'a'"),
        ("faulty_rank", "1 of the picks counted for a cannot be right"),
        ("flattened", "mlp.expert_bias is sharded; leave it out of sharding"),
    ],
)
def test_what_does_not_fit_is_refused_on_every_rank(job, message, run_ranks):
    for rank in run_ranks(2, job):
        assert message in str(rank["refusal"])
