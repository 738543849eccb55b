"""A load balancer for real models in training: PyTorch modules, and Hugging Face transformers in particular.

The balancer needs the extra ``torch``; `alflb.training.trainer`, the callback for ``transformers.Trainer``, needs
``models``; `alflb.training.diagnosis`, which reads the log of a run, needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alflb.training.balancer import LoadBalancer as LoadBalancer
    from alflb.training.biases import load_biases as load_biases
    from alflb.training.biases import save_biases as save_biases
    from alflb.training.log import TrainingLog as TrainingLog
    from alflb.training.recording import capture as capture
    from alflb.training.routers import RouterLayout as RouterLayout
    from alflb.training.routers import add_bias as add_bias
    from alflb.training.routers import describe_router as describe_router
    from alflb.training.routers import find_routers as find_routers
    from alflb.training.step_report import LayerReport as LayerReport
    from alflb.training.step_report import StepReport as StepReport

_HOME = {
    "TrainingLog": "log",
    "capture": "recording",
    "load_biases": "biases",
    "save_biases": "biases",
    "LayerReport": "step_report",
    "LoadBalancer": "balancer",
    "RouterLayout": "routers",
    "StepReport": "step_report",
    "add_bias": "routers",
    "describe_router": "routers",
    "find_routers": "routers",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alflb.training' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"alflb.training.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"alflb.training.{name} needs PyTorch: pip install 'alflb[torch]'", name="torch"
        ) from None
    return getattr(module, name)
