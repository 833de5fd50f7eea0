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
        self._kept = -1  # step whose state waits for its checkpoint

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        """The Trainer has made the optimizer, and loaded the checkpoint if there is one."""
        folders = (str(args.resume_from_checkpoint), _folder(args, state))
        paths = [*(os.path.join(folder, FILE) for folder in folders), _waiting(args, state)]
        files = [path for path in paths if os.path.isfile(path)]
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
        self._keep(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Some save then."""
        self._keep(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The rest of the checkpoint is written; a file that is there is whole."""
        if self._between.spread:
            logger.warning(
                "the accelerator's state is spread over ranks and not in this checkpoint: a "
                "training that is resumed from it begins a new history. In a loop of your own "
                "torch.distributed.checkpoint saves it"
            )
        elif self._saves(args, state):
            if self._kept != state.global_step:
                self._write(args, state)
            os.replace(_waiting(args, state), os.path.join(_folder(args, state), FILE))
            self._kept = -1

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The model may be saved after it."""
        self._between.end()

    def _keep(self, args: Any, state: Any, control: Any) -> None:
        """Write the state before a checkpoint, which may delete the last one, is whole."""
        if control.should_save and self._saves(args, state):
            self._write(args, state)

    def _saves(self, args: Any, state: Any) -> bool:
        mine = state.is_world_process_zero and not self._between.spread
        return bool(mine and not args.save_only_model)

    def _write(self, args: Any, state: Any) -> None:
        path = _waiting(args, state)
        os.makedirs(args.output_dir, exist_ok=True)
        torch.save(self._between.state(), f"{path}.part")
        os.replace(f"{path}.part", path)
        self._kept = state.global_step


def _folder(args: Any, state: Any) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")


def _waiting(args: Any, state: Any) -> str:
    """Where the state is until its checkpoint is whole."""
    return os.path.join(args.output_dir, f"aadl_ext-{state.global_step}.pt")
