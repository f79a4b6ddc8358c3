"""The uploader as a process of its own, driven over its socket as the trainer does, against real stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.s3 import Answer, FaultyProxy, refuse
from tests.runs import ROOT
from trainer.channel import SOCKET_VARIABLE, Channel, attempt_dir, write_json
from trainer.contract import Head, LostRunError, RunEnv, checkpoint_key
from trainer.store import ObjectStore, open_store
from trainer.supervise import Uploader
from trainer.uploader import claim_attempt

RUN = "job"


@pytest.fixture
def folder_uri(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


@pytest.fixture(params=["folder_uri", "s3_uri"])
def uri(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connect() -> Iterator[Callable[[Uploader], Channel]]:
    """A trainer's end of the socket."""
    made: list[Channel] = []

    def to(uploader: Uploader) -> Channel:
        made.append(Channel.connect(uploader.socket))
        assert made[-1].receive(timeout=10) == ({"hello": uploader.attempt}, None)
        return made[-1]

    yield to
    for channel in made:
        channel.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Uploader]]:
    started: list[Uploader] = []

    def begin(uri: str) -> Uploader:
        env = RunEnv(store=uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"))
        started.append(Uploader(os.environ | env.to_environ()))
        return started[-1]

    yield begin
    for uploader in started:
        uploader.finish(seconds=30)
        for pipe in (uploader.process.stdin, uploader.process.stdout):
            if pipe is not None:
                pipe.close()


def send_checkpoint(channel: Channel, step: int, body: bytes, *, is_best: bool = False) -> None:
    fd = os.memfd_create("test")
    os.write(fd, body)
    channel.send(
        {"op": "checkpoint", "buffer": 0, "step": step, "bytes": len(body), "is_best": is_best,
         "manifest": {"step": step}},
        fd,
    )  # fmt: skip
    os.close(fd)


def answer(channel: Channel) -> dict[str, Any]:
    received = channel.receive(timeout=30)
    assert received is not None
    return received[0]


def head(store: ObjectStore) -> Head:
    return Head.from_json(store.get(checkpoint_key(RUN, "HEAD.json")))


def names(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key.rsplit("/", 1)[1] for info in store.list(checkpoint_key(RUN, prefix))]


def test_a_checkpoint_is_an_object_then_a_manifest_with_its_checksum_then_the_head(
    uri: str,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
) -> None:
    channel = connect(start(uri))
    send_checkpoint(channel, 7, b"tensors")
    assert answer(channel)["committed"] == "checkpoints/job/manifest/step-00000007.1.json"
    store = open_store(uri)
    manifest = json.loads(store.get(head(store).newest))
    assert manifest["step"] == 7
    assert manifest["object"]["bytes"] == 7
    assert manifest["object"]["crc32"] == 0x1574C41E  # zlib.crc32(b"tensors")
    assert store.get(manifest["object"]["key"]) == b"tensors"


def test_on_s3_the_requests_of_a_commit_come_in_that_order(
    s3_uri: str,
    s3_proxy: FaultyProxy,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
) -> None:
    channel = connect(start(s3_uri))
    before = len(s3_proxy.requests)
    send_checkpoint(channel, 1, b"x")
    answer(channel)
    writes = [
        r.split("/job/")[1].split("?")[0]
        for r in s3_proxy.requests[before:]
        if r.startswith("PUT") and "/checkpoints/" in r
    ]
    assert writes == ["data/step-00000001.1.safetensors", "manifest/step-00000001.1.json", "HEAD.json"]


def test_the_newest_the_one_before_and_the_best_are_kept_and_no_other(
    folder_uri: str,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
) -> None:
    channel = connect(start(folder_uri))
    for step in range(1, 7):
        send_checkpoint(channel, step, b"x", is_best=step == 2)
        answer(channel)
    uploader_is_idle(channel)
    store = open_store(folder_uri)
    assert names(store, "manifest/") == [f"step-0000000{step}.1.json" for step in (2, 5, 6)]
    assert names(store, "data/") == [f"step-0000000{step}.1.safetensors" for step in (2, 5, 6)]
    assert head(store).best.endswith("step-00000002.1.json")


def uploader_is_idle(channel: Channel) -> None:
    """An answer means that everything before it is done, and the queue is worked off in order."""
    send_checkpoint(channel, 6, b"x")
    answer(channel)


def test_a_store_that_fails_for_a_while_loses_nothing_and_is_mentioned_once(
    s3_uri: str,
    s3_proxy: FaultyProxy,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
    capfd: pytest.CaptureFixture[str],
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    wait_until(lambda: any("heartbeat" in request for request in s3_proxy.requests))
    s3_proxy.plan("PUT", *[refuse(503, "SlowDown")] * 3, refuse(403, "ExpiredToken"))
    channel.send({"op": "put", "key": "runs/job/metrics/1/a.jsonl", "body": {"first": 1}})
    send_checkpoint(channel, 3, b"tensors")
    assert answer(channel)["committed"].endswith("step-00000003.1.json")
    assert json.loads(open_store(s3_uri).get("runs/job/metrics/1/a.jsonl")) == {"first": 1}
    assert uploader.flush(30)
    assert capfd.readouterr().err.count("the store fails, training goes on") == 1


TRAINER = """
import os, sys, time
from trainer.channel import Channel
channel = Channel.connect(sys.argv[1])
channel.receive()
fd = os.memfd_create("test")
os.write(fd, b"last words")
channel.send({"op": "checkpoint", "buffer": 0, "step": 9, "bytes": 10, "is_best": False, "manifest": {"step": 9}}, fd)
time.sleep(60)
"""


def test_what_a_killed_trainer_sent_still_arrives(
    s3_uri: str, s3_proxy: FaultyProxy, start: Callable[[str], Uploader]
) -> None:
    uploader, gate = start(s3_uri), threading.Event()

    def held(forward: Callable[[], Answer]) -> Answer:
        gate.wait(20)
        return forward()

    wait_until(lambda: any("heartbeat" in request for request in s3_proxy.requests))
    s3_proxy.plan("PUT", lambda forward: forward(), held)  # the head is taken, then the object is held
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, uploader.socket], cwd=ROOT)
    wait_until(lambda: any("step-00000009" in request for request in s3_proxy.requests))
    trainer.kill()
    trainer.wait()
    assert not names(open_store(s3_uri), "manifest/")
    gate.set()
    assert uploader.flush(30)
    store = open_store(s3_uri)
    assert store.get(json.loads(store.get(head(store).newest))["object"]["key"]) == b"last words"


def wait_until(ready: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "time ran out"
        time.sleep(0.02)


def test_attempts_are_numbered_without_gaps_by_whoever_comes(uri: str) -> None:
    store, taken = open_store(uri), []
    threads = [threading.Thread(target=lambda: taken.append(claim_attempt(store, RUN))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [1, 2, 3, 4, 5, 6]


def test_a_later_attempt_takes_the_run_and_the_earlier_one_can_commit_no_more(
    uri: str,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
) -> None:
    first, second = start(uri), start(uri)
    assert (first.attempt, second.attempt) == (1, 2)
    ours, theirs = connect(first), connect(second)
    send_checkpoint(theirs, 5, b"new owner")
    answer(theirs)
    send_checkpoint(ours, 6, b"stale owner")
    assert "attempt 2 has taken the run over from attempt 1" in answer(ours)["lost"]
    store = open_store(uri)
    assert head(store).newest.endswith("step-00000005.2.json")
    assert head(store).attempt == 2


def test_the_trainer_of_an_earlier_attempt_is_turned_away(
    folder_uri: str,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = start(folder_uri), start(folder_uri)
    connect(second)
    monkeypatch.setenv(SOCKET_VARIABLE, first.socket)
    with pytest.raises(LostRunError, match="attempt 2 has taken the run over"):
        Channel.to_uploader()


def test_an_uploader_without_a_trainer_leaves_the_head_alone(folder_uri: str, start: Callable[[str], Uploader]) -> None:
    """A second start that is refused, for its config say, must not evict the trainer that runs."""
    start(folder_uri).finish(30)
    assert not [info.key for info in open_store(folder_uri).list("checkpoints/")]


def test_a_store_that_cannot_give_up_old_checkpoints_still_takes_new_ones(
    s3_uri: str, s3_proxy: FaultyProxy, start: Callable[[str], Uploader], connect: Callable[[Uploader], Channel]
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    wait_until(lambda: any("heartbeat" in request for request in s3_proxy.requests))
    for step in range(1, 6):
        if step >= 3:  # the three requests of a commit go through, the tagging after them does not
            s3_proxy.plan("PUT", *[lambda forward: forward()] * 3, refuse(403, "AccessDenied"))
        send_checkpoint(channel, step, b"x")
        assert answer(channel)["step"] == step
    assert uploader.flush(30)
    assert head(open_store(s3_uri)).newest.endswith("step-00000005.1.json")


def test_the_heartbeat_says_what_the_status_file_says(
    folder_uri: str, start: Callable[[str], Uploader], tmp_path: Path
) -> None:
    local = attempt_dir(RunEnv(store=folder_uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), attempt="1"))
    local.mkdir(parents=True)
    write_json(local / "status.json", {"phase": "training", "step": 12, "progress": 4})
    uploader = start(folder_uri)
    store = open_store(folder_uri)
    key = "runs/job/heartbeat.json"
    wait_until(lambda: key in [info.key for info in store.list("runs/job/")])
    beat = json.loads(store.get(key))
    assert (beat["phase"], beat["step"], beat["attempt"]) == ("training", 12, uploader.attempt)
    assert abs(beat["time"] - time.time()) < 60


def test_what_cannot_be_stored_by_the_deadline_is_an_exit_code(
    s3_uri: str,
    s3_proxy: FaultyProxy,
    start: Callable[[str], Uploader],
    connect: Callable[[Uploader], Channel],
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 1000)
    channel.send({"op": "put", "key": "runs/job/result.json", "body": {}})
    channel.close()
    uploader.ask(op="flush", seconds=1)
    assert uploader.answer() == {"drained": False}
    assert uploader.finish(30) == 1


def test_a_key_that_is_created_once_keeps_its_first_body(uri: str, start: Callable[[str], Uploader]) -> None:
    uploader = start(uri)
    for value in (1, 2):
        uploader.ask(op="create", key="runs/job/spec.json", body={"value": value})
    assert uploader.flush(30)
    assert json.loads(open_store(uri).get("runs/job/spec.json")) == {"value": 1}
