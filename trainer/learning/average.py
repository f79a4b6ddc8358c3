"""The exponential moving average of a model: weights and BatchNorm buffers."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model after step number `step` (from 1): weights and BatchNorm buffers alike.

    The decay warms up as (1 + step) / (10 + step), so that a young average is not the random start
    (TensorFlow's ExponentialMovingAverage, `num_updates`).
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    averaged, current = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [i for i, tensor in enumerate(current) if tensor.is_floating_point()]
    torch._foreach_lerp_([averaged[i] for i in floats], [current[i] for i in floats], weight)
    for i in set(range(len(current))) - set(floats):  # num_batches_tracked
        averaged[i].copy_(current[i])
