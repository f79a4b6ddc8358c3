"""The exponential moving average of a model: weights and BatchNorm buffers."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a model that follows it. What it works on is listed once, since a step is too short to look for it."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # BatchNorm's num_batches_tracked
        self.averaged, self.current = ([pair[i] for pair in floats] for i in (0, 1))
        self.counts, self.current_counts = ([pair[i] for pair in counts] for i in (0, 1))

    @torch.no_grad()
    def update(self, decay: float, step: int) -> None:
        """Move towards the model after step number `step` (from 1): weights and BatchNorm buffers alike.

        The decay warms up as (1 + step) / (10 + step), so that a young average is not the random start
        (TensorFlow's ExponentialMovingAverage, `num_updates`).
        """
        torch._foreach_lerp_(self.averaged, self.current, 1.0 - min(decay, (1 + step) / (10 + step)))
        if self.counts:
            torch._foreach_copy_(self.counts, self.current_counts)
