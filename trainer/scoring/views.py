"""Several views of each image (test-time augmentation), and how their answers become one.

Probabilities are averaged, not logits. Each view then has one voice, as each member of a deep ensemble has
(arXiv:1612.01474, section 2.4). A mean of logits is a geometric mean of probabilities: a view that is sure and wrong
outweighs the others. Its answers are surer, too, which harms the calibration of networks that are too sure already
(Tassi et al. 2022, https://ceur-ws.org/Vol-3215/19.pdf).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer.contract import UserError
from trainer.data.reading.decode import CropPlace, Picture
from trainer.model_card import ModelCard
from trainer.recipes.networks import network_of

VIEWS_RULE = "none, flip, five-crop, ten-crop, or scales=0.9,1,1.1"
MOST_SCALES = 10
# As torchvision's FiveCrop has them:
FIVE_PLACES: tuple[CropPlace, ...] = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
MOST_PICTURE_PIXELS = 2048  # of a side, as --data.val-crop


@dataclass(frozen=True)
class Views:
    """What of each image is shown to a network: every place at every scale, as it is and mirrored."""

    name: str = "none"
    places: tuple[CropPlace, ...] = ("centre",)
    flips: tuple[bool, ...] = (False,)
    scales: tuple[float, ...] = (1.0,)

    @property
    def is_plain(self) -> bool:
        return self.name == "none"

    @property
    def count(self) -> int:
        return len(self.places) * len(self.flips) * len(self.scales)

    def pictures(self, card: ModelCard) -> tuple[Picture, ...]:
        """What is made of each image on the host; it is mirrored on the device. Raises UserError.

        A scale multiplies both sizes, so that a network sees the same part of the image with more or fewer pixels.
        """
        pictures = tuple(
            Picture(round(card.val_resize * scale), round(card.val_crop * scale), place, card.resize_mode)
            for scale in self.scales
            for place in self.places
        )
        check_pictures(pictures, card, "" if self.is_plain else f"--views {self.name}: ")
        return pictures

    def to_json(self) -> dict[str, Any]:
        """As a record of an evaluation says it."""
        return {"name": self.name, "count": self.count, "averaged": "probabilities"}


ONE_VIEW = Views()


def parse_views(text: str) -> Views:
    """What the user typed after --views. Raises UserError."""
    name, _, numbers = re.sub(r"[ =,]+", " ", text).strip().partition(" ")
    if name == "scales":
        scales = tuple(_scale(one, text) for one in numbers.split())
        if not 2 <= len(set(scales)) == len(scales) <= MOST_SCALES:
            raise UserError(
                f"--views {text} has {len(scales)} scales: type 2 to {MOST_SCALES} different ones, as scales=0.9,1,1.1"
            )
        return Views(f"scales={','.join(f'{scale:g}' for scale in scales)}", scales=scales)
    known = {
        views.name: views
        for views in (
            ONE_VIEW, Views("flip", flips=(False, True)), Views("five-crop", FIVE_PLACES),
            Views("ten-crop", FIVE_PLACES, (False, True)),
        )
    }  # fmt: skip
    if name not in known or numbers:
        raise UserError(f"--views {text} is unknown: it must be {VIEWS_RULE}")
    return known[name]


def _scale(text: str, typed: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0.1 <= scale <= 10:
        raise UserError(f"--views {typed}: {text!r} is not a scale: use numbers from 0.1 to 10, as scales=0.9,1,1.1")
    return scale


def largest_side(pictures: Iterable[Picture]) -> int:
    """The short side that a stored image needs, so that none of its pictures is enlarged."""
    return max(picture.resize for picture in pictures)


def check_pictures(pictures: Sequence[Picture], card: ModelCard, why: str = "") -> None:
    """Raises UserError where a picture is larger than its image, or of a size that the network does not take.

    What the card says of its own weights is true. A message begins with `why`.
    """
    network = network_of(card.network)
    for resize, crop in {(picture.resize, picture.crop): None for picture in pictures}:
        if crop > resize:
            raise UserError(
                f"{why}a crop of {crop} px does not fit into an image whose short side is resized to {resize} px: "
                f"use --crop {resize} at most, or --resize {crop} at least"
            )
        if network.only and crop != card.val_crop:
            raise UserError(f"{why}{card.network} takes {card.val_crop} px and no other size, and this is {crop} px")
        if crop != card.val_crop and not network.least <= crop <= MOST_PICTURE_PIXELS:
            raise UserError(
                f"{why}{card.network} takes crops of {network.least} to {MOST_PICTURE_PIXELS} px, and this is {crop} px"
            )
        if resize > 2 * MOST_PICTURE_PIXELS:
            raise UserError(f"{why}images are resized to {2 * MOST_PICTURE_PIXELS} px at most, and this is {resize} px")


def variant_of(views: Views, resize: int, crop: int) -> str:
    """What an evaluation is stored under, after the name of the data, so that the plain one stays: -flip, …"""
    sizes = [f"{name}-{pixels}" for name, pixels in (("resize", resize), ("crop", crop)) if pixels]
    return "".join(f"-{part}" for part in [*([] if views.is_plain else [re.sub("[=,]", "-", views.name)]), *sizes])


def with_sizes(card: ModelCard, resize: int, crop: int) -> ModelCard:
    """The card with the sizes of --resize and --crop; 0 leaves what it has.

    Evaluate, predict, export and release have both options. Raises UserError for sizes that do not fit together or the
    network, also where the card itself has them.
    """
    sizes = replace(card, val_resize=resize or card.val_resize, val_crop=crop or card.val_crop)
    why = "" if sizes == card else f"--resize {resize} --crop {crop}: "
    check_pictures([Picture(sizes.val_resize, sizes.val_crop)], card, why)
    return sizes


def mean_of_views(rows: Sequence[Tensor]) -> Tensor:
    """The log of the mean probability: (N, classes) float32 log-probabilities, from those of each view."""
    if len(rows) == 1:
        return rows[0]
    return torch.stack(list(rows)).logsumexp(dim=0) - math.log(len(rows))
