"""The training images of each contender as numbers: twelve statistics, ours and timm's over torchvision's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.parity.loops import timm_loader, torchvision_pixels
from benchmarks.parity.ours import COPIES, RUN, config_of
from benchmarks.parity.sets import MEAN, STD, Settings
from benchmarks.sharpness import distances, ratios, statistics_of
from trainer.contract import RunEnv
from trainer.data.augment.batch import flip
from trainer.learning.schedule import Clock
from trainer.learning.world import World
from trainer.setup import Data, open_loader, stage_data
from trainer.telemetry.status import Status

EPOCHS = 3
WORLD = World(0, 0, 1, torch.device("cpu"))


def staged(name: str, settings: Settings, folder: Path, scratch: Path) -> Data:
    """The images as our runs prepare them, in the scratch folder."""
    config = config_of(name, settings)
    status = Status(Path(), writes=False)
    env = RunEnv(store="", run_id=RUN, scratch_dir=str(scratch), data=str(folder))
    return stage_data(config, env, WORLD, status, print)


def our_images(name: str, settings: Settings, folder: Path, scratch: Path) -> np.ndarray:
    """(N, pixels, pixels, 3) uint8 of the first EPOCHS epochs, cropped and flipped."""
    config, data = config_of(name, settings), staged(name, settings, folder, scratch)
    clock = Clock.of(config, data.index.splits["train"].images)
    found = []
    with open_loader(config, data, clock, WORLD, range(clock.steps_per_epoch * EPOCHS)) as loader:
        for batch in loader:
            found.append(flip(batch.images, batch.flips).numpy().copy())
    return np.concatenate(found)


def torchvision_images(settings: Settings, folder: Path, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    dataset = ImageFolder(folder, v2.Compose([*torchvision_pixels(settings), np.asarray]))
    return np.stack([dataset[i][0] for _ in range(EPOCHS) for i in range(len(dataset))])


def timm_images(settings: Settings, folder: Path) -> np.ndarray:
    loader, scale, shift = timm_loader(settings, folder, training=True), torch.tensor(STD), torch.tensor(MEAN)
    batches = [images.permute(0, 2, 3, 1) * scale + shift for _ in range(EPOCHS) for images, _ in loader]
    pixels: np.ndarray = (torch.cat(batches) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def compare_inputs(settings: Settings, folder: Path, scratch: Path) -> dict[str, Any]:
    """Of each contender, the ratios of means and the distances of distributions to torchvision's.

    torchvision's own with another seed shows what chance does.
    """
    theirs = statistics_of(torchvision_images(settings, folder / "train", seed=0))
    images = {name: our_images(name, settings, folder, scratch) for name in COPIES}
    images |= {
        "timm": timm_images(settings, folder / "train"),
        "torchvision, another seed": torchvision_images(settings, folder / "train", seed=1),
    }
    found = {name: statistics_of(pixels) for name, pixels in images.items()}
    return {
        name: {
            "ratios": {key: round(value, 4) for key, value in ratios(one, theirs).items()},
            "distances": {key: round(value, 4) for key, value in distances(one, theirs).items()},
        }
        for name, one in found.items()
    }
