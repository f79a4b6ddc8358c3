"""Metrics: immutable segments, one row per step, read back over restarts as if there had been none."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from tests.images import open_split, prepared
from tests.trainer.cuda import stand_in_cuda
from trainer.contract import tensorboard_key
from trainer.data.reading.loader import Loader, val_jobs
from trainer.learning.schedule import Settings
from trainer.learning.world import World
from trainer.process.channel import Channel
from trainer.recipes.config import Config, DataConfig
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import MetricsWriter, read_metrics
from trainer.telemetry.step_log import StepLog, summary
from trainer.upload.events import event_file

RUN = "job"
Attempt = Callable[..., MetricsWriter]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def attempt(store: ObjectStore) -> Iterator[Attempt]:
    """Makes writers; `ship` does to what they sent what the uploader does."""
    ends: list[Channel] = []

    def make(number: int, first_step: int, origin: int | None = None) -> MetricsWriter:
        ours, theirs = (Channel(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ends.extend([ours, theirs])
        before = number - 1 if origin is None else origin
        writer = MetricsWriter(ours, RUN, number, first_step=first_step, origin=before)

        def ship() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    message, fd = theirs.receive(timeout=0)
                    assert fd is not None
                    segment = os.pread(fd, 1 << 20, 0)
                    os.close(fd)
                    store.put(message["key"], segment)
                    name, events = event_file(segment, Path(message["key"]).stem)
                    store.put(tensorboard_key(RUN, number, name), events)

        writer.ship = ship  # type: ignore[attr-defined]
        return writer

    yield make
    for end in ends:
        end.close()


def finish(writer: MetricsWriter) -> None:
    writer.flush()
    writer.ship()  # type: ignore[attr-defined]


def steps(store: ObjectStore) -> list[int]:
    return [row["step"] for row in read_metrics(store, RUN) if "event" not in row]


def test_values_of_one_step_stand_in_one_row(attempt: Attempt, store: ObjectStore) -> None:
    writer = attempt(1, 0)
    writer.add(1, {"train/loss": 2.0})
    writer.add(1, {"val/top1": 0.5})
    writer.add(2, {"train/loss": 1.0})
    finish(writer)
    start, first, second = read_metrics(store, RUN)
    assert (start["event"], start["attempt"]) == ("start", 1)
    assert (first["step"], first["train/loss"], first["val/top1"]) == (1, 2.0, 0.5)
    assert second["step"] == 2
    assert abs(second["time"] - time.time()) < 60


def test_a_segment_is_named_by_its_steps_and_never_overwritten(attempt: Attempt, store: ObjectStore) -> None:
    """A save by time, a validation and a second save can all fall on the step at which an attempt began."""
    writer = attempt(1, 22)
    finish(writer)
    writer.add(22, {"val/top1": 0.5})
    finish(writer)
    writer.add(23, {"train/loss": 1.0})
    finish(writer)
    files = [info.key.rsplit("/", 1)[1] for info in store.list(f"runs/{RUN}/metrics/")]
    assert len(files) == 3
    assert {"00000022-00000022.jsonl", "00000023-00000023.jsonl"} < set(files)
    assert [row["step"] for row in read_metrics(store, RUN)] == [22, 22, 23]
    assert len(list(store.list(f"runs/{RUN}/tensorboard/"))) == 3


def test_what_an_attempt_did_in_vain_is_dropped_when_the_next_one_redoes_it(
    attempt: Attempt, store: ObjectStore
) -> None:
    first = attempt(1, 0)
    for step in range(1, 8):
        first.add(step, {"train/loss": 1.0})
    finish(first)
    second = attempt(2, 4)  # the checkpoint was of step 4
    second.add(5, {"train/loss": 5.0})
    finish(second)
    assert steps(store) == [1, 2, 3, 4, 5]
    assert read_metrics(store, RUN)[-1]["train/loss"] == 5.0


def test_the_tenth_attempt_comes_after_the_ninth(attempt: Attempt, store: ObjectStore) -> None:
    for number, origin in ((10, 9), (9, 1), (1, 0)):
        writer = attempt(number, number, origin)
        writer.add(number + 1, {"train/loss": 1.0})
        finish(writer)
    assert steps(store) == [2, 10, 11]


def test_files_of_others_among_the_metrics_are_no_rows(attempt: Attempt, store: ObjectStore) -> None:
    writer = attempt(1, first_step=0)
    writer.add(1, {"train/loss": 2.0})
    writer.flush()
    writer.ship()  # type: ignore[attr-defined]
    for name in (".DS_Store", "1/.DS_Store", "1/._00000000-00000001.jsonl", "@eaDir/1/x.jsonl", "1/@eaDir/x.jsonl"):
        store.put(f"runs/{RUN}/metrics/{name}", b"\xff\xfe no rows")
    assert [row["step"] for row in read_metrics(store, RUN)] == [0, 1]


def test_what_an_attempt_did_beside_the_way_to_the_last_one_does_not_count(
    attempt: Attempt, store: ObjectStore
) -> None:
    """The second could read only the checkpoint of step 2, and died; the third goes on from the first one's step 4."""
    for number, first, last, origin in ((1, 0, 6, 0), (2, 2, 3, 1), (3, 4, 5, 1)):
        writer = attempt(number, first, origin)
        for step in range(first + 1, last + 1):
            writer.add(step, {"train/loss": float(number)})
        finish(writer)
    assert steps(store) == [1, 2, 3, 4, 5]
    losses = [row["train/loss"] for row in read_metrics(store, RUN) if "event" not in row]
    assert losses == [1.0, 1.0, 1.0, 1.0, 3.0]


def test_a_validation_that_came_in_the_next_attempt_joins_the_row_of_its_step(
    attempt: Attempt, store: ObjectStore
) -> None:
    first = attempt(1, 0)
    first.add(1, {"train/loss": 2.0})
    finish(first)
    second = attempt(2, 1)
    second.add(1, {"val/top1": 0.5})
    finish(second)
    (row,) = [row for row in read_metrics(store, RUN) if "event" not in row]
    assert (row["train/loss"], row["val/top1"]) == (2.0, 0.5)


def test_flushing_nothing_writes_nothing(attempt: Attempt, store: ObjectStore) -> None:
    writer = attempt(1, 0)
    finish(writer)
    finish(writer)
    assert len(list(store.list(f"runs/{RUN}/metrics/"))) == 1


def test_every_line_is_json_of_flat_names(attempt: Attempt, store: ObjectStore) -> None:
    writer = attempt(1, 0)
    writer.add(1, {"train/loss": 2.0, "train/lr": 0.1})
    finish(writer)
    (info,) = store.list(f"runs/{RUN}/metrics/")
    for line in store.get(info.key).decode().splitlines():
        assert all(isinstance(value, int | float | str) for value in json.loads(line).values())


def test_the_log_gives_means_per_step_and_the_share_of_time_spent_waiting_for_data(tmp_path: Path) -> None:
    from tests.images import image_folder

    split = open_split(tmp_path / "s", prepared(image_folder(tmp_path / "i"), tmp_path / "s"))
    config = Config(data=DataConfig(val_resize=32, val_crop=32))
    jobs = val_jobs(config, split, rank=0, world=1)
    with Loader(jobs, max_images=64, image_bytes=3 * 32**2, workers=1, device=torch.device("cpu")) as loader:
        log = StepLog(World(0, 0, 1, torch.device("cpu")), loader, steps_per_epoch=10)
        log.resolution = 32
        log.add(1, Settings(0.1, 0.1, 32), torch.tensor([8.0, 1.0, 3.0, 4.0]))
        log.add(2, Settings(0.2, 0.2, 32), torch.tensor([4.0, 2.0, 4.0, 4.0]))
        loader.wait_seconds += 0.05
        time.sleep(0.1)
        log.look({"checkpoint/lag_seconds": 3.0})
        (rows,) = log.read(0)
        first, second = rows
        assert (first["train/loss"], first["train/top1"], first["train/top5"]) == (2.0, 0.25, 0.75)
        assert (second["train/loss"], second["train/lr"], second["train/epoch"]) == (1.0, 0.2, 0.2)
        assert (first["train/resolution"], second["train/resolution"]) == (32, 32)
        assert "speed/images_per_second" not in first
        assert 40 < second["speed/images_per_second"] <= 80
        assert 0.2 < second["speed/data_wait_fraction"] <= 0.5
        assert ("checkpoint/lag_seconds" in first, second["checkpoint/lag_seconds"]) == (False, 3.0)
        assert summary(rows)["train/loss"] == 1.5
        assert summary(rows)["speed/images_per_second"] == second["speed/images_per_second"]
        assert log.look({}) == 0
        assert list(log.read(2)) == []


def step_log() -> StepLog:
    return StepLog(World(0, 0, 1, torch.device("cpu")), cast(Loader, SimpleNamespace(wait_seconds=0.0)), 10)


def test_a_look_tells_how_long_steps_took_and_the_loss_scale_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("trainer.telemetry.step_log.time.perf_counter", lambda: now[0])
    log = step_log()
    log.resolution = 32
    for step, seconds in enumerate([0.1] * 18 + [0.5, 2.0], start=1):
        now[0] += seconds
        log.add(step, Settings(0.1, 0.1, 32), torch.tensor([8.0, 1.0, 3.0, 4.0]))
    now[0] += 1.0  # a save, say: no step
    log.look({}, torch.tensor(1024.0))
    now[0] += 0.1
    log.add(21, Settings(0.1, 0.1, 32), torch.tensor([8.0, 1.0, 3.0, 4.0]))
    log.look({})
    rows, later = log.read(21)
    times = [rows[-1][f"speed/step_seconds_{name}"] for name in ("p50", "p95", "max")]
    assert times == pytest.approx([0.1, 0.575, 2.0])
    assert (rows[-1]["train/loss_scale"], "train/loss_scale" in rows[0]) == (1024.0, False)
    assert "train/loss_scale" not in later[-1]


def test_rows_of_a_gpu_come_when_they_are_waited_for_or_have_arrived_with_the_times_of_their_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, now = stand_in_cuda(monkeypatch), 0.0
    monkeypatch.setattr("trainer.telemetry.step_log.time.perf_counter", lambda: now)
    log = step_log()
    log.resolution = 32
    for step in (1, 2, 3, 4):
        now = 2.0 * step
        log.add(step, Settings(0.0, 0.1, 32), torch.tensor([1.0, 1.0, 1.0, 8.0]))
        assert log.look({}) == 2
        assert list(log.read(0)) == [], "nothing has arrived"
    assert cuda.waits == 0
    now = 1000.0
    ((row,),) = log.read(1)
    assert (row["step"], row["speed/images_per_second"], cuda.waits) == (1, 4, 1)
    cuda.finish()
    assert [row["step"] for rows in log.read(0) for row in rows] == [2, 3, 4]
    assert cuda.waits == 1


def test_before_a_pause_the_time_of_the_steps_is_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, now = stand_in_cuda(monkeypatch), 0.0
    monkeypatch.setattr("trainer.telemetry.step_log.time.perf_counter", lambda: now)
    log = step_log()
    log.resolution = 32

    def late() -> None:
        nonlocal now
        now += 3.0

    for is_looked_at in (False, True):
        began = now
        log.add(1, Settings(0.0, 0.1, 32), torch.ones(4))
        now += 1.0
        cuda.give(late)
        seconds = log.look({}) if is_looked_at else 0.0
        seconds += log.seconds_until_done()
        seconds += log.look({})
        assert seconds == now - began == 4.0
        assert log.seconds_until_done() == 0
        list(log.read(1))


def test_the_first_step_of_a_size_has_no_speed_and_counts_as_long_as_the_steps_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("trainer.telemetry.step_log.time.perf_counter", lambda: now)
    log, sums = step_log(), torch.ones(4)
    total = 0.0
    for step, pixels, at in ((1, 128, 90.0), (2, 128, 91.0), (3, 128, 92.0), (4, 160, 150.0), (5, 160, 152.0)):
        now = at
        log.add(step, Settings(0.0, 0.1, pixels), sums)
        if is_first := step in (1, 4):
            assert log.is_warm_up
        total += log.look({})
        ((row,),) = log.read(0)
        assert ("speed/images_per_second" in row, bool(summary([row]))) == (not is_first, not is_first)
    assert total == pytest.approx(3 * 1.0 + 2 * 2.0)
