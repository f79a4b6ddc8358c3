"""Arrays of the host, and their way to the device."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


def to_device(array: Ints | Floats, device: torch.device) -> Tensor:
    """Copy without waiting for a GPU: the allocator keeps the pinned memory until the copy is done."""
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
