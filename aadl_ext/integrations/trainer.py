"""Callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import transformers

from ..options import Method
from .between_steps import BetweenSteps

FILE = "aadl_ext.pt"
logger = logging.getLogger("aadl_ext")


class TrainerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Accelerates the optimizer of a ``Trainer``, unless that is accelerated already.

    Evaluates and saves at judged weights, ends at them, and keeps the accelerator's state beside
    each checkpoint, from which a training that is resumed goes on bit for bit::

        Trainer(model, args, train_dataset=..., callbacks=[aadl_ext.integrations.TrainerCallback()])
    """

    def __init__(self, method: Method | None = None) -> None:
        self._between = BetweenSteps(method)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        """The Trainer has made the optimizer, and loaded the checkpoint if there is one."""
        folders = (str(args.resume_from_checkpoint), _folder(args, state))
        files = [path for x in folders if os.path.isfile(path := os.path.join(x, FILE))]
        if state.global_step and files:
            self._between.load(torch.load(files[0], map_location="cpu", weights_only=True))
        self._between.begin([optimizer])

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        """Before forward and backward."""
        if hasattr(optimizer, "train"):  # schedule-free: back from the weights of an evaluation
            optimizer.train()
        self._between.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Evaluation and checkpoint come after it."""
        self._between.after_step()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The rest of the checkpoint is written; a file that is there is whole."""
        if self._between.spread:
            logger.warning(
                "the accelerator's state is spread over ranks and not in this checkpoint: a "
                "training that is resumed from it begins a new history. In a loop of your own "
                "torch.distributed.checkpoint saves it"
            )
        elif state.is_world_process_zero and not args.save_only_model:
            path = os.path.join(_folder(args, state), FILE)
            torch.save(self._between.state(), f"{path}.part")
            os.replace(f"{path}.part", path)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The model may be saved after it."""
        self._between.end()


def _folder(args: Any, state: Any) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
