"""What a run computes: a recipe's facts, which the trainer writes into a small file, with the options of the launch.

`speeds` says how fast machines do it, `estimate` what it costs. Which options there are is in `arguments`.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from infra.config import ROOT
from infra.operate.planning.arguments import is_on, number_given, value_of
from trainer.contract import UserError

TRAINER_FACTS = (
    ROOT / "trainer/recipes/recipes.json"
)  # `python -m trainer.recipes.facts` writes it, and a test compares
FULL_PIXELS = 224
BASE = "resnet50"  # the network of the tables of speed
# Options that change the time of a run, and that no estimate counts. `--epochs`, `--size` and those of `work_of` are.
UNCOUNTED = (
    "data.resolution", "data.start-resolution", "data.ramp-start-epoch", "data.ramp-end-epoch", "data.val-crop",
    "data.repeats", "device-batch-size", "fused-norm", "cuda-graphs", "model.blur-pool",
)  # fmt: skip

# Options that change which stored sides are wanted, and that nobody computes here: every side counts then.
OTHER_PIXELS = (
    "data.resolution", "data.start-resolution", "data.ramp-start-epoch", "data.ramp-end-epoch", "data.val-resize",
    "data.crop-scale", "data.crop-ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """How many images a data set has."""

    train: int
    val: int


IMAGENET = Images(1_281_167, 50_000)
DIGITS = Images(1_437, 360)


@dataclass(frozen=True)
class Stage:
    """Epochs that train at one size of images."""

    pixels: int
    epochs: float


@dataclass(frozen=True)
class Reported:
    """The accuracy that a recipe's source reports: percent of validation images at this size of crop."""

    top1: float
    pixels: int
    source: str
    note: str = ""


@dataclass(frozen=True)
class WantedSides:
    """The least and the most short side wanted of each split: all crops from one copy, or each from its own."""

    one_copy: dict[str, list[tuple[int, int]]]
    per_crop: dict[str, list[tuple[int, int]]]

    def scaled(self, times: float) -> WantedSides:
        """As `--size`, to a pixel: in proportion."""
        return WantedSides(_scaled(self.one_copy, times), _scaled(self.per_crop, times))


def _scaled(wanted: dict[str, list[tuple[int, int]]], times: float) -> dict[str, list[tuple[int, int]]]:
    return {
        split: [(math.ceil(least * times), math.ceil(most * times)) for least, most in spans]
        for split, spans in wanted.items()
    }


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a recipe computes. `step_cost` is the time of a step over that of a plain network of the same name."""

    recipe: str
    data: str  # what it trains on unless told
    precision: str
    compile: bool
    epochs: int
    stages: tuple[Stage, ...]
    val_crop: int
    val_every_epochs: int
    val_passes: int = 1  # networks that a validation scores: 2 with an average of the weights
    train_sides: tuple[int, ...]
    copy_per_crop: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    val_side: int = 320  # that validation images are stored with, where the machine prepares them
    wanted: WantedSides | None = None  # None: every stored side
    batch: int = 256  # images of a step
    device_batch: int = 256  # images at once on the device
    step_cost: float = 1.0
    network: str = BASE
    weights: str = ""  # that it starts from
    promise: Reported | None = None

    @property
    def full_epochs(self) -> float:
        """Epochs of 224 px that are as much work: an image counts by its area."""
        return sum(stage.epochs * (stage.pixels / FULL_PIXELS) ** 2 for stage in self.stages)

    def staged(self, split: str, stored: Iterable[int]) -> tuple[int, ...]:
        """Of the sides that a split is stored with: those that the machine fetches. As `Index.sides_for`."""
        sides = sorted(stored)
        if not sides or self.wanted is None:
            return tuple(sides)
        spans = (self.wanted.per_crop if self.copy_per_crop else self.wanted.one_copy)[split]
        ends = [[min(bisect_left(sides, end), len(sides) - 1) for end in span] for span in spans]
        return tuple(side for place, side in enumerate(sides) if any(low <= place <= high for low, high in ends))

    @property
    def validations(self) -> int:
        """After every so many epochs, and at the end."""
        return -(-self.epochs // self.val_every_epochs)

    @property
    def images(self) -> Images:
        """Of its own data. A data set that nobody has looked at counts as ImageNet."""
        return DIGITS if self.data == "digits" else IMAGENET


@cache
def trainer_facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TRAINER_FACTS.read_text())
    return found


def recipes() -> list[str]:
    return list(trainer_facts()["recipes"])


def check_recipe(recipe: str) -> None:
    if recipe not in trainer_facts()["recipes"]:
        raise UserError(f"recipe {recipe!r} is unknown: choose one of {', '.join(recipes())} (RECIPE=finetune)")


def work_of(recipe: str, arguments: Sequence[str] = ()) -> Work:
    """The work of a recipe with these options. Raises UserError if there is no such recipe."""
    check_recipe(recipe)
    work = _work_from(recipe, trainer_facts()["recipes"][recipe])
    if size := int(number_given("size", arguments)):
        work = with_size(work, size)
    if epochs := int(number_given("epochs", arguments)):
        work = with_epochs(work, epochs)
    return replace(
        work,
        batch=int(number_given("global-batch-size", arguments)) or work.batch,
        precision=value_of("precision", arguments) or work.precision,
        compile=is_on("compile", arguments, work.compile),
        network=value_of("model.name", arguments) or work.network,
        weights=value_of("model.weights", arguments) or work.weights,
        val_every_epochs=int(number_given("val-every-epochs", arguments)) or work.val_every_epochs,
        train_sides=tuple(int(side) for side in value_of("data.train-sides", arguments).split()) or work.train_sides,
        copy_per_crop=is_on("data.copy-per-crop", arguments, work.copy_per_crop),
        wanted=None if any(value_of(name, arguments) for name in OTHER_PIXELS) else work.wanted,
    )


def _work_from(recipe: str, fields: dict[str, Any]) -> Work:
    kept = {name: fields[name] for name in Work.__dataclass_fields__ if name in fields}
    kept["stages"] = tuple(Stage(pixels, epochs) for pixels, epochs in fields["stages"])
    kept["wanted"] = WantedSides(**fields["wanted"])
    kept["promise"] = Reported(**fields["promise"]) if fields["promise"] else None
    return Work(
        recipe=recipe, **kept | {name: tuple(fields[name]) for name in ("train_sides", "crop_scale") if name in fields}
    )


def with_size(work: Work, size: int) -> Work:
    """As `--size`: the last stage has so many pixels, and everything else follows in proportion."""
    times = size / work.stages[-1].pixels
    return replace(
        work,
        stages=tuple(Stage(round(stage.pixels * times), stage.epochs) for stage in work.stages),
        val_crop=round(work.val_crop * times),
        train_sides=tuple(-(-side * size // work.stages[-1].pixels) for side in work.train_sides),
        val_side=round(work.val_side * times),
        wanted=work.wanted and work.wanted.scaled(times),
    )


def with_epochs(work: Work, epochs: int) -> Work:
    """As `--epochs`: the ramp follows in proportion."""
    stages = tuple(Stage(stage.pixels, stage.epochs * epochs / work.epochs) for stage in work.stages)
    return replace(work, epochs=epochs, stages=stages)


def uncounted(arguments: Sequence[str]) -> list[str]:
    """The given options that change the time of a run, but not its estimate."""
    return [f"--{name}" for name in UNCOUNTED if value_of(name, arguments)]
