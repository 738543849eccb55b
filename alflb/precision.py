"""Numbers as low-precision hardware keeps them: rounding to bf16 and fp16, in float32 arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.registry import unknown_name

PRECISIONS = ("bf16", "fp16")
"""bf16: 8 significant bits, the range of float32. fp16: 11 significant bits, numbers up to 65,504."""


def round_to(values: ArrayLike, precision: str) -> NDArray[np.float32]:
    """The nearest numbers of a low precision, ties to even, as float32 (which holds them exactly).

    Parameters
    ----------
    values : array_like of numbers
        Taken as float32 first, as a framework's cast does.
    precision : {"bf16", "fp16"}

    Returns
    -------
    array of float32
        Of the same shape; what is too large becomes inf.

    Examples
    --------
    From 32,768 on bf16 counts in steps of 256, so an expert 120 tokens short of 40,960 reads as balanced:

    >>> round_to([40_840, 40_960, 41_200], "bf16").tolist()
    [40960.0, 40960.0, 41216.0]
    >>> round_to([0.1, 1e5], "fp16").tolist()
    [0.0999755859375, inf]
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    with np.errstate(over="ignore"):
        exact = np.asarray(values, dtype=np.float32)
        if precision == "fp16":
            return exact.astype(np.float16).astype(np.float32)
        bits = exact.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(exact), rounded, exact)
