"""Saving and restoring: a killed and resumed run has the bias path of one that was not, and no other state is taken."""

import copy
import io
import signal
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from alflb.rules import RULES, Sight, rule_names
from alflb.schedules import InverseSqrt
from tests.training.models import feed, feeds, torch, training

LoadBalancer = training.LoadBalancer
pack, unpack = training.memory.pack, training.memory.unpack


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def biases(balancer):
    return np.stack(list(balancer.biases.values()))


def test_killed_and_resumed_runs_have_the_bias_path_of_an_undisturbed_one(spawn, tmp_path):
    """SIGKILL in the middle of the run, after steps that no checkpoint holds; a rule with memory."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    undisturbed, victim = spawn("run_until_killed", str(whole), 8), spawn("run_until_killed", str(broken), 8, 4)
    deadline = time.monotonic() + 120
    while not (broken / "kill_me").exists() and victim.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (broken / "kill_me").exists()
    victim.kill()
    victim.join(60)
    undisturbed.join(120)
    assert (victim.exitcode, undisturbed.exitcode) == (-signal.SIGKILL, 0)
    assert not (broken / "bias_5.npy").exists()
    resumed = spawn("run_until_killed", str(broken), 8)
    resumed.join(120)
    assert resumed.exitcode == 0
    paths = [np.stack([np.load(folder / f"bias_{t}.npy") for t in range(8)]) for folder in (whole, broken)]
    assert paths[0].tobytes() == paths[1].tobytes()
    assert np.ptp(paths[0][-1]) > np.ptp(paths[0][3]) > 0


@pytest.mark.parametrize("rule", [name for name in rule_names() if RULES.get(name).sees is Sight.LOADS])
def test_every_rules_memory_and_place_in_its_schedule_survive(rule):
    model = feeds()
    schedule = InverseSqrt(0.01) if RULES.get(rule).takes_schedule else None
    balancer = LoadBalancer.attach(model, rule, schedule)
    feed(model, balancer, range(5))
    saved_model, saved = copy.deepcopy(model.state_dict()), through_a_file(balancer.state_dict())
    feed(model, balancer, range(5, 9))

    again = feeds()
    again.load_state_dict(saved_model)
    resumed = LoadBalancer.attach(again, rule, schedule)
    resumed.load_state_dict(saved)
    assert resumed.num_steps == 5
    feed(again, resumed, range(5, 9))
    assert biases(resumed).tobytes() == biases(balancer).tobytes()
    assert str(resumed.state_dict()) == str(balancer.state_dict())


def test_loading_writes_the_model_and_forgets_pending_counts():
    model = feeds()
    balancer = LoadBalancer.attach(model, schedule=0.01, rule="sign")
    feed(model, balancer, range(2))
    saved = through_a_file(balancer.state_dict())
    before = biases(balancer)
    (third,) = feed(model, balancer, [2])
    assert (biases(balancer) != before).any()
    model(torch.zeros((3, 1), dtype=torch.int64).expand(3, 2) + torch.arange(2))
    balancer.load_state_dict(saved)
    assert (biases(balancer) == before).all()
    assert model[1].bias.tolist() == before[1].astype(np.float32).tolist()
    (again,) = feed(model, balancer, [2])
    assert again.step == third.step
    assert again.as_dict() == third.as_dict()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: [], "state is not one of LoadBalancer.state_dict"),
        (lambda state: {"model": 1}, "state is not one of LoadBalancer.state_dict"),
        (lambda state: state | {"version": 1}, "version 1; this alflb reads version 2"),
        (lambda state: {k: v for k, v in state.items() if k != "layers"}, "state lacks layers; it was not saved whole"),
        (lambda state: state | {"rule": "Proportional(schedule=1)"}, "state is of the rule Proportional.*attach with"),
        (lambda state: state | {"num_steps": -1}, "num_steps in state is -1"),
        (lambda state: state | {"layers": {}}, r"it lacks layers \['0', '1'\]"),
        (lambda state: state["layers"]["0"].pop("bias"), "layer '0' lacks bias"),
        (
            lambda state: state["layers"]["1"].update(bias=torch.zeros(4, dtype=torch.float64)),
            r"bias of layer '1' in state is torch.float64 of shape \(4,\); this model has 8 experts",
        ),
        (
            lambda state: state["layers"]["1"].update(bias=torch.zeros(8)),
            "is torch.float32 of shape .* state_dict.. saves torch.float64",
        ),
        (
            lambda state: state["layers"]["1"].update(bias=torch.full((8,), np.nan).double()),
            "the saved bias of layer '1' holds NaN or inf",
        ),
        (lambda state: state["layers"]["1"].update(total_load=3), "total_load of layer .* is 3;"),
        (
            lambda state: state["layers"]["1"].update(rule_state=torch.zeros(3)),
            r"saved memory has shape \(3,\); here it has \(8,\)",
        ),
        (
            lambda state: state["layers"]["1"].update(rule_state={"items": [1]}),
            r"saved memory \{'items': \[1\]\} does not fit",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(spoil, message):
    model = feeds()
    balancer = LoadBalancer.attach(model, "ema", 0.01)
    feed(model, balancer, range(1))
    state = copy.deepcopy(balancer.state_dict())
    spoiled = spoil(state)
    before = biases(balancer)
    with pytest.raises(ValueError, match=message):
        balancer.load_state_dict(spoiled if isinstance(spoiled, (list, dict)) and "bias" not in spoiled else state)
    assert (biases(balancer) == before).all()
    assert balancer.num_steps == 1


def test_a_schedule_without_a_name_is_recognized_in_another_process():
    """Its repr holds a memory address, which must not make it another rule."""

    def schedule(t):
        return 0.1 / t

    balancer = LoadBalancer.attach(feeds(), "sign", schedule)
    state = balancer.state_dict()
    assert " at 0x" in repr(balancer.rule)
    assert " at 0x" not in state["rule"]
    balancer.load_state_dict(state)


@dataclass(frozen=True, eq=False)
class Memory:
    mean_E: np.ndarray
    count: int


def test_memories_keep_their_tuples_and_dtypes():
    state = (Memory(np.arange(3.0), 2), np.array([True, False]), None, np.float64(0.1), (1, np.arange(2)))
    like = (Memory(np.zeros(3), 0), np.zeros(2, dtype=bool), None, 0.0, (0, np.zeros(2, dtype=np.int64)))
    back = unpack(through_a_file(pack(state)), like)
    assert type(back[0]) is Memory
    assert back[0].mean_E.tobytes() == state[0].mean_E.tobytes()
    assert back[0].count == 2
    assert back[1].dtype == bool
    assert back[2:4] == (None, 0.1)
    assert back[4][1].dtype == np.int64
    for kept in ({1, 2}, [1], {"a": 1}, "text"):
        with pytest.raises(ValueError, match=f"keeps a {type(kept).__name__}, which cannot be saved"):
            pack(kept)


class Named(NamedTuple):
    """A memory as a rule outside the package may keep it."""

    sum_E: np.ndarray
    count: int


def test_a_named_tuple_keeps_its_names():
    memory = Named(np.ones(2), 3)
    restored = unpack(pack(memory), Named(np.zeros(2), 0))
    assert isinstance(restored, Named)
    assert (restored.sum_E.tolist(), restored.count) == ([1.0, 1.0], 3)
