"""Callback for the Trainer of Lightning."""

from __future__ import annotations

from typing import Any

from ..options import Method
from .between_steps import BetweenSteps

try:
    from lightning.pytorch import Callback
except ImportError:  # the same under its old name
    from pytorch_lightning import Callback


class LightningCallback(Callback):  # type: ignore[misc]
    """Accelerates the optimizers of a module, unless one of them is accelerated already.

    Validates and saves at judged weights, ends at them, and keeps the accelerators' states in each
    checkpoint, from which a training that is resumed goes on bit for bit::

        Trainer(callbacks=[aadl_ext.integrations.LightningCallback()])
    """

    def __init__(self, method: Method | None = None) -> None:
        self._between = BetweenSteps(method)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Model and optimizers are loaded."""
        self._between.begin(trainer.optimizers)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Before forward and backward."""
        self._between.before_step()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Validation comes after it, and the callbacks that save come after this one."""
        self._between.after_step()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """The model may be saved after it."""
        self._between.end()

    def state_dict(self) -> dict[str, Any]:
        """A part of each checkpoint."""
        return {"accelerators": self._between.state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The optimizers are not made yet."""
        self._between.load(saved["accelerators"])
