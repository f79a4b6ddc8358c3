"""The command that scores weights on validation images: `python -m trainer.evaluate digits --store out`.

`make evaluate RUN=digits` is the same. Nothing of a run is changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from trainer.contract import Exit, MachineError, RunEnv, UserError
from trainer.process.scratch import open_scratch
from trainer.text import forgive_output, tell

if TYPE_CHECKING:
    from trainer.data.reading.split import PreparedSplit
    from trainer.learning.world import World
    from trainer.scoring.members import Member
    from trainer.store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score weights on validation images: top-1, top-5 and loss, each image once."""

    models: tyro.conf.Positional[str]
    """What to score: a run (its best checkpoint), RUN@newest, or RUN@STEP; else $TRAINER_RUN_ID."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    scratch: str
    """Local folder for data and predictions; else $TRAINER_SCRATCH_DIR."""
    data: str = ""
    """What to score on: prepared data, or what `make prepare` takes; else $TRAINER_DATA, or the recipe's own."""
    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """Of a run: the model, its moving average, or the mean of its last epochs; auto: what scored best."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute."""
    batch_size: int = 256
    """Images at a time on each device."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""


def score_models(options: Options, world: World) -> dict[str, Any]:
    """The scores as JSON. Raises UserError, StoreError."""
    from trainer.scoring.forward import predict_split
    from trainer.scoring.members import open_member
    from trainer.scoring.predictions import Predictions
    from trainer.store import open_store

    store = open_store(options.store)
    member = open_member(options.models, store, options.weights)
    split = open_split(options, store, [member], world)
    base = base_config(options)
    with tempfile.TemporaryDirectory(dir=open_scratch(options.scratch), prefix="predictions-") as folder:
        predictions = Predictions(Path(folder) / "0", len(split), len(split.classes))
        predict_split({member: predictions}, split, base, world, lambda count: None)
        hits = sum(
            int((rows.argmax(axis=1) == split.labels[first : first + len(rows)]).sum())
            for first, rows in predictions.chunks()
        )
    return {"model": options.models, "images": len(split), "val/top1": hits / len(split)}


def base_config(options: Options) -> Any:
    """What does not depend on the weights."""
    from trainer.recipes.config import Config, DataConfig

    return Config(
        precision=options.precision, device=options.device, val_batch_size=options.batch_size,
        data=DataConfig(workers=options.workers),
    )  # fmt: skip


def open_split(options: Options, store: ObjectStore, members: Sequence[Member], world: World) -> PreparedSplit:
    """The validation images, staged on this machine. Raises UserError."""
    from trainer.data.format import Copies, read_index
    from trainer.data.reading.split import PreparedSplit
    from trainer.data.stage import stage
    from trainer.recipes.config import DataConfig
    from trainer.recipes.named import default_data
    from trainer.recipes.sides import wanted_span

    card = members[0].card
    data = options.data or os.environ.get(RunEnv.variable("data"), "") or default_data(card.recipe)
    span = wanted_span(DataConfig(), "val", card.val_resize)
    folder = stage(data, open_scratch(options.scratch), Copies(), {"val": frozenset({span})}, workers=options.workers)
    index = read_index(folder)
    return PreparedSplit(folder, index, "val", index.sides_for("val", span)[0])


def main(arguments: list[str] | None = None) -> int:
    names = {"models": "run_id", "store": "store", "scratch": "scratch_dir"}
    given: dict[str, Any] = {
        name: os.environ.get(RunEnv.variable(field)) or tyro.MISSING for name, field in names.items()
    }
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.evaluate", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.learning.world import join
    from trainer.store import StoreError

    try:
        with join(base_config(options)) as world:
            found = score_models(options, world)
            if world.is_main:
                tell("\n".join(f"{name}: {value}" for name, value in found.items()))
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except (StoreError, MachineError) as error:
        tell(f"error: {error}", sys.stderr)
        return 1
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
