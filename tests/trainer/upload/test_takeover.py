"""Two attempts and one run: who waits, who has lost the run, and what the next attempt stores."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import is_retired, read_lease
from tests.emulator.s3 import Answer, FaultyProxy, refuse
from tests.uploads import (
    Connect,
    Start,
    answer,
    send_checkpoint,
    send_segment,
    stop_between_writes,
    wait_until_settled,
)
from trainer.contract import LostRunError
from trainer.manifest import data_key
from trainer.process.channel import SOCKET_VARIABLE, Channel
from trainer.store import open_store

pytestmark = pytest.mark.slow


def test_a_second_trainer_waits_one_lease_and_is_told_who_holds_the_run(
    uri: str, start: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = start(uri, lease=2), start(uri, lease=2)
    assert (first.attempt, second.attempt) == (1, 2)
    ours = connect(first)
    monkeypatch.setenv(SOCKET_VARIABLE, second.socket)
    started = time.monotonic()
    with pytest.raises(LostRunError, match=r"held by attempt 1 on .* since"):
        Channel.to_uploader()
    assert 1.5 < time.monotonic() - started < 10
    send_checkpoint(ours, 6, b"the owner goes on")
    assert answer(ours)["committed"]


def test_an_owner_that_was_stopped_for_longer_than_its_lease_finds_that_it_has_lost_the_run(
    uri: str, start: Start, connect: Connect
) -> None:
    first = start(uri, lease=2)
    ours = connect(first)
    stop_between_writes(first.process.pid, uri)
    second = start(uri, lease=2)
    assert second.attempt == 2
    theirs = connect(second)
    send_checkpoint(theirs, 5, b"new owner")
    assert answer(theirs)["committed"]
    send_checkpoint(ours, 6, b"stale owner")
    first.process.send_signal(signal.SIGCONT)
    assert "attempt 2 has taken the run over from attempt 1" in answer(ours)["lost"]
    store = open_store(uri)
    assert read_lease(store).newest.endswith("step-00000005.2.json")
    assert read_lease(store).attempt == 2


def test_a_checkpoint_that_the_next_owner_adopted_is_not_retired_by_the_one_that_lost_the_run(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect
) -> None:
    first, gate = start(s3_uri, lease=2), threading.Event()
    ours = connect(first)
    wait_until_settled(s3_proxy)

    def held(forward: Callable[[], Answer]) -> Answer:
        first.process.send_signal(signal.SIGSTOP)
        gate.wait(20)
        return forward()

    send_checkpoint(ours, 5, b"before")
    answer(ours)
    s3_proxy.plan("PUT", lambda forward: forward(), lambda forward: forward(), held)  # object, manifest, HEAD.json
    send_checkpoint(ours, 6, b"adopted")
    second = start(s3_uri, lease=2)
    connect(second)
    store = open_store(s3_uri)
    assert read_lease(store).newest.endswith("step-00000006.1.json")
    gate.set()
    first.process.send_signal(signal.SIGCONT)
    assert "attempt 2 has taken the run over" in answer(ours)["lost"]
    first.finish(30)
    assert not is_retired(store, read_lease(store).newest)
    assert not is_retired(store, data_key(read_lease(store).newest))


def test_the_next_attempt_stores_what_this_machine_could_not_and_goes_on_from_there(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect, tmp_path: Path
) -> None:
    first = start(s3_uri)
    channel = connect(first)
    send_checkpoint(channel, 3, b"stored")
    answer(channel)
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 1000)
    send_segment(channel, "a", b"rows")
    send_checkpoint(channel, 4, b"not stored")
    first.ask(op="flush", seconds=1)
    flushed = first.answer()
    assert not flushed["drained"]
    assert Path(flushed["kept"]).is_dir()
    assert "committed" not in answer(channel)
    channel.close()
    assert first.finish(30) == 1
    s3_proxy.faults.clear()

    second = start(s3_uri)
    theirs = connect(second)
    store = open_store(s3_uri)
    newest = read_lease(store).newest
    assert newest.endswith("step-00000004.1.json")
    assert store.get(json.loads(store.get(newest))["object"]["key"]) == b"not stored"
    assert store.get("runs/job/metrics/1/a.jsonl") == b"rows"
    assert not Path(flushed["kept"]).exists()
    send_checkpoint(theirs, 5, b"goes on")
    assert answer(theirs)["committed"]


def test_an_uploader_without_a_trainer_leaves_the_lease_alone(folder_uri: str, start: Start) -> None:
    """A second start that is refused, for its config say, must not evict the trainer that runs."""
    start(folder_uri).finish(30)
    assert not [info.key for info in open_store(folder_uri).list("checkpoints/job/HEAD")]
