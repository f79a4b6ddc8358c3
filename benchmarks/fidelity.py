"""How close pixels come to PIL's: crops of every decoder, evaluation crops, and what a stored copy loses."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image
from torchvision import transforms

from benchmarks.images import BATCH, Images, visits
from benchmarks.peers import Contender
from trainer.data.jpeg import Bytes
from trainer.data.reading.decode import center_into, crop_into
from trainer.data.reading.split import PreparedSplit

EQUAL_DB = 100.0  # stands for equal pixels, whose PSNR is infinite


def psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    """Of uint8 images, in dB."""
    error = np.mean((pixels.astype(np.float64) - reference) ** 2)
    return min(EQUAL_DB, 10 * float(np.log10(255**2 / error))) if error else EQUAL_DB


def summary(decibels: list[float]) -> dict[str, float]:
    return {
        "median_db": round(float(np.median(decibels)), 1),
        "first_percentile_db": round(float(np.percentile(decibels, 1)), 1),
    }


def against_pil(contenders: Mapping[str, Contender], images: Images, pixels: int) -> dict[str, dict[str, float]]:
    """PSNR of each contender's crops against PIL's: same bytes, same boxes, crop, then antialiased bilinear."""
    todo = visits(images, 1)
    references = []
    for i, (left, top, width, height) in todo:
        crop = rgb(images.split.jpeg(i)).crop((left, top, left + width, top + height))
        references.append(np.asarray(crop.resize((pixels, pixels), Image.Resampling.BILINEAR)))
    found = {}
    for name, contender in contenders.items():
        decibels: list[float] = []
        for number, batch in enumerate(contender(images, todo, pixels)):
            expected = references[number * BATCH : (number + 1) * BATCH]
            decibels += [psnr(np.asarray(image), other) for image, other in zip(batch, expected, strict=True)]
        found[name] = summary(decibels)
    return found


def evaluation_error(split: PreparedSplit, resize: int = 232, pixels: int = 224) -> dict[str, float]:
    """Absolute difference from torchvision's Resize and CenterCrop on PIL images, in steps of 1/255: over all images
    on average, and of the worst image."""
    theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(pixels)])
    out, errors = np.empty((pixels, pixels, 3), np.uint8), []
    for i in range(len(split)):
        center_into(out, split.jpeg(i), resize)
        reference = np.asarray(theirs(rgb(split.jpeg(i))), np.float64)
        errors.append(float(np.abs(reference - out).mean()))
    return {"mean": round(float(np.mean(errors)), 4), "worst_image": round(max(errors), 4)}


def stored_loss(originals: Images, copies: Images, pixels: int) -> dict[str, float]:
    """PSNR of our crops of stored copies against PIL's crops of the same part of the originals."""
    out, decibels = np.empty((pixels, pixels, 3), np.uint8), []
    for i, (left, top, width, height) in visits(copies, 1):
        crop_into(out, copies.split.jpeg(i), (left, top, width, height))
        original = rgb(originals.split.jpeg(i))
        x, y = original.width / copies.sizes[i][0], original.height / copies.sizes[i][1]
        part = (left * x, top * y, (left + width) * x, (top + height) * y)
        reference = original.resize((pixels, pixels), Image.Resampling.BILINEAR, box=part)
        decibels.append(psnr(out, np.asarray(reference)))
    return summary(decibels)


def rgb(jpeg: Bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")
