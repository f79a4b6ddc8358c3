"""TensorBoard's copies in the store: which file of a run has which copy, and which copies are missing.

A copy lies in `tensorboard/<attempt>/`, that of samples in `telemetry/` below, since TensorBoard reads the files of a
folder one after the other. All is made from the segment alone: made again, a copy replaces itself.
"""

from __future__ import annotations

import re

from trainer.contract import run_key, tensorboard_key
from trainer.store import ObjectStore
from trainer.upload.events import event_file, sample_file

MOST_COPIED_BYTES = 64 << 20  # of a segment that is copied: a trainer writes one each half minute
_FILE = re.compile(r"(metrics|telemetry|tensorboard)/([0-9]{1,15})/([^/.][^/]*)")
_COPY = re.compile(r"tensorboard/([0-9]{1,15})/(telemetry/)?[^/]+\.([^/.]+)")


def is_copy(run_id: str, key: str) -> bool:
    """Whether it is for TensorBoard alone."""
    return key.startswith(run_key(run_id, "tensorboard/"))


def copy_of(run_id: str, key: str, body: bytes) -> tuple[str, bytes] | None:
    """Key and content of the copy of a file of the run; None if TensorBoard does not show it.

    What is made for TensorBoard is its own copy. Raises what `event_file` raises.
    """
    found = _FILE.fullmatch(key.removeprefix(run_key(run_id, "")))
    if found is None:
        return None
    kind, attempt, name = found[1], int(found[2]), found[3].removesuffix(".jsonl")
    if kind == "tensorboard":
        return key, body
    file, events = (event_file if kind == "metrics" else sample_file)(body, name)
    return tensorboard_key(run_id, attempt, f"telemetry/{file}" if kind == "telemetry" else file), events


def missing_copies(store: ObjectStore, run_id: str, attempt: int) -> list[str]:
    """Keys of the segments that attempts before this one stored without a copy. Raises StoreError."""
    run, copied, missing = run_key(run_id, ""), set[tuple[str, int, str]](), list[str]()
    for info in store.list(run_key(run_id, "tensorboard/")):
        if found := _COPY.fullmatch(info.key.removeprefix(run)):
            copied.add(("telemetry" if found[2] else "metrics", int(found[1]), found[3]))
    for kind in ("metrics", "telemetry"):
        for info in store.list(run_key(run_id, f"{kind}/")):
            found = _FILE.fullmatch(info.key.removeprefix(run))
            if found is None or info.bytes > MOST_COPIED_BYTES or not found[3].endswith(".jsonl"):
                continue
            if int(found[2]) < attempt and (kind, int(found[2]), found[3].removesuffix(".jsonl")) not in copied:
                missing.append(info.key)
    return missing
