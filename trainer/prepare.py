"""`make prepare`: images in any known form become shards in a store, once. Training reads them from there.

Only the command line lives here; the work is in `trainer.data.making.prepare`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import tyro

from trainer.contract import RUN_ID_RULE, Exit, Phase, RunEnv, UserError
from trainer.process.scratch import open_scratch
from trainer.text import forgive_output, say, tell

if TYPE_CHECKING:
    from trainer.data.making.prepare import Prepared
    from trainer.prepare_run import PrepareRun
    from trainer.store import ObjectStore

RUN_PREFIX = "prepare-"  # the run id of a preparation begins so, and that of a training does not


def _given_run() -> str:
    run_id = os.environ.get(RunEnv.variable("run_id"), "")
    return run_id if run_id.startswith(RUN_PREFIX) else ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn images into the shards that training reads, once. Run again, it continues, or finds that all is done.

    Each image is decoded once and stored as one JPEG per short side. Other images or options make another version
    beside the first. The shards are Arrow files: `datasets.load_dataset("arrow", data_files=...)` opens them, too.
    """

    data: str
    """digits, a Hugging Face id (ILSVRC/imagenet-1k), a folder of parquet files, an image folder (train/, val/), or
    ImageNet's own files as they were downloaded."""

    store: str
    """Where the shards go, under datasets/<name>/<version>/: s3://bucket/prefix or a folder."""

    train_sides: tuple[int, ...] = (480, 256, 128)
    """Short sides in pixels; training images are stored with each, and read from the smallest that serves: 480 for
    small crops, 256 for whole images at 224, 128 for low resolutions. Smaller images stay so. Without 480 ImageNet
    takes a quarter of the bytes, and small crops are enlarged."""

    val_sides: tuple[int, ...] = (480, 320)
    """Likewise for validation images. 320 serves evaluation at resize 232, 480 at resize 293."""

    quality: int = 90
    """JPEG quality, 1 to 95, of what is shrunk or converted (4:2:0). Small baseline JPEGs keep their pixels."""

    data_config: str = ""
    """Which config to read, as `datasets` names it, where the data has several: 160px, or the name of a folder."""

    train_split: str = ""
    """Which split is for training, where the names leave that open: train, or several as train+extra."""

    val_split: str = ""
    """Likewise for validation: test, for data that has only train and test."""

    image_column: str = ""
    """The column of parquet files that holds the images, if it is not called image."""

    label_column: str = ""
    """The column that holds the labels, if it is not called label: fine_label."""

    accept_incomplete: bool = False
    """Go on where shards are missing, or where README.md declares other numbers of images. The summary says what."""

    strict_data: bool = False
    """Refuse what is else only told at the end: images that are in training and in validation, an image with two
    labels, classes without images or with few."""

    workers: int = 0
    """Threads that decode and encode; 0 means one per core."""

    max_broken_share: float = 0.001
    """Broken images are named, counted and left out; more than this share of all is an error."""

    verify_source: bool = False
    """Read every file of a folder again. Otherwise a file is known by its size, times and inode, if this machine has
    read it before; TRAINER_SCRATCH_DIR holds what it remembers."""

    secrets_dir: str = field(default_factory=lambda: os.environ.get(RunEnv.variable("secrets_dir"), ""))
    """Folder with the file hf_token, for gated data; without it HF_TOKEN or `hf auth login` counts."""

    run_id: str = field(default_factory=_given_run)
    """prepare-…: keep attempts, a heartbeat, and done.json or failed.json under runs/<run id>/ of the store, as on AWS,
    where it comes from TRAINER_RUN_ID; a finished run does nothing. Another TRAINER_RUN_ID is a training's."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: _leave())
    try:
        options = tyro.cli(Options, prog="python -m trainer.prepare")
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.prepare_run import exit_code, record
    from trainer.store import StoreError, open_store

    def work(run: PrepareRun) -> dict[str, Any]:
        signal.signal(signal.SIGTERM, lambda *_: _leave(run))
        prepared = _prepare(options, store, run)
        images = sum(split.images for split in prepared.index.splits.values())
        return {"dataset": store.describe(prepared.prefix), "images": images}

    try:
        _check_run_id(options.run_id)
        store = open_store(options.store)
        if options.run_id:
            record(store, options.run_id, work)
        else:
            _prepare(options, store)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return exit_code(error) if options.run_id else Exit.USER
    except (StoreError, OSError) as error:
        tell(f"error: {error}; the shards written so far are kept, run the same command again", sys.stderr)
        return 1
    except KeyboardInterrupt:
        tell("stopped; run the same command again to continue", sys.stderr)
        return 130
    return Exit.FINISHED


def _leave(run: PrepareRun | None = None) -> None:
    """End at once after SIGTERM. What is whole in the store counts, and a later call continues.

    An exception, as for Ctrl-C, would take long: the hub's client would first finish its downloads.
    """
    if run is not None:
        run.interrupt()
    say("stopped; what was prepared so far is kept, run the same command again to continue")
    os._exit(Exit.INTERRUPTED)


def _check_run_id(run_id: str) -> None:
    if run_id and not (run_id.startswith(RUN_PREFIX) and re.fullmatch(RUN_ID_RULE, run_id)):
        raise UserError(
            f"--run-id {run_id!r} is not the run id of a preparation: it begins with {RUN_PREFIX}, then {RUN_ID_RULE} "
            "(lower case, digits, '-', '_', '.'), for example prepare-imagenet; without one nothing is recorded"
        )


def _prepare(options: Options, store: ObjectStore, run: PrepareRun | None = None) -> Prepared:
    from trainer.data.format import Copies
    from trainer.data.making.layout import Choices
    from trainer.data.making.prepare import prepare
    from trainer.data.making.revision.manifest import SOURCES, SourceMemory
    from trainer.store import naming_the_fix

    for lack in store.probe("datasets/probe", creates=True):
        say(f"note: {lack}")
    scratch = os.environ.get(RunEnv.variable("scratch_dir"))
    with naming_the_fix(f"the data {options.data}, or the store {store.uri},"):
        prepared = prepare(
            options.data,
            store,
            Copies(options.train_sides, options.val_sides, options.quality),
            choices=Choices(
                options.data_config,
                options.train_split,
                options.val_split,
                options.image_column,
                options.label_column,
                options.accept_incomplete,
            ),
            secrets_dir=options.secrets_dir,
            workers=options.workers,
            max_broken_share=options.max_broken_share,
            strict=options.strict_data,
            memory=SourceMemory(open_scratch(scratch) / SOURCES if scratch else None, options.verify_source),
            progress=partial(run.count, Phase.PREPARING) if run else None,
            downloaded=partial(run.count, Phase.STAGING) if run else None,
        )
    where = store.describe(prepared.prefix)
    tell(f"prepared: {where}\ntrain from it: make train DATA={shlex.quote(where)}")
    return prepared


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
