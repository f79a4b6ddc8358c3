"""Documents that somebody forged in the bucket: each command ends with a message, or shows the run without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.guard.memory import Memory
from infra.operate.commands import cost, status
from infra.operate.commands.pull import checkpoint_objects
from infra.operate.commands.runs import row, run_document
from infra.operate.planning import datasets
from infra.operate.progress import NO_PROGRESS, read_finished, read_progress
from infra.operate.runs import DatedBody, ExplainedBucket, ListedObject, read_attempts, read_ending
from infra.operate.screen import screen
from infra.operate.state import RunState
from infra.operate.terminal import plain
from infra.run import fleet
from infra.run.spend import Spend
from infra.run.values import MOST_BYTES
from tests.hostile import forgeries
from tests.infra.deployed import RUN, Deployed
from tests.infra.operator import operate
from trainer.contract import Lease, UserError, attempt_key, checkpoint_key, manifest_key, metrics_key, run_key, seal

MANIFEST = manifest_key(RUN, 150, 1)
ENDINGS = ("done.json", "failed.json")
BEST = {"top1": 0.63, "step": 100, "weights": "ema"}
ALERT = {"id": "1-1", "time": 5.0, "step": 149, "kind": "starved", "level": "warning", "text": "data wait 23 %"}
OBSERVED = {"sample": {"gpu/utilization": 0.9, "time": 5.0}, "alerts": [ALERT]}
HONEST: dict[str, Any] = {
    run_key(RUN, "heartbeat.json"): {"phase": "training", "step": 150, "progress": 150, "attempt": 1,
                                     "observed": OBSERVED},
    run_key(RUN, "config.json"): {"epochs": 10, "global_batch_size": 256},
    run_key(RUN, "guard.json"): {"reason": "over", "at": 7.0},
    run_key(RUN, "done.json"): {"message": "done", "ended": 5.0, "attempt": 1},
    run_key(RUN, "failed.json"): {"message": "failed", "ended": 5.0, "attempt": 1},
    attempt_key(RUN, 1): {"attempt": 1, "started": 1.0, "ended": 2.0, "exit": 75, "machine": {"type": "g5", "id": "i"}},
    MANIFEST: {"step": 150, "attempt": 1, "time": 5.0, "counters": {"validated": 100, "best": BEST},
               "object": {"key": "checkpoints/x", "bytes": 5}},
    metrics_key(RUN, 1, "00000100-00000149.jsonl"): {"step": 149, "train/epoch": 1.5, "speed/images_per_second": 9.0,
                                                     "val/top1": 0.5, "time": 5.0, "train/loss": 2.0,
                                                     "speed/data_wait_fraction": 0.2},
    run_key(RUN, "telemetry/1/000000.jsonl"): {"step": 149, "time": 5.0, "gpu/utilization": 0.9},
}  # fmt: skip


NOW = datetime.now(UTC)
STATE = RunState(
    now=NOW.timestamp(), run_id=RUN, spec=None, refusals=(), spend=Spend(), guard={}, ending=None, progress=NO_PROGRESS,
    group=fleet.Group(name="g", desired=1, maximum=1, run_id=RUN),
    machines=(fleet.FleetMachine(id="i-1", type="g5.xlarge", zone="a", market="spot", state="running", launched=5.0),),
)  # fmt: skip


@dataclass(frozen=True)
class Files(ExplainedBucket):
    """A bucket in this process, since a request to the emulator takes milliseconds."""

    files: dict[str, bytes] = field(default_factory=dict)

    def get(self, key: str, most: int = MOST_BYTES) -> DatedBody | None:
        return DatedBody(self.files[key], NOW) if key in self.files else None

    def list(self, prefix: str, after: str = "", page: int = 1000) -> Iterator[ListedObject]:
        for key in sorted(self.files):
            if key.startswith(prefix) and key > after:
                yield ListedObject(key, len(self.files[key]), NOW)


@pytest.mark.parametrize("key", HONEST, ids=lambda key: key.rsplit("/", 1)[1])
def test_what_is_shown_of_a_run_is_shown_without_a_forged_document(key: str) -> None:
    files = {name: json.dumps(value).encode() for name, value in HONEST.items() if not name.endswith(ENDINGS)}
    files[checkpoint_key(RUN, "HEAD.json")] = Lease(attempt=1, newest=MANIFEST, best=MANIFEST).to_json()
    bucket, noticed = Files(None, "bucket", files), 0
    for body in forgeries(HONEST[key]):
        files[key] = body
        guard, progress = bucket.read_json(run_key(RUN, "guard.json")), read_progress(bucket, RUN)
        state = replace(STATE, progress=progress, ending=read_ending(bucket, RUN), guard=guard)
        attempts = read_attempts(bucket, RUN)
        noticed += bool(progress.skipped)
        assert status.shown(state)
        assert plain(*screen(state, "bucket"))
        assert row(state, {RUN: NOW})
        assert [cost.attempt_row(one) for one in attempts]
        documents = [status.status_document(state), run_document(state, {RUN: NOW}), *attempts]
        assert json.dumps(documents, allow_nan=False)
        with suppress(UserError):
            checkpoint_objects(bucket, RUN)
    assert noticed > 20 or key.endswith((*ENDINGS, "guard.json"))


def test_a_forged_result_is_no_news_of_a_run() -> None:
    honest = {"steps": 150, "epochs": 1.5, "steps_per_epoch": 100, "last": {"val/top1": 0.5}, "best": BEST}
    for body in forgeries(honest):
        bucket = Files(None, "bucket", {run_key(RUN, "result.json"): body})
        found = read_finished(bucket, RUN, None)
        assert row(replace(STATE, progress=found), {RUN: NOW})
        assert json.dumps(run_document(replace(STATE, progress=found), {RUN: NOW}), allow_nan=False)


def test_status_says_what_it_skipped(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch()
    deployed.train_to(150)
    deployed.put(run_key(RUN, "heartbeat.json"), {"phase": "training", "step": "\x1b[2J", "attempt": 1})
    deployed.put(attempt_key(RUN, 1), {"attempt": 1, "exit": [1]})
    for command in (("status",), ("status", "--json"), ("runs",), ("cost", "--run", RUN)):
        operate(*command)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"skipped {run_key(RUN, 'heartbeat.json')}, which no machine of ours writes: step is" in shown
    assert "attempts/1.json, which no machine of ours writes: exit is [1], not a whole number" in shown
    assert "\x1b" not in shown


def test_a_forged_head_names_no_checkpoint() -> None:
    lease = json.loads(Lease(attempt=1, newest=MANIFEST, best=MANIFEST).to_json())
    lease.pop("crc32")

    def sealed(value: Any) -> bytes:
        with suppress(ValueError, RecursionError):
            return seal(value)
        return b""

    for body in forgeries(lease, sealed):
        bucket = Files(None, "bucket", {checkpoint_key(RUN, "HEAD.json"): body})
        assert read_progress(bucket, RUN).checkpoint is None
        with suppress(UserError):
            checkpoint_objects(bucket, RUN)


def test_a_forged_memory_of_the_guard_is_unreadable() -> None:
    honest = {**vars(Memory(at=5.0, told=("a",), untold={"b": "c"}, unwanted={"i-1": 5.0}))}
    assert Memory.from_json(json.dumps(honest).encode()) == Memory(**honest)
    for body in forgeries(honest):
        with suppress(ValueError, TypeError, RecursionError):
            memory = Memory.from_json(body)
            assert memory.for_launch(9.0).to_json()
            assert max(memory.at, memory.deadline, memory.active, *memory.unwanted.values()) >= 0


def test_a_forged_index_of_a_dataset_is_damaged() -> None:
    shard = {"file": "a.arrow", "images": 10, "bytes": 1000, "crc32": 1}
    split = {"images": 10, "sizes": [{"short_side": 256, "quality": 90, "shards": [shard]}]}
    index = {"splits": {"train": split, "val": split}, "source": {"commit": "c"}}
    files: dict[str, bytes] = {}
    bucket = Files(None, "bucket", files)
    for body in forgeries(index):
        files["datasets/a/b/index.json"] = body
        with suppress(UserError):
            found = datasets.read(bucket, "s3://bucket/datasets/a/b")
            assert found
            assert (type(found.bytes), type(found.train_images)) == (int, int)
