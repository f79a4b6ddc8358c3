"""Has the prepared data of a run on this machine: itself, a checked copy of one in S3, or prepared here and now."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.contract import RunEnv, UserError, dataset_key
from trainer.data.prepare import Progress, prepare
from trainer.data.progress import Track
from trainer.data.shards import INDEX, Copies, Index, Shard, read_index
from trainer.store import NotFoundError, ObjectStore, open_store

COPY_BYTES = 16 << 20
Wanted = Mapping[str, frozenset[int]]  # split: the pixels that its images must serve


def stage(
    data: str,
    scratch: Path,
    copies: Copies,
    wanted: Wanted,
    *,
    secrets_dir: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """The local prepared folder of DATA=, with whole shards of every copy that serves what is `wanted`."""
    if (folder := Path(data).expanduser()).joinpath(INDEX).is_file():
        read_index(folder)
        return folder
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"scratch folder {scratch} cannot be made or used ({error.strerror}): name a folder on a disk with room "
            f"for the data, {RunEnv.variable('scratch_dir')}=…"
        ) from error
    if data.startswith("s3://"):
        return _copy(data.rstrip("/"), scratch, workers or os.cpu_count() or 1, progress)
    prepared = prepare(
        data,
        open_store(str(scratch)),
        copies,
        secrets_dir=secrets_dir,
        workers=workers,
        progress=progress,
    )
    return scratch / prepared.prefix


def _copy(uri: str, scratch: Path, workers: int, progress: Progress | None) -> Path:
    """A prepared folder of a store, shard by shard, each checked; what is there and whole is kept. Index last."""
    store = open_store(uri)
    try:
        text = store.get(INDEX)
    except NotFoundError as error:
        raise UserError(
            f"DATA={uri} has no {INDEX}: give the folder that `make prepare` printed (…/datasets/<name>/<version>), or "
            "let the preparation finish"
        ) from error
    index = Index.from_json(text, store.describe(INDEX))
    folder = scratch / dataset_key(index.name, index.version, "")
    done = folder / INDEX
    if done.is_file() and done.read_bytes() == text:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(index.shards())
    with Track(sum(shard.bytes for shard in shards), "bytes", f"copying {uri}", progress) as track:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="stage")
        try:
            for copied in [pool.submit(_copy_shard, store, shard, folder, track) for shard in shards]:
                copied.result()
        finally:
            pool.shutdown(cancel_futures=True)
    part = folder / f"{INDEX}.part"
    part.write_bytes(text)
    part.replace(done)
    return folder


def _copy_shard(store: ObjectStore, shard: Shard, folder: Path, track: Track) -> None:
    target = folder / shard.file
    if target.is_file() and target.stat().st_size == shard.bytes and _crc32(target) == shard.crc32:
        track.add(shard.bytes)
        return
    part, crc32 = target.with_name(f"{target.name}.part"), 0
    with part.open("wb") as out:
        for start in range(0, shard.bytes, COPY_BYTES):
            piece = store.read_range(shard.file, start, min(COPY_BYTES, shard.bytes - start))
            crc32 = zlib.crc32(piece, crc32)
            out.write(piece)
            track.add(len(piece))
    if crc32 != shard.crc32:
        raise UserError(
            f"{store.describe(shard.file)} has checksum {crc32}, {INDEX} says {shard.crc32}: the shard is damaged in "
            "the store; remove it and its index there and run `make prepare` again"
        )
    part.replace(target)


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            crc32 = zlib.crc32(piece, crc32)
    return crc32
