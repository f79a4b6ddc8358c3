"""An average of a model over its steps: weights and BatchNorm buffers."""

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
    def update(self, decay: float) -> None:
        """Move towards the model: weights and BatchNorm buffers alike. `schedule` says how far.

        A decay of 0 copies the model bit for bit.
        """
        torch._foreach_lerp_(self.averaged, self.current, 1.0 - decay)
        if self.counts:
            torch._foreach_copy_(self.counts, self.current_counts)
