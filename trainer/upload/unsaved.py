"""What a store did not take in time is saved here, on this machine. The next start on this machine stores it.

The folder is `<scratch>/runs/<run>/unsaved/<store>.<attempt>/`. It has `files/<key>` for metrics,
`checkpoint.safetensors`, and `checkpoint.json`, which is written last: without it the checkpoint does not count.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from trainer.contract import Lease, RunEnv, manifest_key, parse_manifest_key
from trainer.process.channel import Message, attempt_dir
from trainer.store import ObjectStore
from trainer.store.checksum import Checksums
from trainer.upload.commit import Commit


def unsaved_dir(env: RunEnv) -> Path:
    """The folder of an attempt. Its name also tells the store, since each store counts its attempts from 1."""
    return attempt_dir(env).parent / "unsaved" / f"{zlib.crc32(env.store.encode()):08x}.{env.attempt}"


def save_file_here(env: RunEnv, key: str, body: bytes) -> Path:
    """Save a file, and return the folder. Raises OSError."""
    folder = unsaved_dir(env)
    path = folder / "files" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return folder


def save_checkpoint_here(env: RunEnv, note: Message, body: memoryview) -> Path:
    """Save a checkpoint in the place of the last one, and return the folder. Raises OSError."""
    folder = unsaved_dir(env)
    folder.mkdir(parents=True, exist_ok=True)
    forget_checkpoint_here(env)
    with (folder / "checkpoint.safetensors").open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary = folder / ".checkpoint.json"
    temporary.write_text(json.dumps(note | {"checksums": Checksums.of(body).to_json()}))
    temporary.replace(folder / "checkpoint.json")
    return folder


def forget_checkpoint_here(env: RunEnv) -> None:
    """Remove a checkpoint that is in the store by now, its marker first. Raises OSError."""
    for name in ("checkpoint.json", "checkpoint.safetensors"):
        (unsaved_dir(env) / name).unlink(missing_ok=True)


def resend(env: RunEnv, store: ObjectStore, lease: Lease | None, say: Callable[[str], None]) -> None:
    """Store what the run's last owner, `lease.attempt`, left on this machine. Its manifest is then the newest.

    A checkpoint that is damaged, or without which the run went on, stays there, with a message. Raises StoreError.
    """
    mine = unsaved_dir(env)
    for folder in sorted(mine.parent.glob(f"{mine.stem}.*")):
        attempt, marker = int(folder.suffix[1:]), folder / "checkpoint.json"
        newest = parse_manifest_key(lease.newest) if lease is not None else None
        note = read_note(marker)
        is_newer = note is not None and (newest is None or (attempt, note["step"]) > newest)
        if attempt >= int(env.attempt) or (lease is not None and attempt < lease.attempt):
            if note is not None and (newest is None or note["step"] > newest[1]):
                say(f"{folder} holds step {note['step']} of attempt {attempt}, but the run went on without it")
                continue
        else:
            files = folder / "files"
            for path in sorted(path for path in files.rglob("*") if path.is_file()):
                store.put(path.relative_to(files).as_posix(), path.read_bytes())
            if note is not None and is_newer and not send_checkpoint(env, store, lease, folder, note, say):
                say(f"{folder} holds step {note['step']} of attempt {attempt}, but its bytes are damaged: not stored")
                continue
            if note is not None and is_newer:
                say(f"stored the checkpoint of step {note['step']} that attempt {attempt} could not store")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder)


def read_note(marker: Path) -> Message | None:
    """What is known of a saved checkpoint; None if there is none, or if it was not saved completely."""
    try:
        note: Message = json.loads(marker.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return note


def send_checkpoint(
    env: RunEnv, store: ObjectStore, lease: Lease | None, folder: Path, note: Message, say: Callable[[str], None]
) -> bool:
    """Store a saved checkpoint as the one after the lease's newest; False if it is damaged. Raises StoreError."""
    try:
        with (folder / "checkpoint.safetensors").open("rb") as file:
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # missing, or empty
        return False
    checksums = Checksums.of(body)
    if not checksums.is_same(Checksums.from_json(note["checksums"])):
        return False
    attempt = int(folder.suffix[1:])
    key = manifest_key(env.run_id, note["step"], attempt)
    commit = Commit.of(
        env.run_id, attempt, note["manifest"], checksums, lease.parent_of(key) if lease is not None else {}
    )
    if not commit.is_stored(store):
        say(commit.told())
        commit.put(store, body)
    return True
