"""Trains a small model under a framework, for as long as it lives: see ``test_resuming.py``.

``worker.py FRAMEWORK FOLDER [step|save STEP]`` is a program of its own, since it may kill itself in
the middle of a step or of a save. It goes on from the last whole checkpoint in its folder,
evaluates and saves after every second step, and leaves ``end.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import SGD, sgd
from torch.utils.data import DataLoader

import aadl_ext
from aadl_ext import get_accelerator, settled

STEPS, BATCH = 24, 8
METHOD = aadl_ext.SubspaceNewton(
    history_depth=3, block_length=3, noise_shrinkage=0.01, adaptive_blocks=False
)


class Model(nn.Module):
    """Regression; its output is what the Trainer of transformers takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.evaluated: Callable[[], None] = lambda: None

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.training:
            self.evaluated()
        output = self.layers(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


class Run:
    """The problem, and what is seen of its way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        self.model = Model()
        self.model.evaluated = self.look
        self.optimizer = SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.data = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(2 * BATCH)]
        self.judged: list[bool] = []  #: of evaluations while an extrapolation is pending

    def look(self) -> None:
        accelerator = get_accelerator(self.optimizer)
        if accelerator.pending:
            point = accelerator.layout.vector()
            accelerator.layout.read(point)
            self.judged.append(torch.equal(point, accelerator.iteration.fallback))

    def checkpoints(self, pattern: str) -> list[Path]:
        """The whole ones, newest last."""
        return sorted(self.folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)

    def end(self) -> None:
        with settled(self.optimizer):
            state = self.model.state_dict()
            file = self.folder / f"end{os.environ.get('RANK', '')}.pt"
            torch.save({"model": state, "judged": self.judged}, file)


# ---- loops of frameworks ----------------------------------------------------------------------


def transformers(run: Run) -> None:
    from transformers import Trainer, TrainingArguments

    options = TrainingArguments(
        output_dir=str(run.folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        run.model,
        options,
        train_dataset=run.data,
        eval_dataset=run.data,
        optimizers=(run.optimizer, None),
        callbacks=[aadl_ext.integrations.TrainerCallback(METHOD)],
    )
    whole = [str(path.parent) for path in run.checkpoints("checkpoint-*/trainer_state.json")]
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    assert not get_accelerator(run.optimizer).pending


def lightning(run: Run) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.model

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.model(**batch)["loss"]

        def validation_step(self, batch: Any, _: int) -> None:
            self.model(**batch)

        def configure_optimizers(self) -> SGD:
            return run.optimizer

    trainer = Trainer(
        max_steps=STEPS,
        callbacks=[
            ModelCheckpoint(run.folder, save_top_k=-1),
            aadl_ext.integrations.LightningCallback(METHOD),
        ],
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    whole = run.checkpoints("*.ckpt")
    loader = DataLoader(run.data, BATCH)
    trainer.fit(Module(), loader, loader, ckpt_path=whole[-1] if whole else None)
    assert not get_accelerator(run.optimizer).pending


def accelerate(run: Run) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(
        run.model, run.optimizer, DataLoader(run.data, BATCH)
    )
    aadl_ext.accelerate(optimizer, METHOD)
    accelerator.register_for_checkpointing(get_accelerator(optimizer))
    for folder in by_hand(run, model, optimizer, loader, accelerator.backward):
        if folder.exists():
            accelerator.load_state(folder)
        else:
            accelerator.save_state(f"{folder}.part")
            os.rename(f"{folder}.part", folder)


def lightning_fabric(run: Run) -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(run.model, run.optimizer)
    loader = fabric.setup_dataloaders(DataLoader(run.data, BATCH))
    aadl_ext.accelerate(optimizer, METHOD)
    state = {
        "model": model,
        "optimizer": optimizer,
        "accelerator": get_accelerator(optimizer),
    }
    for file in by_hand(run, model, optimizer, loader, fabric.backward):
        if file.exists():
            fabric.load(file, state)
        else:
            fabric.save(f"{file}.part", state)
            os.rename(f"{file}.part", file)


def peft(run: Run) -> None:
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=4, target_modules=["layers.0", "layers.2"])
    model = get_peft_model(run.model, adapters)
    run.optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    with_files(run, model, run.optimizer, DataLoader(run.data, BATCH))


def opacus(run: Run) -> None:
    from opacus import PrivacyEngine

    model, optimizer, loader = PrivacyEngine().make_private(
        module=run.model,
        optimizer=run.optimizer,
        data_loader=DataLoader(run.data, BATCH),
        noise_multiplier=1e-3,
        max_grad_norm=10.0,
        poisson_sampling=False,
    )
    with_files(run, model, optimizer, loader)


def with_files(run: Run, model: nn.Module, optimizer: Any, loader: Any) -> None:
    """A loop by hand whose checkpoints are files of ``torch.save``."""
    aadl_ext.accelerate(optimizer, METHOD)
    parts = [model, optimizer, get_accelerator(optimizer)]
    for file in by_hand(run, model, optimizer, loader, Tensor.backward):
        if file.exists():
            *states, random = torch.load(file)
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
            torch.set_rng_state(random)
        else:
            states = [part.state_dict() for part in parts]
            torch.save([*states, torch.get_rng_state()], f"{file}.part")
            os.rename(f"{file}.part", file)


def torch_distributed_checkpoint(run: Run) -> None:
    aadl_ext.accelerate(run.optimizer, METHOD)
    loader = DataLoader(run.data, BATCH)
    for folder in by_hand(run, run.model, run.optimizer, loader, Tensor.backward):
        if folder.exists():  # it fills what is there: the momentum too
            run.model(**next(iter(loader)))["loss"].backward()
            run.optimizer.step()
        state = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "accelerator": get_accelerator(run.optimizer),
        }
        if folder.exists():
            dcp.load(state, checkpoint_id=folder, no_dist=True)
            run.optimizer.load_state_dict(state["optimizer"])
        else:
            dcp.save(state, checkpoint_id=f"{folder}.part", no_dist=True)
            os.rename(f"{folder}.part", folder)


def by_hand(
    run: Run, model: Any, optimizer: Any, loader: Any, backward: Callable[..., Any]
) -> Iterator[Path]:
    """Yields folders to load from, if they exist, or to save to."""
    whole = run.checkpoints("*[0-9]")
    if whole:
        yield whole[-1]
    for k in range(int(whole[-1].name) if whole else 0, STEPS, 2):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            backward(model(**batch)["loss"])
            optimizer.step()
        model.eval()
        with settled(optimizer):
            model(**next(iter(loader)))
            yield run.folder / f"{k + 2}"


# ---- its end ----------------------------------------------------------------------------------


def die_in(kind: str, at: int) -> None:
    """Between the base step and the accelerator's part of it; or with half of a checkpoint; or when
    that before it has been deleted.
    """
    base_step, save, steps = sgd.sgd, torch.save, 0

    def step_and_die(*args: Any, **kwargs: Any) -> None:
        nonlocal steps
        base_step(*args, **kwargs)
        steps += 1
        if kind == "step" and steps >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    def save_and_die(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if kind == "save" and steps >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    sgd.sgd, torch.save = step_and_die, save_and_die
    if kind == "rotation":
        from transformers import trainer

        rotate = trainer.rotate_checkpoints

        def rotate_and_die(*args: Any, **kwargs: Any) -> None:
            rotate(*args, **kwargs)
            if steps >= at:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.rotate_checkpoints = rotate_and_die


if __name__ == "__main__":
    framework, folder, *death = sys.argv[1:]
    run = Run(Path(folder))
    if death:
        die_in(death[0], int(death[1]))
    globals()[framework](run)
    run.end()
