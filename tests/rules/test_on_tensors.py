"""Rules that say they run on tensors: the same bits as on arrays, and no number of theirs leaves the device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb.rules import RULES, Observation, make_rule, rule_names
from tests._extras import require

torch = require("torch")
ON_TENSORS = [name for name in rule_names() if RULES.get(name).on_tensors]


def test_the_rules_in_common_use_are_among_them():
    assert {"sign", "recentred_sign", "proportional", "ema"} <= set(ON_TENSORS)


@st.composite
def batches(draw):
    """Loads of several batches, and targets for each: even or not, whole or not."""
    experts, steps = draw(st.integers(2, 300)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    picks = draw(st.sampled_from([1, 7, 1000, 40_961, 10**9, 2**50]))
    weight_E = draw(st.sampled_from([np.ones(experts), rng.uniform(0.1, 3.0, experts)]))
    share_E = rng.dirichlet(np.full(experts, draw(st.sampled_from([0.05, 1.0, 100.0]))))
    load_NE = rng.multinomial(picks, share_E, size=steps)
    return load_NE, picks * weight_E / weight_E.sum(), rng.normal(size=experts)


def tensors(values):
    """Arrays, alone or in a tuple, as tensors."""
    return tuple(map(tensors, values)) if isinstance(values, tuple) else torch.from_numpy(values.copy())


@pytest.mark.parametrize("name", ON_TENSORS)
@given(batch=batches())
def test_tensors_get_the_bits_of_arrays(name, batch):
    load_NE, target_E, bias_E = batch
    rule = make_rule(name)
    state, tensor_E, tensor_state = rule.init(len(bias_E)), tensors(bias_E), tensors(rule.init(len(bias_E)))
    for t, load_E in enumerate(load_NE, 1):
        bias_E, state = rule.step(bias_E, Observation(t, target_E, load_E=load_E), state)
        seen = Observation(t, tensors(target_E), load_E=tensors(load_E).double())
        tensor_E, tensor_state = rule.step(tensor_E, seen, tensor_state)
        assert tensor_E.dtype == torch.float64
        assert tensor_E.numpy().tobytes() == bias_E.tobytes()


@pytest.mark.parametrize("name", ON_TENSORS)
def test_nothing_waits_for_the_device(name):
    """On a device without numbers, where reading one or copying it out is an error."""
    rule = make_rule(name)
    bias_E, load_E, target_E = (torch.ones(8, dtype=torch.float64, device="meta") for _ in range(3))
    memory = rule.init(8)
    state = tuple(torch.ones_like(bias_E) for _ in memory) if isinstance(memory, tuple) else torch.ones_like(bias_E)
    moved_E, state = rule.step(bias_E, Observation(1, target_E, load_E=load_E), state)
    for kept in (moved_E, *(state if isinstance(state, tuple) else (state,))):
        assert (kept.device.type, kept.dtype) == ("meta", torch.float64)


def test_the_check_above_can_fail():
    rule, load_E = make_rule("self_tuning"), torch.ones(8, dtype=torch.float64, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        rule.step(load_E, Observation(1, load_E, load_E=load_E), rule.init(8))
