"""Named runs: functions that return a frozen config and promise a result, and the command line over them.

Promises carry their source; a figure that was not measured by this project says whose it is. No torch here, so that
`--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from types import MappingProxyType

from trainer.config import Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig
from trainer.contract import Exit, UserError


def digits() -> Config:
    """ResNet-18 on the 1,797 handwritten digits that ship with scikit-learn: over 98 % top-1 in about a minute.

    The laptop's end-to-end run: same preparation, loader, loop, checkpoints and report as ImageNet.
    """
    return Config(
        recipe="digits",
        epochs=8,
        global_batch_size=32,
        device_batch_size=32,
        precision="fp32",
        log_every_steps=22,
        model=ModelConfig(name="resnet18", num_classes=10),
        data=DataConfig(
            resolution=32, start_resolution=32, val_resize=32, val_crop=32,
            crop_scale=(0.7, 1.0), flip_probability=0.0,
            mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35), train_sides=(32,), val_side=32, quality=95, workers=2,
        ),
        optim=OptimConfig(peak_lr=0.02, weight_decay=5e-4),
        regularize=RegularizeConfig(label_smoothing=0.05, ema_decay=0.97),
    )  # fmt: skip


def finetune() -> Config:
    """ResNet-50 from torchvision's V2 weights, 30 epochs of OneCycle at a peak learning rate of 0.002.

    Batch 128 x 4 accumulation steps, 224 px. Not yet measured. Nearest public run: torchvision's own V2 weights,
    80.858 % top-1 at resize 232 (torchvision's model page). V1: `--model.weights IMAGENET1K_V1`.
    """
    return Config(
        recipe="finetune",
        epochs=30,
        global_batch_size=512,
        device_batch_size=128,
        model=ModelConfig(weights="IMAGENET1K_V2"),
        optim=OptimConfig(peak_lr=0.002, weight_decay=1e-4, div=25.0, final_div=1e4, pct_start=0.3, anneal="cos"),
        regularize=RegularizeConfig(label_smoothing=0.1),
    )


RECIPES: MappingProxyType[str, Callable[[], Config]] = MappingProxyType({"digits": digits, "finetune": finetune})
DEFAULT_DATA = MappingProxyType({"digits": "digits"})


def default_data(recipe: str) -> str:
    """What a recipe trains on when TRAINER_DATA does not say."""
    return DEFAULT_DATA.get(recipe, "ILSVRC/imagenet-1k")


def command_line(prog: str, argv: Sequence[str]) -> Config:
    """`<recipe> [--option value …]` as a config. `--help` prints and exits 0; usage errors raise UserError."""
    import tyro  # half of this module's import time, and only a command line needs it

    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise UserError(f"recipe {argv[0]!r} is unknown: choose one of {', '.join(RECIPES)} (RECIPE=digits)")
    choices = {name: (inspect.cleandoc(recipe.__doc__ or ""), recipe()) for name, recipe in RECIPES.items()}
    try:
        config = tyro.extras.overridable_config_cli(choices, prog=prog, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"these options are not understood: see `{' '.join([prog, *argv[:1]])} --help`") from stop
    return config.validate()


def command_line_or_exit(prog: str) -> Config:
    """The process's own command line; a mistake in it ends the process with a message and exit code 78."""
    try:
        return command_line(prog, sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.USER)


if __name__ == "__main__":  # checks a command line and names its recipe: the supervisor asks before it starts anything
    checked = command_line_or_exit("python -m trainer.train")
    print(json.dumps({name: getattr(checked, name) for name in ("recipe", "global_batch_size", "device_batch_size")}))
