"""Score matrices on which kernels could go wrong: ties, infinities, zeros of both signs, denormal numbers."""

import numpy as np


def distinct(rng, shape):
    return rng.standard_normal(shape)


def tied(rng, shape):
    return rng.integers(0, 8, shape) / 1024


def constant(rng, shape):
    return np.zeros(shape)


def forbidden(rng, shape):
    return np.where(rng.random(shape) < 0.7, -np.inf, rng.integers(0, 99, shape) / 1024)


def signed_zeros(rng, shape):
    return np.where(rng.random(shape) < 0.5, -0.0, 0.0)


def denormal(rng, shape):
    return rng.integers(-4, 5, shape) * np.float64(np.finfo(np.float32).smallest_subnormal)
