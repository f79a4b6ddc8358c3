"""--deterministic: what it costs, and whether it does what it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Found, Place, timed
from benchmarks.gpu.steps import config_of, ours
from benchmarks.gpu.waits import BATCH, VARIANTS

STEPS = 5


def price(place: Place) -> Found:
    """Images/s with and without; and with torch's filling of new memory, which the trainer turns off."""
    training = ours(place, config_of(place, {"deterministic": True}))
    found: Found = {"deterministic": timed(place, training.step, rounds=3)}
    filling: Any = torch.utils.deterministic
    filling.fill_uninitialized_memory = True
    found["deterministic, new memory filled"] = timed(place, training.step, rounds=3)
    filling.fill_uninitialized_memory = False
    del training
    place.forget()
    found["fastest"] = timed(place, ours(place, config_of(place)).step, rounds=3)
    return found


def bitwise(place: Place) -> Found:
    """Whether five steps end with the same bits twice, by variant of the step."""
    variants = dict(list(VARIANTS.items())[2:] if place.tiny else VARIANTS.items())
    return {name: _same_twice(place, options) for name, options in variants.items()}


def _same_twice(place: Place, options: Any) -> bool:
    first, second = (_end(place, {"deterministic": True, **options}) for _ in range(2))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _end(place: Place, options: Any) -> dict[str, Tensor]:
    training = ours(place, config_of(place, options, batch=min(place.batch, BATCH)))
    for _ in range(STEPS):
        training.step()
    return {name: tensor.clone() for name, tensor in training.state.tensors().items()}
