"""Images in folders, batches that depend on seed, epoch and step alone, and networks for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from .harness import SettingsError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue
RESIZE = 256 / 224  # shorter side of a validation image, in units of the crop


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images below ``folder``, a subfolder for each class, as float32 [3, size, size].

    For training a random part (8 to 100 % of the area, 3:4 to 4:3) is scaled to ``size`` and
    mirrored half of the time; else the centre is taken. What is random depends on ``seed``,
    ``epoch`` and the image alone, so that a resumed run sees what it would have seen.

    Raises:
        SettingsError: there are no images.
    """

    def __init__(self, folder: Path, size: int, training: bool, seed: int = 0) -> None:
        self.size, self.training, self.seed, self.epoch = size, training, seed, 0
        names = sorted(path.name for path in folder.glob("*") if path.is_dir())
        self.classes = {name: index for index, name in enumerate(names)}
        self.images = [
            (path, index)
            for name, index in self.classes.items()
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in ENDINGS
        ]
        if not self.images:
            raise SettingsError(
                f"no images in {folder}; expected {folder}/CLASS/*.jpeg, one folder a class"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.images[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.training:
            image = self._random_part(image, np.random.default_rng((self.seed, self.epoch, index)))
        else:
            image = self._centre(image)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1), label

    def _random_part(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        area = image.width * image.height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left = int(random.integers(image.width - width + 1))
        top = int(random.integers(image.height - height + 1))
        box = (left, top, left + width, top + height)
        part = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part

    def _centre(self, image: Image.Image) -> Image.Image:
        side = min(image.width, image.height) / RESIZE
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)


def batches(
    samples: int, size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """The batches of one process in one epoch: a new order each epoch, full global batches only."""
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    steps = samples // (size * world)
    shares = order[: steps * size * world].reshape(steps, world, size)
    picked: list[list[int]] = shares[:, rank].tolist()
    return picked


def network(name: str, classes: int) -> nn.Module:
    """``resnet50``, of torchvision or else of transformers, or ``tiny``.

    Raises:
        SettingsError: neither package is installed.
    """
    if name == "tiny":
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, classes),
        )
    try:
        from torchvision.models import resnet50
    except ImportError:
        return _resnet50_of_transformers(classes)
    model: nn.Module = resnet50(num_classes=classes)
    return model


def _resnet50_of_transformers(classes: int) -> nn.Module:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError as error:
        raise SettingsError(
            "resnet50 is taken from torchvision or transformers, and neither is installed: "
            "pip install torchvision"
        ) from error

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ResNetForImageClassification(ResNetConfig(num_labels=classes))

        def forward(self, images: Tensor) -> Any:
            return self.net(images).logits

    return Logits()
