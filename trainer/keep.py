"""What a store did not take in time: kept in a folder of this machine, and stored by the next start here.

`<scratch>/runs/<run>/<attempt>/unsaved/`: `files/<key>` for metrics, `checkpoint.safetensors`, and last
`checkpoint.json`, without which the one before does not count.
"""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.channel import Message, attempt_dir
from trainer.contract import Head, RunEnv, parse_manifest_key
from trainer.head import put_checkpoint
from trainer.store import ObjectStore


def unsaved_dir(env: RunEnv) -> Path:
    """The folder of this attempt; it notes which store it is for. Raises OSError."""
    folder = attempt_dir(env) / "unsaved"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store").write_text(env.store)
    return folder


def keep_file(env: RunEnv, key: str, body: bytes) -> Path:
    """Returns the folder. Raises OSError."""
    folder = unsaved_dir(env)
    path = folder / "files" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return folder


def keep_checkpoint(env: RunEnv, note: Message, body: memoryview) -> Path:
    """Replaces the one that was kept before; returns the folder. Raises OSError."""
    folder = unsaved_dir(env)
    marker, data = folder / "checkpoint.json", folder / "checkpoint.safetensors"
    marker.unlink(missing_ok=True)
    data.write_bytes(body)
    marker.write_text(json.dumps(note))
    return folder


def resend(env: RunEnv, store: ObjectStore, head: Head | None, say: Callable[[str], None]) -> None:
    """Store what the run's last owner, `head.attempt`, left on this machine; its manifest is then the newest.

    What others have gone on without stays where it is, and is said. Raises StoreError.
    """
    for folder in sorted(attempt_dir(env).parent.glob("*/unsaved")):
        attempt, marker = int(folder.parent.name), folder / "checkpoint.json"
        if (folder / "store").read_text() != env.store:
            continue
        newest = parse_manifest_key(head.newest) if head is not None else None
        note = json.loads(marker.read_text()) if marker.exists() else None
        if head is not None and attempt < head.attempt:
            if note is not None and (newest is None or note["step"] > newest[1]):
                say(f"{folder} holds step {note['step']}, but attempt {head.attempt} went on without it")
                continue
        else:
            files = folder / "files"
            for path in sorted(path for path in files.rglob("*") if path.is_file()):
                store.put(path.relative_to(files).as_posix(), path.read_bytes())
            if note is not None and (newest is None or (attempt, note["step"]) > newest):
                with (folder / "checkpoint.safetensors").open("rb") as file:
                    body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                    put_checkpoint(store, env.run_id, attempt, note, body)
                say(f"stored the checkpoint of step {note['step']} that attempt {attempt} could not store")
        shutil.rmtree(folder)
