"""A folder that TensorBoard reads: the rows of a run as event files that grow while the run goes on.

They are made from the segments along the run's line, as the report is. So a resumed run is one curve, each step stands
once, and runs that began before there were copies are shown, too. TensorBoard itself is not needed here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.checkpoint.line import follow_back, is_segment
from trainer.contract import run_key, tensorboard_key
from trainer.store import NotFoundError, ObjectInfo, ObjectStore
from trainer.telemetry.metrics import Row, last_attempt, read_segment
from trainer.telemetry.samples import FOLDER as SAMPLES
from trainer.upload.events import scalars
from trainer.upload.records import head
from trainer.upload.summaries import OPENING

READS_AT_ONCE = 8
SEGMENTS_AT_ONCE = 32  # segments that are in memory


@dataclass(frozen=True)
class LineSegment:
    """A segment on the run's line."""

    info: ObjectInfo
    until: float  # the last step that counts; infinite where all do


class EventStream:
    """The event file of a line's pieces. When the line turns out to be another one, a new file replaces it.

    Each metric has one value at a step: the first one that came.
    """

    def __init__(self, folder: Path):
        self.folder, self.number, self.file = folder, 0, Path()
        self._forget()

    def _forget(self) -> None:
        self.pieces, self.step, self.seen = list[LineSegment](), -1, set[str]()

    def follow(self, line: Sequence[LineSegment], read: Callable[[Sequence[LineSegment]], Iterable[list[Row]]]) -> None:
        """Write what is new. `read` gives the rows of pieces, in order. Raises StoreError, and goes on from there."""
        if line[: len(self.pieces)] != self.pieces:  # an attempt went back to an earlier step, or a segment was late
            self._forget()
        if not self.pieces and line:
            self._begin()
        more = line[len(self.pieces) :]
        for first in range(0, len(more), SEGMENTS_AT_ONCE):
            batch = more[first : first + SEGMENTS_AT_ONCE]
            for piece, rows in zip(batch, read(batch), strict=True):
                with self.file.open("ab") as file:
                    file.write(scalars(self._unseen(rows, piece.until)))
                self.pieces.append(piece)

    def _begin(self) -> None:
        """A new file, at whose beginning a TensorBoard that shows the old one drops what it has."""
        before, self.number = self.file, self.number + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"events.out.tfevents.{self.number:06d}"
        self.file.write_bytes(head(time.time(), 0 if self.number > 1 else None))
        if self.number > 1:
            before.unlink(missing_ok=True)

    def _unseen(self, rows: Iterable[Row], until: float) -> Iterator[Row]:
        for row in rows:
            step = row["step"]
            if self.step <= step <= until and "event" not in row:
                self.seen = self.seen if step == self.step else set()
                new = {name: row[name] for name in row if "/" in name and name not in self.seen}
                self.step, self.seen = step, self.seen | new.keys()
                yield {"step": step, "time": row["time"]} | new


class Mirror:
    """A run in a folder: its metrics and pictures in `<run>/`, its samples in `<run>/telemetry/`."""

    def __init__(self, store: ObjectStore, run_id: str, folder: Path):
        self.store, self.run_id, self.folder = store, run_id, folder / run_id
        self.metrics, self.samples = EventStream(self.folder), EventStream(self.folder / "telemetry")
        self.begins: dict[int, Row] = {}  # the first row of each attempt
        self.opened = 0  # the attempt whose opening is in the folder

    def follow(self) -> int:
        """Bring the folder up to date. Returns how many segments it has. Raises StoreError."""
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:

            def read(pieces: Sequence[LineSegment]) -> Iterable[list[Row]]:
                return pool.map(partial(read_segment, self.store), (piece.info for piece in pieces))

            ends, segments = self._line()
            self.metrics.follow(_pieces(segments, ends), read)
            self.samples.follow(_pieces(self._segments(SAMPLES), ends), read)
        if self.opened != min(ends):
            self._open(min(ends))
        return len(self.metrics.pieces) + len(self.samples.pieces)

    def _line(self) -> tuple[dict[int, float], dict[int, list[ObjectInfo]]]:
        """Of each attempt on the run's line the last step that counts; and the segments of all attempts."""
        segments = self._segments("metrics/")
        for attempt in segments.keys() - self.begins.keys():
            first = next(iter(read_segment(self.store, segments[attempt][0])), {})
            if first.get("event") == "start":
                self.begins[attempt] = first
        last = last_attempt(self.store, self.run_id, self.begins)
        return dict(follow_back(self.begins.get, last, float("inf")).ends), segments

    def _segments(self, folder: str) -> dict[int, list[ObjectInfo]]:
        """By attempt, in order."""
        found: dict[int, list[ObjectInfo]] = {}
        prefix = run_key(self.run_id, folder)
        for info in self.store.list(prefix):
            attempt, _, name = info.key.removeprefix(prefix).partition("/")
            if re.fullmatch(r"[0-9]{1,15}", attempt) and is_segment(name):
                found.setdefault(int(attempt), []).append(info)
        return found

    def _open(self, attempt: int) -> None:
        """Copy what the first attempt on the line left of its beginning: pictures and options. Old runs have none."""
        with suppress(NotFoundError):
            body = self.store.get(tensorboard_key(self.run_id, attempt, OPENING))
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / OPENING).write_bytes(body)
            self.opened = attempt


def _pieces(segments: dict[int, list[ObjectInfo]], ends: dict[int, float]) -> list[LineSegment]:
    """The segments along a line. One all of whose steps count is the same piece before and after its attempt's end."""
    pieces = []
    for attempt in sorted(ends):
        for info in segments.get(attempt, ()):
            named = re.search(r"/[0-9]+-([0-9]{1,15})(_[0-9]+)?\.jsonl$", info.key)
            is_whole = named is not None and int(named[1]) <= ends[attempt]
            pieces.append(LineSegment(info, float("inf") if is_whole else ends[attempt]))
    return pieces
