"""Data-parallel training of the paper's classifier, here with two processes and small images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import aadl_ext
from aadl_ext.paper import images
from aadl_ext.paper.harness import SettingsError
from aadl_ext.paper.imagenet import rate_of
from aadl_ext.paper.images import ImageFolder, batches

WORKER = Path(__file__).with_name("imagenet_worker.py")
METHOD = "Nesterov + AADL + average"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around two colours: 2 x 14 images to train on, 2 x 5 to validate."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 14), ("val", 5)):
        for label, colour in (("dark", 90), ("light", 140)):
            place = root / part / label
            place.mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(colour, 50, (20, 28, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return root


def digests(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (out / "digests").iterdir()}


def record(out: Path) -> dict[str, Any]:
    (run,) = json.loads((out / "imagenet.json").read_text())["runs"]
    del run["seconds"]
    return run


@pytest.mark.thorough
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_processes_stay_equal_and_a_killed_run_ends_as_an_uninterrupted_one(
    folder: Path, tmp_path: Path, parallel: str
) -> None:
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2"
    paths = ["--data", folder, "--out", tmp_path, "--methods", METHOD]
    options = "--model tiny --size 12 --batch 4 --workers 0 --iterations 3 --checkpoint-every 2"
    ways = ["--parallel", parallel]
    command = [sys.executable, *torchrun.split(), WORKER, *paths, *options.split(), *ways]
    package = str(Path(aadl_ext.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode != 0
    assert second.returncode == 0, second.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert digests(whole)["0"] == digests(whole)["1"]
    assert record(whole)["stats"]["jumps"] > 0
    assert record(whole)["stats"]["averaged"] > 0
    assert 0.5 <= record(whole)["final"]["validation accuracy"] <= 1

    assert (killed / "died").read_text() == "1 2"  # in the middle of the second epoch
    assert "5/9" in second.stderr  # steps that the checkpoint spared
    assert digests(killed) == digests(whole)
    assert record(killed) == record(whole)


def test_batches_share_all_images_among_processes() -> None:
    shares = [batches(103, 10, 0, epoch=2, rank=rank, world=3) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    seen = [index for share in shares for batch in share for index in batch]
    assert len(seen) == len(set(seen)) == 90
    assert set(seen) <= set(range(103))
    assert shares[0] == batches(103, 10, 0, epoch=2, rank=0, world=3)
    assert shares[0] != batches(103, 10, 0, epoch=3, rank=0, world=3)


def test_images_of_one_epoch_repeat_and_those_of_another_differ(folder: Path) -> None:
    first, second = (ImageFolder(folder / "train", 12, training=True, seed=1) for _ in range(2))
    image, label = first[3]
    assert image.shape == (3, 12, 12)
    assert label == 0
    assert torch.equal(image, second[3][0])
    second.epoch = 1
    assert not torch.equal(image, second[3][0])


def test_validation_images_are_the_normalized_centre(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[8:56, 40:88] = (255, 0, 0)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = ImageFolder(tmp_path, 32, training=False)
    image, label = data[0]
    assert (len(data), label) == (1, 0)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(images.MEAN)) / torch.tensor(images.STD)
    torch.testing.assert_close(image[:, 8:24, 8:24], red[:, None, None].expand(3, 16, 16))
    assert (image[0, 0] < 0).all()  # the crop is wider than the red square: 56 pixels of 64


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="one folder a class"):
        ImageFolder(tmp_path, 32, training=False)


def test_resnet50_without_a_package_that_has_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("torchvision.models", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match="pip install torchvision"):
        images.network("resnet50", 10)


def test_learning_rates_are_the_papers() -> None:
    assert rate_of(0, 384 * 64) == rate_of(4, 1536 * 64) == 0.05
    assert rate_of(5, 384 * 64) == pytest.approx(0.98, rel=1e-3)
    assert rate_of(29, 1536 * 64) == pytest.approx(1.96, rel=1e-3)
    late = [rate_of(epoch, 384 * 64) for epoch in (30, 60, 80, 89)]
    assert late == pytest.approx([0.098, 0.0098, 0.00098, 0.00098], rel=1e-3)
