"""How fast a member answers: the median time of one image, decoded already."""

from __future__ import annotations

import statistics
import time

import torch

from trainer.data.augment.batch import to_input
from trainer.learning.evaluation import autocast, forward_dtype
from trainer.learning.world import World
from trainer.recipes.config import Config
from trainer.scoring.members import Member
from trainer.scoring.memory import telling_full_gpu
from trainer.scoring.probabilities import config_for

FIRST_TRIES, TRIES = 2, 9
MOST_SECONDS_OF_TRIES = 2.0  # a large network on a CPU has fewer tries


@torch.inference_mode()
@telling_full_gpu(1)
def latency_seconds(member: Member, base: Config, world: World) -> float:
    """Median seconds from the pixels of one image to its answer on the host, after a few that warm up."""
    config = config_for(member.card, base)
    model = member.model.to(world.device).to(memory_format=torch.channels_last)
    image = torch.zeros(1, config.data.val_crop, config.data.val_crop, 3, dtype=torch.uint8)
    taken, ends = list[float](), time.perf_counter() + MOST_SECONDS_OF_TRIES
    while len(taken) < FIRST_TRIES + TRIES and (len(taken) <= FIRST_TRIES or time.perf_counter() < ends):
        started = time.perf_counter()
        pixels = image.to(world.device)
        with autocast(config, world.device):
            images = to_input(pixels, torch.zeros(1, dtype=torch.bool, device=world.device), config.data,
                              dtype=forward_dtype(config))  # fmt: skip
            model(images).float().cpu()  # waits for the device
        taken.append(time.perf_counter() - started)
    model.cpu()  # others may need the room
    return statistics.median(taken[FIRST_TRIES:])
