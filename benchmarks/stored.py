"""What a stored copy costs and loses, by short side and quality: for the choice of the default."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cpu import Run, interleaved
from benchmarks.fidelity import stored_loss
from benchmarks.images import Images, prepared
from benchmarks.peers import ours
from trainer.data.format import Copies

SIDES = (256, 320, 352, 400)
QUALITIES = (85, 90, 95)
TRAIN_IMAGES = 1_281_167  # of ImageNet


def table(folder: Path, originals: Images, scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """One row per short side and quality, at 224 px; `originals` are those of `folder`."""
    copies = {}
    for side, quality in product(SIDES, QUALITIES):
        _, splits = prepared(folder, scratch, Copies(train=(side,), val=(64,), quality=quality))
        copies[side, quality] = Images.of(originals.folder, splits["train", side])
    runs = {f"{side} {quality}": Run(ours, images) for (side, quality), images in copies.items()}
    cost = interleaved(runs, rounds)
    return [
        {
            "short_side": side,
            "quality": quality,
            "imagenet_gb": round(statistics.mean(map(len, images.jpegs)) * TRAIN_IMAGES / 1e9, 1),
            "cpu_us": round(statistics.median(cost[f"{side} {quality}"])),
            **stored_loss(originals, images, 224),
        }
        for (side, quality), images in copies.items()
    ]
