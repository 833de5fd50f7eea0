"""Lightning with a callback: it accelerates what ``configure_optimizers`` returns."""

from __future__ import annotations

import lightning
import picture
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aadl_ext.integrations import LightningCallback

EPOCHS = picture.steps(40, quick=3)


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A regression."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.curve: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        self.curve.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(callbacks: list[lightning.Callback]) -> list[float]:
    """Losses of batches."""
    torch.manual_seed(0)
    x = torch.randn(512, 8)
    data = TensorDataset(x, torch.sin(x.sum(dim=1, keepdim=True)))
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, 64, shuffle=True))
    return module.curve


picture.draw({"Adam": train([]), "accelerated": train([LightningCallback()])}, "loss of a batch")
