"""`pull`: copy a run's results from the bucket into a local store of the same layout. `make report` can then read them.

A file that has the bucket's size and time is skipped. A copy that was cut off goes on where it ended.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.exceptions import ClientError

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.runs import ExplainedBucket, ListedObject, active_run, choose_run, need_bucket
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import LiveLine, next_commands, show_line
from infra.operate.text import size
from trainer.contract import HEAD_FILE, Lease, UserError, check_key_of, checkpoint_key, run_key

HELP = "copy a run's result, report, metrics and configuration here; with --checkpoints also its weights"
CHUNK_BYTES = 1 << 20
PARALLEL = 16


def configure(parser: CommandLine) -> None:
    parser.option(
        "run", "which run (default: the active one, else the newest)", dest="run_id", default="", metavar="RUN"
    )
    parser.option("to", "the local store (default: out)", "STORE", type=Path, default=Path("out"), metavar="FOLDER")
    parser.option("checkpoints", "the newest and the best checkpoint as well", action="store_true")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    bucket = need_bucket(aws, installation)
    run_id = choose_run(bucket, options.run_id, active_run(aws, installation))
    objects = list(bucket.list(run_key(run_id, "")))
    if options.checkpoints:
        objects += checkpoint_objects(bucket, run_id)
    download(bucket, run_id, objects, options.to)
    results = options.to / run_key(run_id, "")
    show_line(f"{results}: {', '.join(sorted(path.name for path in results.iterdir()))}")
    export = f'make checkpoints RUN={run_id} STORE={options.to} ARGS="export resnet50.safetensors"'
    next_commands(
        (
            f"make report RUN={run_id} STORE={options.to}",
            "draws the report here: the copied page is the machine's",
        ),
        (export, "plain weights")
        if options.checkpoints
        else (f"make pull RUN={run_id} CHECKPOINTS=1", "the newest and best weights"),
    )
    return ExitCode.DONE


def checkpoint_objects(bucket: ExplainedBucket, run_id: str) -> list[ListedObject]:
    """The checkpoints that HEAD.json names, and HEAD.json last. With HEAD.json, the copy is complete."""
    key = checkpoint_key(run_id, HEAD_FILE)
    body = bucket.read(key)
    if body is None:
        raise UserError(f"run {run_id!r} has no checkpoint yet: leave --checkpoints out, or wait for the first minute")
    try:
        keys, named = [], Lease.from_json(body).keys()
        for manifest in sorted(check_key_of(run_id, one) for one in named):
            if part := bucket.read_json(manifest).get("object"):
                keys += [check_key_of(run_id, part["key"]), manifest]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"s3://{bucket.name}/{key} or a manifest that it names is not what a trainer of this run writes ({error}): "
            "nothing is copied; leave --checkpoints out"
        ) from error
    return [found for name in [*keys, key] for found in bucket.list(name) if found.key == name]


def place_of(bucket: ExplainedBucket, run_id: str, key: str, folder: Path) -> Path:
    """Where the object goes. Raises UserError unless that lies in the folder, and the key belongs to the run."""
    path = folder / key
    try:
        check_key_of(run_id, key)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to {path.resolve()}")
    except ValueError as error:
        raise UserError(
            f"s3://{bucket.name}/{key} leads out of the folder {folder}, or is no file of the run ({error}): nothing "
            "is copied; find out who wrote it, then delete it"
        ) from error
    return path


def download(bucket: ExplainedBucket, run_id: str, objects: Collection[ListedObject], folder: Path) -> None:
    """Copies the objects of one run into the folder. Raises UserError, before any is copied, for a key of another."""
    placed = [(found, place_of(bucket, run_id, found.key, folder)) for found in objects]
    wanted = [(found, path) for found, path in placed if not is_here(found, path)]
    total, done, shown = sum(found.bytes for found, _ in wanted), 0, time.monotonic()
    lock, stopping = threading.Lock(), threading.Event()

    def count(read: int) -> None:
        nonlocal done, shown
        if stopping.is_set():
            raise InterruptedError
        with lock:
            done += read
            if time.monotonic() > shown + 1:
                shown = time.monotonic()
                live.show(f"{size(done)} of {size(total)}, {100 * done / total:.0f} %")

    with LiveLine() as live, ThreadPoolExecutor(PARALLEL) as pool:
        jobs = [pool.submit(fetch, bucket, found, path, count) for found, path in wanted]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    show_line(f"{len(wanted)} files with {size(total)} copied, {len(objects) - len(wanted)} were here")


def is_here(found: ListedObject, path: Path) -> bool:
    if not path.is_file():
        return False
    stat = path.stat()
    return stat.st_size == found.bytes and int(stat.st_mtime) == int(found.modified.timestamp())


def fetch(bucket: ExplainedBucket, found: ListedObject, path: Path, count: Callable[[int], None]) -> None:
    """Copy one object through a part file. The part file has the etag in its name, so it never mixes two versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{re.sub('[^0-9A-Za-z]', '', found.etag)[:12]}.part")
    with explained(f"copy s3://{bucket.name}/{found.key}"), part.open("ab") as file:
        count(begin := file.tell())
        if begin < found.bytes:
            rest = {"Range": f"bytes={begin}-"} if begin else {}
            try:
                body = bucket.s3.get_object(Bucket=bucket.name, Key=found.key, IfMatch=found.etag, **rest)["Body"]
            except ClientError as error:
                if error.response["Error"].get("Code") not in ("PreconditionFailed", "NoSuchKey", "404", "412"):
                    raise
                part.unlink()  # the run has overwritten it, or it has expired, since it was listed
                for newer in bucket.list(found.key):
                    if newer.key == found.key:
                        fetch(bucket, newer, path, count)
                return
            for chunk in body.iter_chunks(CHUNK_BYTES):
                file.write(chunk)
                count(len(chunk))
    os.utime(part, (found.modified.timestamp(), found.modified.timestamp()))
    part.replace(path)
