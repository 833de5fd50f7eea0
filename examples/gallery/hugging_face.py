"""The Trainer of transformers with a callback; a small model, so that it runs anywhere."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import picture
import torch
import transformers
from torch import Tensor, nn

import aadl_ext
from aadl_ext.integrations import TrainerCallback

STEPS = picture.steps(300, quick=20)


class Model(nn.Module):
    """What the Trainer takes is in what a model returns: the loss first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Regression."""
        output = self.layers(x)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


def train(callbacks: list[transformers.TrainerCallback]) -> list[float]:
    """Losses that the Trainer logs."""
    torch.manual_seed(0)
    data = [{"x": x, "labels": torch.sin(x.sum()).view(1)} for x in torch.randn(512, 8)]
    with TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=64,
            learning_rate=1e-2,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(Model(), options, train_dataset=data, callbacks=callbacks)
        trainer.train()
    if callbacks:
        print(aadl_ext.get_accelerator(trainer.optimizer).stats)
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


curves = {"AdamW": train([]), "accelerated": train([TrainerCallback()])}
picture.draw(curves, xlabel="tens of steps")
