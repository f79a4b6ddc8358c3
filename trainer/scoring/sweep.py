"""Other test resolutions and crops of the same weights: which suit them best, chosen on one half of the images.

The best of many numbers is too good by chance: what the choice is worth is told from the other half. All sizes are made
of one decoded image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.contract import UserError
from trainer.data.reading.decode import Picture
from trainer.data.reading.loader import pictures_of
from trainer.data.reading.split import EncodedImages
from trainer.learning.world import World, all_sum, empty_cache
from trainer.model_card import ModelCard
from trainer.recipes.config import Config
from trainer.recipes.networks import network_of
from trainer.scoring.data import ScoredSet
from trainer.scoring.forward import open_batches
from trainer.scoring.halves import CHOOSING_HALF, NEITHER, SCORING_HALF, Halves, split_halves
from trainer.scoring.members import Member
from trainer.scoring.passes import show_progress, telling_what_is_short
from trainer.scoring.predictions import Truth
from trainer.scoring.probabilities import config_for, log_probabilities
from trainer.scoring.views import ONE_VIEW, check_pictures, largest_side
from trainer.text import show_share

CROP_RATIOS = (0.875, 0.95, 1.0)  # of the crop to the resized short side, as timm's crop_pct
MOST_RESOLUTIONS = 12


@dataclass(frozen=True)
class SweepCell:
    """Top-1 with one geometry."""

    picture: Picture
    ratio: float  # of crop to resized side; 0 for the weights' own, unless it is one of those that are tried
    top1: float  # of all images
    halves: Halves


@dataclass(frozen=True)
class Sweep:
    """The first cell is the weights' own geometry."""

    cells: tuple[SweepCell, ...]

    @property
    def best(self) -> SweepCell:
        """By the choosing half; the weights' own where nothing is better there."""
        return max(self.cells, key=lambda cell: cell.halves.choosing)

    def to_json(self) -> dict[str, Any]:
        tried = sorted((one for one in self.cells if one.ratio), key=lambda one: (one.picture.crop, one.ratio))
        return {
            "chosen_on": CHOOSING_HALF, "scored_on": SCORING_HALF,
            "own": cell_json(self.cells[0]), "best": cell_json(self.best),
            "cells": [cell_json(cell) for cell in tried],
        }  # fmt: skip


def cell_json(cell: SweepCell) -> dict[str, Any]:
    """Shares are fractions, sizes pixels."""
    ratio = {"crop_ratio": cell.ratio} if cell.ratio else {}
    return {"resolution": cell.picture.crop, "resize": cell.picture.resize, **ratio, "top1": cell.top1,
            "choosing_top1": cell.halves.choosing, "scoring_top1": cell.halves.scoring}  # fmt: skip


def parse_resolutions(text: str, card: ModelCard) -> tuple[int, ...]:
    """What the user typed after --sweep: `auto`, or sizes with commas. Raises UserError."""
    if text.strip() == "auto":
        return usual_resolutions(card)
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words) or len(words) > MOST_RESOLUTIONS:
        raise UserError(
            f"--sweep {text}: use auto, or 1 to {MOST_RESOLUTIONS} resolutions in pixels with commas between them, "
            "for example 192,224,256"
        )
    return tuple(dict.fromkeys(map(int, words)))


def usual_resolutions(card: ModelCard) -> tuple[int, ...]:
    """From just below the resolution at the end of training to well above, where networks are mostly best.

    Random crops enlarge objects in training, so tests want larger images (arXiv:1906.06423).
    """
    network, trained = network_of(card.network), card.train_pixels or card.val_crop
    if network.only:
        return (card.val_crop,)
    step = max(8, round(trained / 56) * 8)
    around = (trained - step, trained, trained + step, trained + 2 * step, trained + 3 * step)
    return tuple(sorted({card.val_crop, *(pixels for pixels in around if pixels >= network.least)}))


def sweep_pictures(card: ModelCard, resolutions: Sequence[int]) -> dict[Picture, float]:
    """The weights' own geometry, then each resolution with each ratio of crop to resized side. Raises UserError."""
    (own,) = ONE_VIEW.pictures(card)
    tried = {
        Picture(math.floor(pixels / ratio), pixels, mode=own.mode): ratio
        for pixels in resolutions
        for ratio in CROP_RATIOS
    }
    check_pictures(list(tried), card, "--sweep: ")
    return {own: 0.0} | tried


def sweep_plans(members: Sequence[Member], text: str) -> dict[Member, dict[Picture, float]]:
    """What --sweep asks of each member; {} if it was not typed. Raises UserError."""
    if not text:
        return {}
    return {member: sweep_pictures(member.card, parse_resolutions(text, member.card)) for member in members}


def run_sweeps(
    plans: Mapping[Member, dict[Picture, float]], scored: ScoredSet, base: Config, world: World, scratch: Path
) -> dict[Member, Sweep]:
    """One pass for each member. All processes call it. Raises UserError."""
    if plans and scored.prefix != "val":
        raise UserError(f"--sweep chooses sizes on validation images, and {scored.name} has none: leave --sweep out")
    found = {}
    for member, pictures in plans.items():
        images = scored.open(largest_side(pictures))
        with (
            telling_what_is_short(scratch, base),
            show_progress(len(images), f"sizes of {member.name}", world) as track,
        ):
            member.model.to(world.device)  # here, and not in inference mode: see run_passes
            found[member] = sweep_member(member, pictures, images, scored.labels, base, world, track)
        member.model.cpu()  # the others need the room
        empty_cache(world)
    return found


@torch.inference_mode()
def sweep_member(
    member: Member, pictures: dict[Picture, float], split: EncodedImages, labels: Truth, base: Config, world: World,
    alive: Callable[[int], None],
) -> Sweep:  # fmt: skip
    """Top-1 of a member, which is on the device, with each picture, over all processes, which all call it.

    `labels` say which images are left out. `alive(images)` is called after every batch. Raises UserError.
    """
    halves = split_halves(labels)
    config = config_for(member.card, base)
    right = torch.zeros(len(pictures), NEITHER + 1, dtype=torch.float64, device=world.device)
    with open_batches(list(pictures), split, base, world) as batches:
        for indices, batch in batches:
            half = torch.from_numpy(halves[indices].astype(np.int64)).to(world.device)
            for number, part in enumerate(pictures_of(batch.images, list(pictures))):
                rows = log_probabilities(member.model, part, False, config, world.device)
                hit = (rows.argmax(dim=1) == batch.labels).double()
                right[number].index_add_(0, half, hit)
            alive(len(indices))
    a, b, _ = np.bincount(halves, minlength=NEITHER + 1).tolist()
    return Sweep(tuple(
        SweepCell(picture, ratio, (choosing + scoring) / (a + b), Halves(choosing / a, scoring / b))
        for (picture, ratio), (choosing, scoring, _) in zip(
            pictures.items(), all_sum(right, world).tolist(), strict=True
        )
    ))  # fmt: skip


def sweep_text(sweep: Sweep) -> list[str]:
    """A table of top-1 by resolution and crop, and the choice, in percent."""
    own, best = sweep.cells[0], sweep.best
    by_place = {(cell.picture.crop, cell.ratio): show_share(cell.top1) for cell in sweep.cells if cell.ratio}
    resolutions = sorted({crop for crop, _ in by_place})
    lines = [
        "top-1 of all images, by test resolution and its ratio to the resized short side",
        "  pixels" + "".join(f"{ratio:>10g}" for ratio in CROP_RATIOS),
        *(
            f"  {pixels:>6}" + "".join(f"{by_place[pixels, ratio]:>10}" for ratio in CROP_RATIOS)
            for pixels in resolutions
        ),
        f"  the weights' own, {_sizes(own)}: {show_share(own.top1)}",
    ]
    if best is own:
        return [
            *lines,
            f"  on the choosing half nothing is better than the weights' own: {show_share(own.halves.choosing)}",
        ]
    gain = 100 * (best.halves.scoring - own.halves.scoring)
    return [
        *lines,
        f"  best on the choosing half: {_sizes(best)} ({show_share(best.halves.choosing)}, the weights' own "
        f"{show_share(own.halves.choosing)})",
        f"  on the scoring half, which had no say: {show_share(best.halves.scoring)}, the weights' own "
        f"{show_share(own.halves.scoring)} ({gain:+.2f} points)",
    ]


def _sizes(cell: SweepCell) -> str:
    return f"--resize {cell.picture.resize} --crop {cell.picture.crop}"
