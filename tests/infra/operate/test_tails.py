"""Of a long run, only the end of its segments is listed and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from infra.operate.progress import KeptTails, read_progress
from infra.operate.runs import DatedBody, ExplainedBucket, ListedObject
from infra.operate.sparkline import sparkline
from infra.operate.tails import MOST_KEPT
from infra.run.values import MOST_BYTES
from tests.infra.deployed import RUN, Deployed
from tests.infra.operator import operate
from trainer.contract import Lease, attempt_key, checkpoint_key, manifest_key, metrics_key, run_key

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class CountedBucket(ExplainedBucket):
    """A bucket in this process, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    read_keys: list[str] = field(default_factory=list)

    def get(self, key: str, most: int = MOST_BYTES) -> DatedBody | None:
        self.read_keys.append(key)
        return DatedBody(self.files[key], NOW) if key in self.files else None

    def list(self, prefix: str, after: str = "", page: int = 1000) -> Iterator[ListedObject]:
        for key in sorted(key for key in self.files if key.startswith(prefix) and key > after):
            self.listed.append(key)
            yield ListedObject(key, len(self.files[key]), NOW)


def segment(first: int, last: int) -> bytes:
    rows = [{"step": s, "time": 1e9 + s, "train/epoch": s / 5000, "train/loss": 1.0 + s} for s in range(first, last)]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def beat(bucket: CountedBucket, step: int, attempt: int = 1) -> None:
    body = {"phase": "training", "step": step, "attempt": attempt, "progress": 1}
    bucket.files[run_key(RUN, "heartbeat.json")] = json.dumps(body).encode()


def add_segments(bucket: CountedBucket, first: int, count: int, steps: int = 30) -> None:
    for begin in range(first, first + count * steps, steps):
        key = metrics_key(RUN, 1, f"{begin:08d}-{begin + steps - 1:08d}.jsonl")
        bucket.files[key] = segment(begin, begin + steps)


def add_samples(bucket: CountedBucket, first: int, count: int) -> None:
    for number in range(first, first + count):
        row = {"step": 1, "time": 1e9 + number, "gpu/utilization": number % 100 / 100}
        bucket.files[run_key(RUN, f"telemetry/1/{number:06d}.jsonl")] = f"{json.dumps(row)}\n".encode()


@pytest.fixture(scope="module")
def long_run() -> CountedBucket:
    """A run of 100,000 steps and 28 hours."""
    found = CountedBucket(None, "bucket")
    add_segments(found, 0, 3334)
    add_samples(found, 0, 3334)
    beat(found, 100_019)
    started = NOW.timestamp() - 3334 * 60
    found.files[attempt_key(RUN, 1)] = json.dumps({"attempt": 1, "started": started}).encode()
    return found


@pytest.fixture
def bucket(long_run: CountedBucket) -> CountedBucket:
    return replace(long_run, files={**long_run.files}, listed=[], read_keys=[])


def test_only_the_end_of_a_long_run_is_listed_and_read(bucket: CountedBucket) -> None:
    progress = read_progress(bucket, RUN)
    assert [at for at, _ in progress.recent.loss] == [1e9 + step for step in range(100_020 - 180, 100_020)]
    assert [at for at, _ in progress.recent.utilization] == [1e9 + number for number in range(3328, 3334)]
    assert progress.recent.sample["gpu/utilization"] == pytest.approx(0.33)
    assert sum("metrics" in key for key in bucket.listed) < 20
    assert sum("metrics" in key for key in bucket.read_keys) == 6
    assert sum("telemetry" in key for key in bucket.listed) < 20
    assert sum("telemetry" in key for key in bucket.read_keys) == 6


@pytest.mark.parametrize("started", [0.0, 5e9, 1e9])
def test_the_newest_samples_are_found_wherever_they_are(bucket: CountedBucket, started: float) -> None:
    body = {"attempt": 1, "started": NOW.timestamp() - 10 * 3334 * 60 if started == 1e9 else started}
    bucket.files[attempt_key(RUN, 1)] = json.dumps(body).encode()  # not told, a clock that jumped, segments that lack
    assert [at for at, _ in read_progress(bucket, RUN).recent.utilization] == [
        1e9 + number for number in range(3328, 3334)
    ]


@pytest.mark.parametrize("steps", [1, 30, 600])
def test_the_newest_rows_are_found_whatever_a_segment_has(steps: int) -> None:
    bucket = CountedBucket(None, "bucket")
    add_segments(bucket, 0, 40, steps)
    beat(bucket, 40 * steps - 1)
    progress = read_progress(bucket, RUN)
    assert len(progress.recent.loss) == 6 * steps
    assert progress.recent.loss[-1][0] == 1e9 + 40 * steps - 1


def test_the_last_validation_is_found_far_behind(bucket: CountedBucket) -> None:
    bucket.files[metrics_key(RUN, 1, "00090000-00090029.jsonl")] += b'{"step": 90010, "val/top1": 0.625}\n'
    manifest = manifest_key(RUN, 100_000, 1)
    body = {"step": 100_000, "time": 5.0, "counters": {"step": 100_000, "validated": 90_010}}
    bucket.files[manifest] = json.dumps(body).encode()
    bucket.files[checkpoint_key(RUN, "HEAD.json")] = Lease(attempt=1, newest=manifest).to_json()
    progress = read_progress(bucket, RUN)
    assert progress.val_top1 == 0.625
    assert len(progress.recent.loss) == 180
    assert sum("metrics" in key for key in bucket.read_keys) == 7
    assert sum("metrics" in key for key in bucket.listed) < 400


def test_whoever_watches_reads_each_segment_once_and_sees_ever_more(bucket: CountedBucket) -> None:
    kept = KeptTails()
    read_progress(bucket, RUN, kept)
    for _ in range(2):
        bucket.read_keys.clear()
        bucket.listed.clear()
        add_segments(bucket, newest := int(max(k for k in bucket.files if "metrics" in k)[-14:-6]) + 1, 1)
        add_samples(bucket, sum("telemetry" in key for key in bucket.files), 1)
        beat(bucket, newest + 29)
        progress = read_progress(bucket, RUN, kept)
        assert sum("metrics" in key or "telemetry" in key for key in bucket.read_keys) == 2
        assert len(bucket.listed) < 40
    assert len(progress.recent.loss) == 8 * 30
    assert len(progress.recent.utilization) == 8
    beat(bucket, 5, attempt=2)  # another machine, with nothing yet
    assert read_progress(bucket, RUN, kept).recent.loss == ()
    assert len(kept.metrics.rows) <= MOST_KEPT


def test_a_finished_run_among_many_is_four_small_objects(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(950)
    deployed.end("done", "1,000 steps are done")
    result = {"steps": 1000, "epochs": 10, "steps_per_epoch": 100, "last": {"val/top1": 0.61, "val_ema/top1": 0.64},
              "best": {"top1": 0.65, "step": 900}}  # fmt: skip
    deployed.put(run_key(RUN, "result.json"), result)
    operate("runs", "--json")  # the first makes clients
    deployed.aws.clear_calls()
    capsys.readouterr()
    operate("runs", "--json")
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["step"], found["total_steps"], found["top1"], found["state"]) == (1000, 1000, 0.65, "done")
    assert deployed.aws.calls().count("s3.GetObject") == 4
    assert deployed.aws.calls().count("s3.ListObjectsV2") == 1
    for damaged in (b"{", json.dumps(result | {"steps": -1}).encode()):
        deployed.put(run_key(RUN, "result.json"), damaged)
        operate("runs", "--json")
        (found,) = json.loads(capsys.readouterr().out)["runs"]
        assert (found["step"], found["total_steps"], found["top1"]) == (950, 1000, 0.63)


def test_a_curve_has_the_means_of_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, 0, 7) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2, 0, 7) == "▁█"
    assert sparkline([3, 3, 3], 10, 3, 3) == "▅▅▅"
    assert sparkline([1e20, -5], 2, 0, 1) == "█▁"
    assert sparkline([], 10, 0, 1) == ""
    assert sparkline([1.0], 0, 0, 1) == ""
