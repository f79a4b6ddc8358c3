"""The uploader as a process of its own, driven over its socket as the trainer does, against real stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT
from tests.checkpoints import RUN, is_retired, names, note, read_lease
from tests.emulator.s3 import Answer, FaultyProxy, refuse
from tests.load import every_core_busy
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import LostRunError, RunEnv
from trainer.process.channel import SOCKET_VARIABLE, Channel, attempt_dir, write_json
from trainer.process.children import UploaderProcess
from trainer.process.snapshot import Snapshot
from trainer.store import open_store
from trainer.store.checksum import crc64
from trainer.upload.commit import data_key
from trainer.upload.owner import claim_attempt

Start = Callable[..., UploaderProcess]
Connect = Callable[[UploaderProcess], Channel]


@pytest.fixture
def folder_uri(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


@pytest.fixture(params=["folder_uri", "s3_uri"])
def uri(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A trainer's end of the socket."""
    made: list[Channel] = []

    def to(uploader: UploaderProcess) -> Channel:
        made.append(Channel.connect(uploader.socket))
        assert made[-1].receive(timeout=10) == ({"hello": uploader.attempt}, None)
        return made[-1]

    yield to
    for channel in made:
        channel.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[UploaderProcess] = []

    def begin(uri: str, lease: int = 60) -> UploaderProcess:
        env = RunEnv(store=uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), lease_seconds=str(lease))
        started.append(UploaderProcess(os.environ | env.to_environ()))
        return started[-1]

    yield begin
    for uploader in started:
        uploader.finish(seconds=30)
        for pipe in (uploader.process.stdin, uploader.process.stdout):
            if pipe is not None:
                pipe.close()


def send_checkpoint(channel: Channel, step: int, body: bytes, *, is_best: bool = False) -> Snapshot:
    """Hand over the bytes in a memory of their own."""
    snapshot = Snapshot.create(len(body))
    snapshot.body[:] = body
    snapshot.note = note(step) | {"is_best": is_best}
    channel.send({"op": "checkpoint", "seq": step}, snapshot.fd)
    return snapshot


def is_drained(uploader: UploaderProcess) -> bool:
    end = time.monotonic() + 30
    return bool(uploader.flush(lambda: end)["drained"])


def wait_until_settled(proxy: FaultyProxy) -> None:
    """What an uploader writes when it starts: heartbeat, claim, end of the sweep."""

    def puts(name: str) -> int:
        return sum(request.startswith("PUT") and name in request for request in proxy.requests)

    wait_until(lambda: puts("HEAD.json") >= 2 and puts("heartbeat.json") >= 1)


def answer(channel: Channel) -> dict[str, Any]:
    return channel.receive(timeout=30)[0]


def test_a_checkpoint_is_an_object_then_a_manifest_with_its_checksum_then_the_lease(
    uri: str,
    start: Start,
    connect: Connect,
) -> None:
    channel = connect(start(uri))
    send_checkpoint(channel, 7, b"tensors")
    assert answer(channel)["committed"] == "checkpoints/job/manifest/step-00000007.1.json"
    store = open_store(uri)
    manifest = json.loads(store.get(read_lease(store).newest))
    assert manifest["step"] == 7
    assert manifest["object"]["bytes"] == 7
    assert manifest["object"]["crc64nvme"] == crc64(memoryview(b"tensors"))
    assert manifest["object"]["parts"] == [manifest["object"]["crc64nvme"]]
    assert store.get(manifest["object"]["key"]) == b"tensors"


def test_on_s3_the_requests_of_a_commit_come_in_that_order(
    s3_uri: str,
    s3_proxy: FaultyProxy,
    start: Start,
    connect: Connect,
) -> None:
    channel = connect(start(s3_uri))
    wait_until_settled(s3_proxy)
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
    start: Start,
    connect: Connect,
) -> None:
    channel = connect(start(folder_uri))
    for step in range(1, 7):
        send_checkpoint(channel, step, b"x", is_best=step == 2)
        answer(channel)
    uploader_is_idle(channel)
    store = open_store(folder_uri)
    assert names(store, "manifest/") == [f"step-0000000{step}.1.json" for step in (2, 5, 6)]
    assert names(store, "data/") == [f"step-0000000{step}.1.safetensors" for step in (2, 5, 6)]
    assert read_lease(store).best.endswith("step-00000002.1.json")


def uploader_is_idle(channel: Channel) -> None:
    """An answer means that everything before it is done, and the queue is worked off in order."""
    send_checkpoint(channel, 6, b"x")
    answer(channel)


def test_a_store_that_fails_for_a_while_loses_nothing_and_is_mentioned_once(
    s3_uri: str,
    s3_proxy: FaultyProxy,
    start: Start,
    connect: Connect,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    wait_until_settled(s3_proxy)
    s3_proxy.plan("PUT", *[refuse(503, "SlowDown")] * 3, refuse(403, "ExpiredToken"))
    channel.send({"op": "put", "key": "runs/job/metrics/1/a.jsonl", "body": {"first": 1}})
    send_checkpoint(channel, 3, b"tensors")
    assert answer(channel)["committed"].endswith("step-00000003.1.json")
    assert json.loads(open_store(s3_uri).get("runs/job/metrics/1/a.jsonl")) == {"first": 1}
    assert is_drained(uploader)
    assert capfd.readouterr().err.count("the store fails") == 1


TRAINER = """
import sys, time
from tests.trainer.upload.test_uploader import send_checkpoint
from trainer.process.channel import Channel
channel = Channel.connect(sys.argv[1])
channel.receive()
sys.stdin.readline()
kept = send_checkpoint(channel, 9, b"last words")
time.sleep(60)
"""


def test_what_a_killed_trainer_sent_still_arrives(s3_uri: str, s3_proxy: FaultyProxy, start: Start) -> None:
    uploader, gate = start(s3_uri), threading.Event()

    def held(forward: Callable[[], Answer]) -> Answer:
        gate.wait(20)
        return forward()

    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, uploader.socket], cwd=ROOT, stdin=subprocess.PIPE, text=True
    )
    wait_until_settled(s3_proxy)
    s3_proxy.plan("PUT", held)
    assert trainer.stdin is not None
    trainer.stdin.write("go\n")
    trainer.stdin.close()
    wait_until(lambda: any("step-00000009" in request for request in s3_proxy.requests))
    trainer.kill()
    trainer.wait()
    assert not names(open_store(s3_uri), "manifest/")
    gate.set()
    assert is_drained(uploader)
    store = open_store(s3_uri)
    assert store.get(json.loads(store.get(read_lease(store).newest))["object"]["key"]) == b"last words"


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
    first.process.send_signal(signal.SIGSTOP)
    second = start(uri, lease=2)
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
    fd = os.memfd_create("segment")
    os.write(fd, b"rows")
    channel.send({"op": "put", "key": "runs/job/metrics/1/a.jsonl"}, fd)
    os.close(fd)
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


def test_a_save_that_took_the_place_of_one_that_waited_is_the_one_that_is_stored(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect
) -> None:
    channel, gate = connect(start(s3_uri)), threading.Event()

    def held(forward: Callable[[], Answer]) -> Answer:
        gate.wait(20)
        return forward()

    s3_proxy.plan("PUT", *[held] * 3)
    send_checkpoint(channel, 1, b"x")
    waiting = send_checkpoint(channel, 2, b"two")
    assert waiting.lock(wait=False)
    waiting.body[:] = b"333"
    waiting.note = note(3)
    channel.send({"op": "checkpoint", "seq": 3}, waiting.fd)
    waiting.unlock()
    gate.set()
    assert [answer(channel)["step"] for _ in range(2)] == [1, 3]
    store = open_store(s3_uri)
    assert names(store, "data/") == ["step-00000001.1.safetensors", "step-00000003.1.safetensors"]
    assert store.get("checkpoints/job/data/step-00000003.1.safetensors") == b"333"


def test_an_uploader_without_a_trainer_leaves_the_lease_alone(folder_uri: str, start: Start) -> None:
    """A second start that is refused, for its config say, must not evict the trainer that runs."""
    start(folder_uri).finish(30)
    assert not [info.key for info in open_store(folder_uri).list("checkpoints/job/HEAD")]


def test_a_store_that_cannot_give_up_old_checkpoints_still_takes_new_ones(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    wait_until_settled(s3_proxy)
    for step in range(1, 6):
        if step >= 3:  # the three requests of a commit go through, the tagging after them does not
            s3_proxy.plan("PUT", *[lambda forward: forward()] * 3, refuse(403, "AccessDenied"))
        send_checkpoint(channel, step, b"x")
        assert answer(channel)["step"] == step
    assert is_drained(uploader)
    assert read_lease(open_store(s3_uri)).newest.endswith("step-00000005.1.json")


def test_the_heartbeat_says_what_the_status_file_says(folder_uri: str, start: Start, tmp_path: Path) -> None:
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
    start: Start,
    connect: Connect,
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 1000)
    channel.send({"op": "put", "key": "runs/job/result.json", "body": {}})
    channel.close()
    uploader.ask(op="flush", seconds=1)
    assert uploader.answer()["drained"] is False
    assert uploader.finish(30) == 1


def test_a_key_that_is_created_once_keeps_its_first_body(uri: str, start: Start) -> None:
    uploader = start(uri)
    for value in (1, 2):
        uploader.ask(op="create", key="runs/job/spec.json", body={"value": value})
    assert is_drained(uploader)
    assert json.loads(open_store(uri).get("runs/job/spec.json")) == {"value": 1}


def test_with_every_core_busy_a_checkpoint_still_arrives_soon(uri: str, start: Start, connect: Connect) -> None:
    """The uploader gives way to the trainer, but must not starve: 200 MB, a ResNet-50 and its momentum."""
    channel, body = connect(start(uri)), os.urandom(1 << 20) * 200
    with every_core_busy():
        started = time.monotonic()
        kept = send_checkpoint(channel, 1, body)
        assert answer(channel)["committed"]
        assert time.monotonic() - started < 25
    assert kept.lock(wait=True)


def test_with_a_slow_store_memory_does_not_grow_and_the_newest_save_is_the_one_that_arrives(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect
) -> None:
    uploader = start(s3_uri)
    channel = connect(uploader)
    tensors = {"weight": torch.zeros(4_000_000)}
    checkpointer = Checkpointer(tensors, channel, note(0)["manifest"])

    def slow(forward: Callable[[], Answer]) -> Answer:
        time.sleep(0.5)
        return forward()

    def resident_bytes() -> int:
        return int(Path(f"/proc/{uploader.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    s3_proxy.plan("PUT", *[slow] * 1000)
    sizes, lags = list[int](), list[float]()
    for step in range(1, 121):
        tensors["weight"].fill_(step)
        assert checkpointer.save(step, {"n": step})
        time.sleep(0.05)
        sizes.append(resident_bytes())
        lags.append(checkpointer.lag_seconds)
    assert max(lags) > 0.4
    s3_proxy.faults.clear()
    checkpointer.save_last(120, {}, lambda: time.monotonic() + 30)
    store = open_store(s3_uri)
    assert read_lease(store).newest.endswith("step-00000120.1.json")
    assert len(names(store, "manifest/")) < 20, "most were replaced by newer ones while they waited"
    assert max(sizes[60:]) < max(sizes[:60]) + (8 << 20)


def test_slow_metrics_do_not_keep_checkpoints_from_being_stored(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start, connect: Connect
) -> None:
    channel = connect(start(s3_uri))
    checkpointer = Checkpointer({"weight": torch.zeros(1000)}, channel, note(0)["manifest"])
    wait_until_settled(s3_proxy)

    def slow(forward: Callable[[], Answer]) -> Answer:
        time.sleep(0.5)
        return forward()

    s3_proxy.plan("PUT", *[slow] * 1000)
    for step in range(1, 31):
        channel.send({"op": "put", "key": f"runs/job/metrics/1/{step}.jsonl", "body": {}})
        assert checkpointer.save(step, {"n": step})
        time.sleep(0.2)
    checkpointer.poll()
    s3_proxy.faults.clear()
    assert checkpointer.committed
    assert int(checkpointer.committed.rsplit("step-")[1][:8]) > 1
    stored = [info.key for info in open_store(s3_uri).list("runs/job/metrics/")]
    step = int(checkpointer.committed.rsplit("step-")[1][:8])
    assert {f"runs/job/metrics/1/{number}.jsonl" for number in range(1, step + 1)} <= set(stored)
