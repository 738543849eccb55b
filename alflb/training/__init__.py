"""A load balancer for real models in training: PyTorch modules, and Hugging Face transformers in particular.

Needs the extra ``torch``; `alflb.training.trainer`, the callback for ``transformers.Trainer``, needs ``models``.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("alflb.training needs PyTorch: pip install 'alflb[torch]'", name="torch") from None

from alflb.training.balancer import LoadBalancer
from alflb.training.report import LayerReport, StepReport
from alflb.training.routers import RouterLayout, describe_router, find_routers

__all__ = ["LayerReport", "LoadBalancer", "RouterLayout", "StepReport", "describe_router", "find_routers"]
