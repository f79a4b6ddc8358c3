"""`make prepare`: images in any known form become shards in a store, once. Training reads them from there.

Only the command line lives here; the work is in `trainer.data.prepare`.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field

import tyro

from trainer.contract import Exit, RunEnv, UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn images into the shards that training reads, once. Run again, it continues, or finds that all is done.

    Each image is decoded once and stored as one JPEG per short side. Other images or options make another version
    beside the first. The shards are Arrow files: `datasets.load_dataset("arrow", data_files=...)` opens them, too.
    """

    data: str
    """digits, a Hugging Face id (ILSVRC/imagenet-1k), a folder of parquet files, or an image folder (train/, val/)."""

    store: str
    """Where the shards go, under datasets/<name>/<version>/: s3://bucket/prefix or a folder."""

    train_sides: tuple[int, ...] = (256, 128)
    """Short sides in pixels; training images are stored with each, and read from the smallest that serves. 256 is made
    for training at 224, 128 for up to 112 (progressive resizing starts there). Smaller images are not enlarged."""

    val_sides: tuple[int, ...] = (320,)
    """Likewise for validation images; several are allowed. 320 serves evaluation at resize 232 to 320."""

    quality: int = 90
    """JPEG quality, 1 to 95, of what is shrunk or converted (4:2:0). Small baseline JPEGs keep their pixels."""

    workers: int = 0
    """Threads that decode and encode; 0 means one per core."""

    max_broken_share: float = 0.001
    """Broken images are named, counted and left out; more than this share of all is an error."""

    secrets_dir: str = field(default_factory=lambda: os.environ.get(RunEnv.variable("secrets_dir"), ""))
    """Folder with the file hf_token, for gated data; without it HF_TOKEN or `hf auth login` counts."""


def main() -> int:
    try:
        options = tyro.cli(Options, prog="python -m trainer.prepare")
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError

    try:
        _prepare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER
    except (StoreError, OSError) as error:
        print(f"error: {error}; the shards written so far are kept, run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return Exit.FINISHED


def _prepare(options: Options) -> None:
    from trainer.data.prepare import prepare
    from trainer.data.shards import Copies
    from trainer.store import explained, open_store

    store = open_store(options.store)
    store.probe("datasets/probe")
    with explained(f"the data {options.data}, or the store {store.uri},"):
        prepared = prepare(
            options.data,
            store,
            Copies(options.train_sides, options.val_sides, options.quality),
            secrets_dir=options.secrets_dir,
            workers=options.workers,
            max_broken_share=options.max_broken_share,
        )
    where = store.describe(prepared.prefix)
    print(f"prepared: {where}\ntrain from it: make train DATA={shlex.quote(where)}")


if __name__ == "__main__":
    sys.exit(main())
