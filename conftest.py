"""Doctests of modules whose optional packages are missing are not collected; required extras are, and then fail."""

import importlib.util
import os

_NEEDS = {
    "torch": ["alflb/kernels/torch_.py", "alflb/training/[!d_]*.py"],
    "triton": ["alflb/kernels/triton_.py"],
    "transformers": ["alflb/training/balancer.py", "alflb/training/trainer.py"],
}

collect_ignore_glob = [
    pattern
    for package, patterns in _NEEDS.items()
    if importlib.util.find_spec(package) is None and os.environ.get("ALFLB_REQUIRE_EXTRAS") != "1"
    for pattern in patterns
]
