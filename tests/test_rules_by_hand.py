"""Three steps of every rule, worked out by hand on three experts with target load 4."""

import numpy as np

from alflb.rules import Projected, make_rule
from alflb.schedules import InverseSqrt

TARGET = np.array([4.0, 4.0, 4.0])
LOADS = [[8, 4, 0], [6, 3, 3], [4, 4, 4]]


def path(rule):
    bias, state, biases = np.zeros(3), rule.init(3), []
    for t, load in enumerate(LOADS, 1):
        bias, state = rule.update(bias, np.array(load), TARGET, t, state)
        biases.append(bias.tolist())
    return biases


def test_sign():
    assert path(make_rule("sign", 0.5)) == [[-0.5, 0.0, 0.5], [-1.0, 0.5, 1.0], [-1.0, 0.5, 1.0]]


def test_sign_with_a_schedule():
    expected = [[-1.0, 0.0, 1.0], [-1.0 - 0.5**0.5, 0.5**0.5, 1.0 + 0.5**0.5]]
    np.testing.assert_allclose(path(make_rule("sign", InverseSqrt(1.0)))[:2], expected)


def test_recentred_sign():
    # step 2: signs (-1, 1, 1) have mean 1/3
    expected = [[-0.75, 0.0, 0.75], [-0.75 - 1.0, 0.5, 0.75 + 0.5], [-1.75, 0.5, 1.25]]
    np.testing.assert_allclose(path(make_rule("recentred_sign", 0.75)), expected, atol=1e-15)


def test_proportional():
    # (target - load) / 4: (-1, 0, 1), then (-1/2, 1/4, 1/4)
    assert path(make_rule("proportional", 0.5)) == [[-0.5, 0.0, 0.5], [-0.75, 0.125, 0.625], [-0.75, 0.125, 0.625]]


def test_projected():
    # step 1: (-4, 0, 4) has norm 4 sqrt(2), pulled back to norm sqrt(2). Step 2: (-1, 0, 1) + 4 (-1, 1, 1) =
    # (-5, 4, 5) has mean 4/3: (-19, 8, 11)/3, norm sqrt(546)/3. Step 3: nothing moves.
    end = [-19 * (2 / 546) ** 0.5, 8 * (2 / 546) ** 0.5, 11 * (2 / 546) ** 0.5]
    np.testing.assert_allclose(path(Projected(make_rule("sign", 4.0), 2**0.5)), [[-1, 0, 1], end, end], atol=1e-14)
