"""Ten uploaders are killed while they store what a trainer sends: TensorBoard still shows one curve of the run."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, read_lease
from tests.curves import tensorboard_reads
from tests.uploads import Connect, Start, answer, in_memory, is_drained, send_checkpoint, wait_until
from trainer.contract import metrics_key, parse_manifest_key
from trainer.process.channel import Channel, observer_socket
from trainer.process.children import UploaderProcess
from trainer.store import ObjectStore, StoreError, open_store
from trainer.telemetry.metrics import read_metrics, start_row
from trainer.telemetry.samples import samples_key
from trainer.tensorboard.mirror import Mirror
from trainer.upload.copies import copy_of

KILLS = 10
Row = dict[str, Any]


class Attempt:
    """A trainer that goes on from the newest checkpoint, and an observer beside it."""

    def __init__(self, store: ObjectStore, channel: Channel, uploader: UploaderProcess):
        self.channel, self.attempt, self.samples = channel, uploader.attempt, 0
        self.observer = Channel.connect(str(observer_socket(uploader.socket)))
        try:
            origin, self.step = parse_manifest_key(read_lease(store).newest) or (0, 0)
        except StoreError:
            origin, self.step = 0, 0
        self.rows: list[Row] = [start_row(self.attempt, self.step, origin)]

    def send(self, channel: Channel, key: str, rows: list[Row]) -> None:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        channel.send({"op": "put", "key": key}, fd := in_memory(body))
        os.close(fd)

    def train(self, steps: int) -> str:
        """A segment of so many steps, and two samples at its last one. Returns the key of the segment."""
        for _ in range(steps):
            self.step += 1
            value = self.step + self.attempt / 100  # tells which attempt did the step
            self.rows.append({"step": self.step, "time": 1e9 + value, "train/loss": value, "train/lr": 0.1})
        self.rows[-1]["val/top1"] = self.attempt / 100
        key = metrics_key(RUN, self.attempt, f"{self.rows[0]['step']:08d}-{self.step:08d}.jsonl")
        self.send(self.channel, key, self.rows)
        self.rows = []
        for power in (100.0, 200.0):
            self.samples += 1
            row = {"step": self.step, "time": 1e9, "phase": "training", "gpu/power_watts": power}
            self.send(self.observer, samples_key(RUN, self.attempt, self.samples), [row])
        return key

    def save(self) -> None:
        send_checkpoint(self.channel, self.step, b"tensors")
        assert answer(self.channel)["step"] == self.step


def keys(store: ObjectStore, folder: str) -> list[str]:
    return [info.key for info in store.list(f"runs/{RUN}/{folder}/")]


@pytest.mark.slow
def test_after_ten_kills_a_run_is_one_curve_without_a_lost_or_doubled_step_and_each_segment_has_one_copy(
    folder_uri: str, start: Start, connect: Connect, tmp_path: Path, trackers_python: str
) -> None:
    store = open_store(folder_uri)
    live = Mirror(store, RUN, tmp_path / "live")
    for kill in range(KILLS):
        uploader = start(folder_uri)
        trainer = Attempt(store, connect(uploader), uploader)
        trainer.train(2)
        if kill % 3 != 2:  # else it saves nothing, and the next attempt goes on from where this one did
            trainer.save()
        last = trainer.train(3)
        if kill % 2:  # else it is killed as soon as everything is sent
            wait_until(lambda last=last: last in keys(store, "metrics"))  # type: ignore[misc]
        uploader.process.kill()
        uploader.process.wait()
        trainer.observer.close()
        live.follow()
    uploader = start(folder_uri)
    trainer = Attempt(store, connect(uploader), uploader)
    trainer.train(4)
    trainer.save()
    trainer.channel.close()
    trainer.observer.close()
    assert is_drained(uploader)
    assert uploader.finish(30) == 0
    live.follow()

    segments = keys(store, "metrics") + keys(store, "telemetry")
    copies = dict(filter(None, (copy_of(RUN, key, store.get(key)) for key in segments)))
    assert len(copies) == len(segments) > 2 * KILLS
    assert {key: store.get(key) for key in keys(store, "tensorboard")} == copies

    Mirror(store, RUN, tmp_path / "anew").follow()
    shown = [tmp_path / name / RUN for name in ("live", "anew")]
    live_curves, curves, samples = tensorboard_reads(trackers_python, *shown, shown[1] / "telemetry")
    assert live_curves == curves
    assert [step for step, _ in curves["train/loss"]] == list(range(1, trainer.step + 1))
    rows = [row for row in read_metrics(store, RUN) if "event" not in row]
    for metric in ("train/loss", "train/lr", "val/top1"):
        assert curves[metric] == [(row["step"], single(row[metric])) for row in rows if metric in row]
    steps = [step for step, _ in samples["gpu/power_watts"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == trainer.step


def single(value: float) -> float:
    """As a number of 32 bits."""
    found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return found
