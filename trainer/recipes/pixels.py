"""Rules of the sizes of images: what the network and the stem can take, and a ramp that reaches its end.

torch is not imported here.
"""

from __future__ import annotations

from trainer.recipes.config import Config
from trainer.recipes.networks import network_of
from trainer.recipes.rule import Rule


def pixel_rules(config: Config) -> list[Rule]:
    # The networks shrink an image 32 times. For smaller images, bf16 gradients of the last stage are garbage on a CPU,
    # and sometimes NaN (measured at 16 px with torch 2.15: in 13 of 45 short runs).
    data, name, network = config.data, config.model.name, network_of(config.model.name)
    shown = [
        ("--data.resolution", data.resolution),
        ("--data.start-resolution", data.start_resolution),
        ("--data.val-crop", data.val_crop),
    ]
    least = [
        *((option, pixels, network.least) for option, pixels in shown),
        *(("--data.train-sides", side, 8) for side in data.train_sides),
        ("--data.val-side", data.val_side, 8),
        ("--data.resolution-multiple", data.resolution_multiple, 1),
    ]
    only = f"{network.only} with --model.name {name}, which takes no other size"
    return [
        *((option, pixels, low <= pixels <= 2048, f"{low} to 2048 pixels") for option, pixels, low in least),
        *((option, pixels, network.only in (0, pixels), only) for option, pixels in shown),
    ]


def stem_rules(config: Config) -> list[Rule]:
    data, rule = config.data, "even with --model.blocked-stem, which takes pixels in blocks of 2x2"
    sizes = [
        ("--data.resolution", data.resolution),
        ("--data.start-resolution", data.start_resolution),
        ("--data.val-crop", data.val_crop),
        ("--data.resolution-multiple", data.resolution_multiple),
    ]
    return [(option, size, size % 2 == 0, rule) for option, size in sizes if config.model.blocked_stem]


def ramp_rules(config: Config) -> list[Rule]:
    """Images that grow reach their final size before the last epoch. An older run may have begun otherwise."""
    data, last = config.data, config.epochs - 1
    start, end, is_flat = data.ramp_start_epoch, data.ramp_end_epoch, data.start_resolution == data.resolution
    sizes = f"--data.start-resolution {data.start_resolution} becomes --data.resolution {data.resolution}"
    typed = f"; pass --data.ramp-start-epoch {0.4 * last:.1f} --data.ramp-end-epoch {0.8 * last:.1f}"
    flat = f"{data.resolution} as --data.resolution with --epochs 1; pass --data.start-resolution {data.resolution}"
    return [
        ("--data.start-resolution", data.start_resolution, is_flat or last > 0, flat),
        ("--data.ramp-end-epoch", end, is_flat or 0 < end <= last,
         f"above 0 and at most {last}, so that {sizes} before the last of --epochs {config.epochs}{typed}"),
        ("--data.ramp-start-epoch", start, is_flat or 0 <= start <= end,
         f"0 to {end:g}, where --data.ramp-end-epoch is{typed}"),
    ]  # fmt: skip
