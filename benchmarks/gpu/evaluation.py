"""Images/s of a validation without its loader: preprocessing and forward pass, as `evaluate` does them."""

from __future__ import annotations

import torch

from benchmarks.gpu.measure import Found, Place, timed
from benchmarks.gpu.steps import config_of, feed
from trainer.data.augment.batch import to_input
from trainer.learning.evaluation import autocast, forward_dtype
from trainer.learning.state import make_state
from trainer.setup import set_backends


def rates(place: Place, *, compiled: bool = False) -> Found:
    return {precision: _rate(place, precision, compiled) for precision in ("bf16", "fp16")[: 1 if compiled else 2]}


def _rate(place: Place, precision: str, compiled: bool) -> Found:
    config = config_of(place, {"precision": precision, **({"compile": True} if compiled else {})})
    set_backends(config)
    model = make_state(config, place.device, initialise=True).model.eval()
    net = torch.compile(model, dynamic=False) if compiled else model
    batch = next(feed(place, config))

    @torch.inference_mode()
    def step() -> None:
        images = to_input(batch.images, batch.flips, config.data, dtype=forward_dtype(config))
        with autocast(config, place.device):
            net(images)

    return timed(place, step, rounds=3)
