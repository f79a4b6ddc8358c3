"""The pass over a split: each image is decoded once, every member answers, and the answers go to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.reading.decode import Picture
from trainer.data.reading.loader import Batch, Loader, picture_jobs, pictures_of
from trainer.data.reading.split import EncodedImages
from trainer.learning.world import World
from trainer.recipes.config import Config
from trainer.scoring.members import Member
from trainer.scoring.predictions import Predictions
from trainer.scoring.probabilities import config_for, log_probabilities
from trainer.scoring.views import ONE_VIEW, Views, mean_of_views

MOST_BATCH_BYTES = 256 << 20  # of pictures on the host; three batches are in memory


@torch.inference_mode()
def predict_split(
    members: Mapping[Member, Predictions],
    split: EncodedImages,
    base: Config,
    world: World,
    alive: Callable[[int], None],
    views: Views = ONE_VIEW,
) -> None:
    """Log-probabilities of this process's images for each member, written to its Predictions.

    All members must have the same geometry; each gets its own normalisation. `base` says precision, device, batch and
    threads. `alive(images)` is called after every batch. No collectives here.
    """
    pictures = views.pictures(next(iter(members)).card)
    models = {one: one.model.to(world.device).to(memory_format=torch.channels_last) for one in members}
    with open_batches(pictures, split, base, world) as batches:
        for indices, batch in batches:
            shown = [(part, flip) for part in pictures_of(batch.images, pictures) for flip in views.flips]
            for member, predictions in members.items():
                config = config_for(member.card, base)
                rows = [log_probabilities(models[member], *view, config, world.device) for view in shown]
                predictions.write(indices, mean_of_views(rows).cpu().numpy())
            alive(len(indices))


@contextmanager
def open_batches(
    pictures: Sequence[Picture], split: EncodedImages, base: Config, world: World
) -> Iterator[Iterator[tuple[npt.NDArray[np.int64], Batch]]]:
    """This process's images in batches, each with its numbers in the split. `pictures_of` takes a batch apart."""
    image_bytes = sum(picture.bytes for picture in pictures)
    size = min(base.val_batch_size, len(split), max(1, MOST_BATCH_BYTES // image_bytes))
    mine = np.arange(world.rank, len(split), world.size)
    with Loader(
        picture_jobs(size, split, pictures, rank=world.rank, world=world.size),
        max_images=size, image_bytes=image_bytes, workers=base.data.workers, device=world.device,
    ) as loader:  # fmt: skip
        yield ((mine[number * size :][: len(batch.labels)], batch) for number, batch in enumerate(loader))
