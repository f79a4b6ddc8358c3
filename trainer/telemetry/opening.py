"""What a run leaves for TensorBoard at its beginning: its first training images as the network sees them, its config.

The images are those of the first step, with their own random numbers, so nothing is drawn or read for them.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from trainer.contract import tensorboard_key
from trainer.data.augment.batch import normalisation, to_input
from trainer.data.reading.loader import Batch
from trainer.learning.evaluation import forward_dtype
from trainer.learning.forward import inputs_of
from trainer.learning.step import draws_of
from trainer.recipes.config import Config
from trainer.recipes.fields import flatten, to_json
from trainer.telemetry.metrics import MetricsWriter
from trainer.text import say
from trainer.upload import summaries
from trainer.upload.records import head, value_record

SHOWN_IMAGES, GRID_COLUMNS, QUALITY = 24, 8, 90


def with_opening(
    batches: Iterator[Batch], config: Config, models: Iterable[str], metrics: MetricsWriter
) -> Iterator[Batch]:
    """The micro-batches of a new run as they come. With the first one, the opening goes to the uploader.

    `models` are scored in this run: val, val_ema. Only the main process does this. A run goes on without it.
    """
    first = next(batches)
    try:
        body = opening(first_images(first, config, draws_of(config, 0, 0)), config, models)
    except Exception as error:  # noqa: BLE001  # whatever it is: it is a picture
        say(f"TensorBoard gets no first images and no config: {type(error).__name__}: {error}")
    else:
        metrics.send_file(tensorboard_key(metrics.run_id, metrics.attempt, summaries.OPENING), body)
    yield first
    yield from batches


def first_images(batch: Batch, config: Config, draw: Callable[[], np.random.Generator]) -> Tensor:
    """(N, 3, H, W) uint8 on the device: the first SHOWN_IMAGES of a micro-batch, augmented and mixed as in the step.

    Each is mixed with the one before it, and the first with the last.
    """
    few = [-1, *range(min(SHOWN_IMAGES, len(batch.images)))]
    some = Batch(batch.images[few], batch.labels[few], batch.flips[few], batch.draws[few])
    inputs = inputs_of(some, config, draw)
    images = inputs.images
    if images.dtype == torch.uint8:
        images = to_input(images, inputs.flips, config.data, dtype=forward_dtype(config))
    mean, std = normalisation(config.data.mean, config.data.std, images.device)
    pixels = images[1:].float() * std[:, None, None] + mean[:, None, None]
    return pixels.round().clamp(0, 255).to(torch.uint8)


def opening(images: Tensor, config: Config, models: Iterable[str]) -> bytes:
    """An event file: a grid of these (N, 3, H, W) uint8, the config as text, and its fields as options of the run."""
    grid = make_grid(images, nrow=GRID_COLUMNS).permute(1, 2, 0).cpu().numpy()
    jpeg, now = io.BytesIO(), time.time()
    Image.fromarray(grid).save(jpeg, "JPEG", quality=QUALITY)
    metrics = ["train/loss", *(f"{model}/{metric}" for model in models for metric in ("top1", "top5", "loss"))]
    values = [
        summaries.picture("train/images", grid.shape[1], grid.shape[0], jpeg.getvalue()),
        summaries.text("config", f"```json\n{json.dumps(to_json(config), indent=1)}\n```"),
        *summaries.hparams(flatten(config, operational=False), metrics, now),
    ]
    return head(now) + b"".join(value_record(now, 0, value) for value in values)
