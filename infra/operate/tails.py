"""The newest segments of a run: rows of metrics and of telemetry, however many segments lie before them.

Segments are listed from near their end on, and only the newest are read. A segment never changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from infra.operate.documents import Measured, parse_measured, parse_telemetry, segment_steps
from infra.operate.runs import ExplainedBucket, ListedObject
from trainer.contract import metrics_key, run_key

SEGMENT_BYTES = 64 << 20  # at most
NEWEST = 6  # segments of each kind are read: some minutes of a run
STEPS_BACK = 256  # where the list begins, before the step that is wanted; 16 times as far if that is too near
SEGMENTS_BACK = 16  # where the list of samples begins, before the number that is guessed
SAMPLES_SECONDS = 60.0  # of a segment of samples: only a guess
MOST_KEPT = 240  # segments


@dataclass
class KeptRows:
    """Segments that were read, by key: whoever watches a run reads each of them once, and sees ever more of them."""

    rows: dict[str, list[Measured]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def read(self, bucket: ExplainedBucket, keys: Iterable[str], parse: Callable[[bytes], Measured]) -> None:
        for key in list(self.rows)[:-MOST_KEPT]:
            del self.rows[key], self.problems[key]
        missing = [key for key in sorted(set(keys)) if key not in self.rows]
        if not missing:
            return
        with ThreadPoolExecutor(8) as pool:
            bodies = list(pool.map(lambda key: bucket.read(key, SEGMENT_BYTES), missing))
        for key, body in zip(missing, bodies, strict=True):
            self.rows[key], self.problems[key] = segment_rows(key, body or b"", parse)

    def newest(self, segments: Sequence[ListedObject]) -> list[Measured]:
        """The rows of the segments at the end of the list that were read without a gap."""
        found: list[list[Measured]] = []
        for one in reversed(segments):
            if one.key not in self.rows:
                break
            found.append(self.rows[one.key])
        return [row for rows in reversed(found) for row in rows]


def segment_rows(key: str, body: bytes, parse: Callable[[bytes], Measured]) -> tuple[list[Measured], str]:
    """The rows of a segment, and what to say of lines that no machine of ours writes."""
    rows, odd = list[Measured](), list[str]()
    for line in body.splitlines():
        try:
            if row := parse(line):
                rows.append(row)
        except ValueError as error:
            odd.append(str(error))
    return rows, f"{len(odd)} lines of {key}, which no machine of ours writes: {odd[0]}" if odd else ""


def read_metrics_tail(
    bucket: ExplainedBucket, run_id: str, attempt: int, step: int, validated: int, kept: KeptRows, count: int = NEWEST
) -> tuple[list[ListedObject], list[str]]:
    """Read an attempt's newest `count` segments of metrics, and the one of its last validation.

    Returns the newest segments in order, and the keys of all that were read.
    """
    segments = list_segments(bucket, metrics_key(run_id, attempt, ""), min(step, validated or step)) if attempt else []
    keys = [o.key for o in segments[-count:]] + [o.key for o in segments if covers(o.key, validated)]
    kept.read(bucket, keys, parse_measured)
    return segments, sorted(set(keys))


def list_segments(bucket: ExplainedBucket, folder: str, step: int) -> list[ListedObject]:
    """The segments that cover a step or come after it, and some before. They are called `<first>-<last>.jsonl`."""
    back = STEPS_BACK
    while True:
        begin = max(0, step - back)
        listed = bucket.list(folder, after=f"{folder}{begin:08d}" if begin else "")
        found = [o for o in listed if segment_steps(o.key) != (0, 0)]
        if not begin or (len(found) >= NEWEST and segment_steps(found[0].key)[0] <= step):
            return found
        back *= 16


def covers(key: str, step: int) -> bool:
    """Whether a segment has the rows of a step."""
    first, last = segment_steps(key)
    return step > 0 and first <= step <= last


def read_samples_tail(
    bucket: ExplainedBucket, run_id: str, attempt: int, seconds: float, kept: KeptRows
) -> list[Measured]:
    """The newest samples of an attempt that has run for so long, in the order of their segments."""
    folder = run_key(run_id, f"telemetry/{attempt}/")
    known = sorted(key for key in kept.rows if key.startswith(folder))
    after = known[0][:-1] if known else ""  # just before the key
    segments = list_numbered(bucket, folder, int(seconds / SAMPLES_SECONDS), after) if attempt else []
    kept.read(bucket, [o.key for o in segments[-NEWEST:]], parse_telemetry)
    return kept.newest(segments)


def list_numbered(bucket: ExplainedBucket, folder: str, guess: int, after: str = "") -> list[ListedObject]:
    """The segments after a key, else the newest and some before. They are called `<number>.jsonl`.

    They are looked for at the guessed number, then further and further before it.
    """
    back = SEGMENTS_BACK
    while True:
        begin = max(0, guess - back)
        listed = bucket.list(folder, after=after or (f"{folder}{begin:06d}" if begin else ""))
        found = [o for o in listed if re.fullmatch(r"[0-9]{1,15}\.jsonl", o.key.removeprefix(folder))]
        if after or not begin or len(found) >= NEWEST:
            return found
        back *= 4
