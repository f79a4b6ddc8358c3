"""Metrics: one row per step, written as immutable segments of JSON lines, and read back.

Names are flat and slashed (`train/loss`, `val/top1`, `speed/images_per_second`). Shipping is the uploader's, and so is
TensorBoard's copy (`upload/events.py`). What a step measures is `step_log`'s.
No torch here: whoever only reads, as the report does, starts in an instant.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from trainer.checkpoint.line import check_row, follow_back, is_segment, parse_row
from trainer.contract import manifest_key, metrics_key, run_key
from trainer.process.channel import Channel
from trainer.store import ObjectInfo, ObjectStore
from trainer.text import say

Row = dict[str, Any]
Segments = dict[str, list[Row]]  # by key; what is stored under one never changes
SHIP_SECONDS = 30
MOST_SEGMENT_BYTES = 64 << 20  # at most: a trainer writes one each half minute
GETS_AT_ONCE = 8  # S3 takes 20 ms for each
MOST_UNPARSED = 64  # segments that are in memory as they were read


class MetricsWriter:
    """Rows of one attempt. `flush` makes a segment of what has come since and hands it to the uploader."""

    def __init__(self, channel: Channel | None, run_id: str, attempt: int, *, first_step: int, origin: int):
        """Only the main process has a channel; others keep nothing.

        The attempt continues from step `first_step` of attempt `origin` (0: from nothing).
        """
        self.channel, self.run_id, self.attempt = channel, run_id, attempt
        self.rows: list[Row] = [start_row(attempt, first_step, origin)]
        self.shipped = time.monotonic()
        self.names: set[str] = set()  # of the segments so far

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step; those of the same step join one row."""
        if self.rows and self.rows[-1]["step"] == step and "event" not in self.rows[-1]:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": step, "time": round(time.time(), 3)} | dict(values))

    def flush_if_due(self) -> None:
        if time.monotonic() >= self.shipped + SHIP_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the segment `<first>-<last>.jsonl`. Call it at the end of a step only."""
        self.shipped = time.monotonic()
        if self.channel is None or not self.rows:
            self.rows = []
            return
        name = f"{self.rows[0]['step']:08d}-{self.rows[-1]['step']:08d}"
        if name in self.names:  # a validation and two saves can meet at one step
            name += f"_{len(self.names)}"
        self.names.add(name)
        key = metrics_key(self.run_id, self.attempt, f"{name}.jsonl")
        self.send_file(key, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.rows = []

    def send_file(self, key: str, body: bytes) -> None:
        """Hand a file to the uploader, in memory: a full disk does not stop it."""
        assert self.channel is not None
        fd = os.memfd_create("file")
        try:
            os.write(fd, body)
            self.channel.send({"op": "put", "key": key}, fd)
        finally:
            os.close(fd)


def start_row(attempt: int, step: int, origin: int) -> Row:
    """The first row of an attempt, which goes on from a step of the attempt `origin` (0: from nothing)."""
    return {"step": step, "time": time.time(), "event": "start", "attempt": attempt, "origin": origin}


def put_rewind(store: ObjectStore, run_id: str, attempt: int, step: int, origin: int) -> None:
    """Store the only row of a rewind, from which the next attempt goes on. It counts once its checkpoint is there."""
    row = start_row(attempt, step, origin) | {"rewind": True}
    store.put(metrics_key(run_id, attempt, f"{step:08d}-{step:08d}.jsonl"), f"{json.dumps(row)}\n".encode())


def read_metrics(store: ObjectStore, run_id: str, kept: Path | None = None) -> list[Row]:
    """All rows of a run, each step once: what an attempt redid stands as the later one saw it.

    An attempt begins with a row that says from which step of which attempt it goes on. From the last attempt that way
    leads back to the first; what an attempt logged beyond, or beside it, does not belong to the run.
    `kept` is as for `segment_body`. Raises StoreError.
    """
    attempts = rows_by_attempt(store, run_id, kept=kept)
    return rows_until(attempts, last_attempt(store, run_id, begins_of(attempts)), float("inf"))


def rows_by_attempt(
    store: ObjectStore, run_id: str, known: Segments | None = None, kept: Path | None = None
) -> dict[int, list[Row]]:
    """The rows of each attempt. `known` and `kept` are as for `read_segments`."""
    folder = run_key(run_id, "metrics/")
    found: list[tuple[int, ObjectInfo]] = []
    for info in store.list(folder):
        attempt, _, name = info.key.removeprefix(folder).partition("/")
        if re.fullmatch(r"[0-9]{1,15}", attempt) and is_segment(name):
            found.append((int(attempt), info))
    rows: dict[int, list[Row]] = {}
    segments = read_segments(store, [info for _, info in found], known, kept)
    for (number, _), segment in zip(found, segments, strict=True):
        rows.setdefault(number, []).extend(segment)
    return rows


def begins_of(attempts: Mapping[int, list[Row]]) -> dict[int, Row]:
    """The first row of each attempt that says how it begins."""
    return {attempt: found[0] for attempt, found in attempts.items() if found and found[0].get("event") == "start"}


def rows_until(attempts: Mapping[int, list[Row]], attempt: int, step: float) -> list[Row]:
    """The rows on the way from the start of the run to this step of this attempt, each step once."""
    begins = begins_of(attempts)
    ends = follow_back(begins.get, attempt, step).ends
    way = [
        row for number in sorted(ends) if number in begins for row in attempts[number] if row["step"] <= ends[number]
    ]
    return merged(way)


def read_segments(
    store: ObjectStore, infos: Sequence[ObjectInfo], known: Segments | None = None, kept: Path | None = None
) -> list[list[Row]]:
    """The rows of each segment, in this order and the caller's to change. Several are read at once.

    Segments that are `known` are not read again, and those that are read become known. `kept` is as for `segment_body`.
    Raises StoreError.
    """
    found: Segments = {} if known is None else known
    new = [info for info in infos if info.key not in found]
    with ThreadPoolExecutor(GETS_AT_ONCE) as pool:
        for start in range(0, len(new), MOST_UNPARSED):
            some = new[start : start + MOST_UNPARSED]
            for info, body in zip(some, pool.map(partial(segment_body, store, kept=kept), some), strict=True):
                found[info.key] = parse_segment(store.describe(info.key), body)
    return [found[info.key] if known is None else [dict(row) for row in found[info.key]] for info in infos]


def read_segment(store: ObjectStore, info: ObjectInfo) -> list[Row]:
    """The rows of a segment. What no trainer writes is skipped, with a message."""
    return parse_segment(store.describe(info.key), segment_body(store, info))


def segment_body(store: ObjectStore, info: ObjectInfo, kept: Path | None = None) -> bytes:
    """The bytes of a segment; b"", with a message, where it is too large.

    `kept` is a folder on this machine. What is read from the store is kept there, and never asked for again.
    """
    if info.bytes > MOST_SEGMENT_BYTES:
        say(f"{store.describe(info.key)} has {info.bytes:,} bytes, and no trainer writes so many: skipped")
        return b""
    if kept is None:
        return store.get(info.key)
    path = kept / f"{sha256(repr((store.uri, info.key, info.etag)).encode()).hexdigest()}.jsonl"
    with suppress(OSError):
        body = path.read_bytes()
        if len(body) == info.bytes:  # else the machine went down while it was written
            return body
    body = store.get(info.key)
    with suppress(OSError):  # such as a full disk: it is read from the store the next time, too
        kept.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".tmp")
        written.write_bytes(body)
        written.replace(path)
    return body


def parse_segment(what: str, body: bytes) -> list[Row]:
    """The rows in the bytes of a segment. What no trainer writes is skipped, with a message that says `what` it is."""
    rows, odd = list[Row](), list[str]()
    for line in flat_objects(body) or body.splitlines():
        try:
            rows.append(parse_row(line) if isinstance(line, bytes) else check_row(line))
        except ValueError as error:
            odd.append(str(error))
    if odd:
        say(f"{what} has {len(odd)} lines that are no metrics ({odd[0]}): skipped")
    return rows


def flat_objects(body: bytes) -> list[Row]:
    """The lines as objects, parsed at once, if each is one object without another in it: for a third of the time.

    [] if that is not certain. It is where each line begins with a brace, no other opens, and as many objects come out.
    """
    lines = body.splitlines()
    is_flat = body.count(b"{") == len(lines) and b"[" not in body and all(line.startswith(b"{") for line in lines)
    if not is_flat:
        return []
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return []
    return found if len(found) == len(lines) and all(type(one) is dict for one in found) else []


def last_attempt(store: ObjectStore, run_id: str, begins: Mapping[int, Row]) -> int:
    """The last attempt that counts; 0 if there is none. A rewind that ended before its commit does not count."""

    def counts(attempt: int) -> bool:
        if not begins[attempt].get("rewind"):
            return True
        key = manifest_key(run_id, begins[attempt]["step"], attempt)
        return key in (info.key for info in store.list(key))

    return next((attempt for attempt in sorted(begins, reverse=True) if counts(attempt)), 0)


def merged(rows: list[Row]) -> list[Row]:
    """Rows of one step that follow each other become one, as where a validation came in the next attempt."""
    found: list[Row] = []
    last = before = -1  # steps of the last two, which nearly always differ from the next
    for row in rows:
        last, before, same = row["step"], last, row["step"] in (last, before)
        if not same:
            found.append(row)
            continue
        known = [old for old in found[-2:] if old["step"] == row["step"] and "event" not in old]
        if known and "event" not in row:
            known[0] |= row
        else:
            found.append(row)
    return found
