"""An uploader process and an observer that talks to it, hangs, or holds a slow store: checkpoints come first."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.emulator.s3 import Answer, FaultyProxy
from tests.uploads import (
    Connect,
    Start,
    answer,
    is_drained,
    send_checkpoint,
    send_segment,
    wait_until,
    wait_until_settled,
)
from trainer.contract import RunEnv
from trainer.observer.link import Link
from trainer.process.channel import attempt_dir, observer_socket, write_json
from trainer.process.children import UploaderProcess
from trainer.store import ObjectStore, open_store

pytestmark = pytest.mark.slow
Open = Callable[[UploaderProcess], Link]
SAMPLES = f"runs/{RUN}/telemetry/1/000001.jsonl"


@pytest.fixture
def observe() -> Iterator[Open]:
    """An observer's end of the socket."""
    made: list[Link] = []

    def to(uploader: UploaderProcess) -> Link:
        made.append(Link(observer_socket(uploader.socket)))
        made[-1].open()
        return made[-1]

    yield to
    for link in made:
        link.close()


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("runs/")}


def test_samples_are_stored_once_the_trainer_has_the_run_and_the_heartbeat_has_the_newest(
    folder_uri: str, start: Start, connect: Connect, observe: Open, tmp_path: Path
) -> None:
    local = attempt_dir(RunEnv(store=folder_uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), attempt="1"))
    local.mkdir(parents=True)
    observed = {"sample": {"time": time.time(), "gpu/utilization": 0.5}, "alerts": []}
    write_json(local / "observed.json", observed)
    uploader, store = start(folder_uri), open_store(folder_uri)
    link = observe(uploader)
    assert link.put(SAMPLES, b"too early")
    wait_until(lambda: f"runs/{RUN}/heartbeat.json" in keys(store))
    assert f"checkpoints/{RUN}/HEAD.json" not in {info.key for info in store.list("checkpoints/")}, "it claims nothing"
    assert json.loads(store.get(f"runs/{RUN}/heartbeat.json"))["observed"] == observed
    channel = connect(uploader)
    assert SAMPLES not in keys(store)
    assert link.put(SAMPLES, b'{"step": 3, "time": 1000.0, "gpu/utilization": 0.5}\n')
    send_segment(channel, "00000001-00000002", b'{"step": 1, "time": 1000.0, "train/loss": 2.0}\n')
    send_checkpoint(channel, 2, b"x", is_best=True)
    answer(channel)
    channel.close()
    assert is_drained(uploader)
    assert store.get(SAMPLES).startswith(b'{"step": 3')
    assert [message.get("committed", segment) for message, segment in link.heard()] == [
        b'{"step": 1, "time": 1000.0, "train/loss": 2.0}\n', 2,
    ]  # fmt: skip
    began = time.monotonic()
    assert uploader.finish(30) == 0, "it does not wait for an observer that stays"
    assert time.monotonic() - began < 3


def test_a_store_that_holds_a_sample_takes_checkpoints_meanwhile(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect, observe: Open
) -> None:
    uploader, gate = start(s3_uri), threading.Event()
    channel, link = connect(uploader), observe(uploader)

    def held(forward: Callable[[], Answer]) -> Answer:
        gate.wait(20)
        return forward()

    wait_until_settled(s3_proxy)
    s3_proxy.plan("PUT", held)
    assert link.put(SAMPLES, b'{"step": 3, "time": 1000.0}\n')
    wait_until(lambda: any(SAMPLES in request for request in s3_proxy.requests))
    send_checkpoint(channel, 1, b"x")
    assert answer(channel)["committed"]
    channel.close()
    began = time.monotonic()
    assert is_drained(uploader)
    assert time.monotonic() - began < 5
    gate.set()
