"""The operations of a policy that change an image's values and leave them where they are.

Each takes (n, H, W, 3) uint8 and (n, 1, 1, 1) float64 magnitudes, and gives uint8. Rounding is torchvision's. PIL's
differs by a level.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor


def blend(images: Tensor, other: Tensor | float, magnitudes: Tensor) -> Tensor:
    """`other` at magnitude -1, the images at 0, and beyond them at 1."""
    share = 1 + magnitudes
    return (share.float() * images).add_((1 - share).float() * other).clamp_(0, 255).byte()


def grey(images: Tensor) -> Tensor:
    """(n, H, W, 1) uint8."""
    r, g, b = images[..., :1], images[..., 1:2], images[..., 2:]
    return (0.2989 * r).add_(0.587 * g).add_(0.114 * b).byte()


def brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    return blend(images, 0.0, magnitudes)


def color(images: Tensor, magnitudes: Tensor) -> Tensor:
    return blend(images, grey(images), magnitudes)


def contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    # A sum of integers. In float32 it would depend on the order, and so on the device and the size of the group.
    total = grey(images).sum((1, 2, 3), keepdim=True)
    return blend(images, (total.double() / (images.shape[1] * images.shape[2])).float(), magnitudes)


def sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from or towards the mean of nine pixels, where the middle one counts five times. The border stays."""
    wide = images.short()  # holds 13 x 255
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    blurred = images.float()
    blurred[:, 1:-1, 1:-1] = (total / 13).round_()
    return blend(images, blurred, magnitudes)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    shift = (8 - bits).byte()
    return images >> shift << shift


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the values from the threshold on, which is 256 where none is."""
    return images ^ (images >= thresholds.ceil().short()).byte().mul_(255)  # v ^ 255 is 255 - v


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Add to the values below 128."""
    return torch.where(images < 128, images.short().add_(added.short()).clamp_(max=255).byte(), images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return ~images


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to 0 … 255. A channel with a single value stays."""
    low, high = images.amin(1).amin(1)[:, None, None], images.amax(1).amax(1)[:, None, None]
    flat = low == high
    scale = 255 / torch.where(flat, 255, high - low).float()
    return (images - torch.where(flat, 0, low).float()).mul_(scale).clamp_(0, 255).byte()


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Give every channel the most even histogram that a table of 256 values allows."""
    n, _height, _width, channels = images.shape
    tables = torch.arange(0, n * channels * 256, 256, device=images.device).view(n, 1, 1, channels)
    entries = (images + tables).view(-1)  # of each pixel's value, in the table of its image and channel
    # bincount waits for a GPU, and deterministic runs refuse histc. A sum of integers does not depend on the order.
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand(entries.shape)
    histogram = torch.zeros(n * channels * 256, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, entries, ones).view(-1, 256)
    upto = histogram.cumsum(1)
    step = torch.where(upto < upto[:, -1:], upto, 0).amax(1, keepdim=True) // 255  # of all but the brightest value
    table = ((upto - histogram + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    same = torch.arange(256, device=images.device)
    table = torch.where(step > 0, table, same).byte()
    return table.view(-1).index_select(0, entries).view(images.shape)


PIXELWISE: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "Brightness": brightness,
        "Color": color,
        "Contrast": contrast,
        "Sharpness": sharpness,
        "Posterize": posterize,
        "Solarize": solarize,
        "AutoContrast": autocontrast,
        "Equalize": equalize,
        "Invert": invert,
        "SolarizeAdd": solarize_add,
    }
)
