"""For frameworks that own the training loop: a callback each, one line for the user.

=====================  ==========================================================
TrainerCallback        transformers: ``Trainer(..., callbacks=[TrainerCallback()])``
LightningCallback      lightning: ``Trainer(callbacks=[LightningCallback()])``
=====================  ==========================================================

Others take the accelerator as it is: HF Accelerate by
``register_for_checkpointing(get_accelerator(optimizer))``, and it is a ``Stateful`` of
``torch.distributed.checkpoint``. A framework is imported when its callback is first asked for.
"""

from importlib import import_module
from typing import Any

MODULES = {"TrainerCallback": ".trainer", "LightningCallback": ".pytorch_lightning"}
FRAMEWORKS = {"TrainerCallback": "transformers", "LightningCallback": "lightning"}

__all__ = ["LightningCallback", "TrainerCallback"]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(MODULES[name], __name__), name)
    except ModuleNotFoundError as error:
        framework = FRAMEWORKS[name]
        raise ModuleNotFoundError(
            f"{name} needs {framework}, which cannot be imported ({error}): "
            f"pip install {framework}",
            name=error.name,
        ) from error
