"""One pass over the images for each geometry, whatever the number of members; and where answers wait on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from trainer.contract import UserError
from trainer.data.progress import Track
from trainer.learning.world import World, barrier, empty_cache
from trainer.model_card import ModelCard
from trainer.recipes.config import Config
from trainer.scoring.data import ScoredSet, outputs_of
from trainer.scoring.forward import predict_split
from trainer.scoring.members import Member
from trainer.scoring.memory import fitting_groups, free_memory, telling_full_gpu
from trainer.scoring.predictions import Predictions
from trainer.scoring.views import ONE_VIEW, Views, largest_side
from trainer.store import naming_the_fix


@dataclass(frozen=True)
class Answers:
    """Of one member to all images."""

    member: Member
    predictions: Predictions
    seconds: float  # of the pass, decoding and the other members included
    members_in_pass: int  # with this one


def geometry(card: ModelCard) -> tuple[int, int, str]:
    """What of a card decides which pixels the network sees, before they are normalised."""
    return card.val_resize, card.val_crop, card.resize_mode


def run_passes(
    members: Sequence[Member], scored: ScoredSet, base: Config, world: World, folder: Path, views: Views = ONE_VIEW
) -> list[Answers]:
    """The answers of every member, in the order of the members. All processes call it; afterwards all rows are there.

    Members of one geometry share a pass: each image is decoded once for them. Where a GPU has no room for all of them,
    it takes them in turn. Afterwards all are on the CPU again. Raises UserError.
    """
    found = {member: Predictions(folder / str(number), len(scored.labels), outputs_of(member))
             for number, member in enumerate(members)}  # fmt: skip
    passes = dict[Member, tuple[float, int]]()
    for _, alike in groupby(sorted(members, key=lambda one: geometry(one.card)), lambda one: geometry(one.card)):
        for group in fitting_groups(list(alike), lambda: free_memory(world.device)):
            images = scored.open(largest_side(views.pictures(group[0].card)))
            started = time.monotonic()
            with telling_what_is_short(folder, base), show_progress(len(images), scored.name, world) as track:
                for member in group:  # here, and not in inference mode, whose tensors nobody may change afterwards
                    member.model.to(world.device)
                predict_split({member: found[member] for member in group}, images, base, world, track, views)
                for member in group:
                    member.model.cpu()
            empty_cache(world)
            passes |= dict.fromkeys(group, (time.monotonic() - started, len(group)))
    barrier(world)
    return [Answers(member, found[member], *passes[member]) for member in members]


@contextmanager
def show_progress(images: int, name: str, world: World) -> Iterator[Callable[[int], None]]:
    """Progress of the main process's share, which says how far all are."""
    if not world.is_main:
        yield lambda count: None
        return
    with Track(-(-images // world.size), "images", f"scoring {name}") as track:
        yield track.add


@contextmanager
def telling_what_is_short(folder: Path, base: Config) -> Iterator[None]:
    """A full disk or a full GPU becomes a UserError with its fix."""
    with telling_full_gpu(base.val_batch_size), naming_the_fix(f"the scratch folder {folder.parent}"):
        yield


@contextmanager
def predictions_folder(scratch: Path, world: World) -> Iterator[Path]:
    """A new folder that all processes share, removed at the end by the main one. Raises UserError on several machines.

    The main process must be the last that needs it.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) != world.size:
        raise UserError("evaluation takes the processes of one machine, which share its disk: --nnodes 1")
    names = [tempfile.mkdtemp(dir=scratch, prefix="predictions-") if world.is_main else ""]
    try:
        if world.size > 1:
            torch.distributed.broadcast_object_list(names, src=0)
        yield Path(names[0])
    finally:
        if world.is_main:
            shutil.rmtree(names[0], ignore_errors=True)
