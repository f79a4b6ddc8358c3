"""Brings the prepared data of a run to this machine: a prepared folder, a copy of one in S3, or data prepared now.

A shard counts as whole once this machine has read it and found the checksum of the index. A damaged copy is fetched
from S3 again; other damage is an error. How shards are made is in `making.prepare`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

from trainer.contract import RunEnv, UserError, dataset_key
from trainer.data.format import INDEX, Copies, Index, Shard, ShardHash, read_index
from trainer.data.making.prepare import prepare
from trainer.data.making.revision.manifest import SOURCES, SourceMemory
from trainer.data.progress import ProgressListener, Track
from trainer.data.reading.verify import (
    MISSING,
    PIECE_BYTES,
    find_faults,
    in_parallel,
    make_folder,
    open_verified,
    read_hash,
)
from trainer.recipes.sides import Span
from trainer.store import NotFoundError, ObjectStore, StoreError, naming_the_fix, open_store
from trainer.text import say, show_bytes

STREAMS = 16  # shards that are fetched at the same time: one connection to S3 is slower than the machine's network
_REPAIR = f"remove it and {INDEX} there and run `make prepare` again"

WantedSizes = Mapping[str, frozenset[Span]]  # split: the short sides that its images must serve


def stage(
    data: str,
    scratch: Path,
    copies: Copies,
    wanted: WantedSizes,
    *,
    secrets_dir: str = "",
    workers: int = 0,
    progress: ProgressListener | None = None,
) -> Path:
    """The local prepared folder of DATA=, with whole shards of every stored size that is `wanted`.

    `scratch` remembers what was fetched or verified, and the next call goes on from there. Raises UserError for what
    only the user can mend, StoreError if S3 fails.
    """
    make_folder(scratch)
    workers = workers or os.cpu_count() or 1
    if data.startswith("s3://"):
        return _fetch(data.rstrip("/"), scratch, wanted, workers, progress)
    folder = Path(data).expanduser().absolute()
    if not folder.joinpath(INDEX).is_file():
        store = open_store(str(scratch))
        memory = SourceMemory(scratch / SOURCES)
        prepared = prepare(
            data, store, copies, secrets_dir=secrets_dir, workers=workers, memory=memory, progress=progress
        )
        folder = scratch / prepared.prefix
    index = read_index(folder)
    with open_verified(scratch, index) as verified:
        if faults := find_faults(folder, _shards(index, wanted), verified, workers, progress):
            shard, reason = next(iter(faults.items()))
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise UserError(
                f"{folder / shard.file} {reason}{more}: every shard must be as {INDEX} says; copy it again from where "
                f"it is whole, or remove it and {INDEX} and prepare the data again"
            )
    return folder


def known_index(data: str) -> Index | None:
    """The index of data that is prepared, before it is staged; None where the data has yet to be prepared.

    Raises as `stage`.
    """
    if data.startswith("s3://"):
        return _stored_index(data.rstrip("/"))[0]
    folder = Path(data).expanduser().absolute()
    return read_index(folder) if folder.joinpath(INDEX).is_file() else None


def _shards(index: Index, wanted: WantedSizes) -> list[Shard]:
    """The shards of every stored size that can be read, and of no other."""
    return [
        shard
        for name, spans in wanted.items()
        for side in sorted({side for span in spans for side in index.sides_for(name, span)})
        for size in index.splits[name].sizes
        if size.short_side == side
        for shard in size.shards
    ]


def _fetch(uri: str, scratch: Path, wanted: WantedSizes, workers: int, progress: ProgressListener | None) -> Path:
    """Copy what is wanted of a prepared folder in a store. Whole shards are kept; the index is written last."""
    store = open_store(uri)
    index, text = _stored_index(uri)
    folder = scratch / dataset_key(index.name, index.version, "")
    make_folder(folder)
    with open_verified(scratch, index) as verified:
        done = folder / INDEX
        if done.is_file() and done.read_bytes() != text:
            done.unlink()  # it is damaged, or the data was prepared anew
        faults = find_faults(folder, _shards(index, wanted), verified, workers, progress)
        for shard, reason in faults.items():
            if reason != MISSING:
                say(f"{folder / shard.file} {reason}: fetching it again")
        if faults:
            missing = sum(shard.bytes - _kept(_part(folder, shard), shard) for shard in faults)
            _check_room(folder, missing)
            with Track(missing, "bytes", f"copying {uri}", progress) as track:

                def fetch(shard: Shard, stop: threading.Event) -> None:
                    if _fetch_shard(store, shard, folder, track, stop):
                        verified.add(folder / shard.file, shard)

                in_parallel(fetch, list(faults), STREAMS)
        if not done.is_file():
            part = folder / f"{INDEX}.part"
            part.write_bytes(text)
            part.replace(done)
    return folder


def _stored_index(uri: str) -> tuple[Index, bytes]:
    """The index of a prepared folder in a store, and its text."""
    store = open_store(uri)
    try:
        text = store.get(INDEX)
    except NotFoundError as error:
        raise UserError(
            f"DATA={uri} has no {INDEX}: give the folder that `make prepare` printed (…/datasets/<name>/<version>), or "
            "let the preparation finish"
        ) from error
    return Index.from_json(text, store.describe(INDEX)), text


def _check_room(folder: Path, missing: int) -> None:
    disk = os.statvfs(folder)
    if disk.f_blocks and (free := disk.f_bavail * disk.f_frsize) < missing:  # some mounts answer with zeros alone
        raise UserError(
            f"scratch folder {folder} has {show_bytes(free)} free, the shards still to fetch take "
            f"{show_bytes(missing)}: free disk space, or name a folder on a larger disk, "
            f"{RunEnv.variable('scratch_dir')}=…"
        )


def _part(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.file}.part"


def _kept(part: Path, shard: Shard) -> int:
    """How many bytes of the shard an earlier call has left."""
    size = part.stat().st_size if part.exists() else 0
    return size if size <= shard.bytes else 0


def _fetch_shard(store: ObjectStore, shard: Shard, folder: Path, track: Track, stop: threading.Event) -> bool:
    """Fetch a shard, from where an earlier call was cut off, and rename it once its checksum is right.

    Returns False if it was stopped. A range has no checksum on the way, so a wrong checksum means damage in the store
    only if the same one comes twice.
    """
    part, where = _part(folder, shard), store.describe(shard.file)
    wrong = ""  # the checksum of the last fetch of the whole shard
    with part.open("r+b" if part.exists() else "w+b", buffering=0) as file:
        kept, arrived = read_hash(file, shard, _kept(part, shard), stop, lambda count: None)
        while not stop.is_set():
            for piece in _stream(store, shard, kept):
                if stop.is_set():
                    return False
                arrived.update(piece)
                _write(file, piece)
                track.add(len(piece))
            if (found := arrived.value) == shard.checksum:
                file.truncate(shard.bytes)
                part.replace(folder / shard.file)
                return True
            if found == wrong:
                raise UserError(
                    f"{where} has checksum {found}, {INDEX} says {shard.checksum}: the shard is damaged in the store; "
                    f"{_REPAIR}"
                )
            if wrong:
                raise StoreError(
                    f"{where} arrived with checksum {wrong}, then with {found}, {INDEX} says {shard.checksum}: it is "
                    "damaged on its way or in the memory of this machine; start again, or use another machine"
                )
            say(f"{where} arrived with checksum {found}, {INDEX} says {shard.checksum}: fetching it again")
            if not kept:  # else the bytes of an earlier call may not be the beginning of this shard
                wrong = found
            file.seek(0)
            kept, arrived = 0, ShardHash(shard)
    return False


def _stream(store: ObjectStore, shard: Shard, start: int) -> Iterator[memoryview]:
    """The bytes of a shard from `start`, in pieces. A piece is valid until the next one."""
    if start == shard.bytes:
        return
    try:
        yield from store.stream(shard.file, start, shard.bytes - start, memoryview(bytearray(PIECE_BYTES)))
    except StoreError as error:
        if isinstance(error, NotFoundError) or error.code == "InvalidRange":
            raise UserError(
                f"{store.describe(shard.file)} is missing or shorter than the {shard.bytes} bytes that {INDEX} says "
                f"({error}): the shard is damaged in the store; {_REPAIR}"
            ) from error
        raise StoreError(f"{error}; what has arrived is kept, start again to continue", error.code) from error


def _write(file: FileIO, piece: memoryview) -> None:
    with naming_the_fix(f"the scratch folder of {file.name!r}"):  # the disk may be full
        while piece:
            piece = piece[file.write(piece) :]
