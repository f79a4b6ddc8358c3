"""The uploader as a process of its own, driven over its socket as the trainer does, against real stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.checkpoints import RUN, names, note, read_lease
from tests.emulator.s3 import Answer, FaultyProxy, refuse
from tests.load import every_core_busy
from tests.uploads import (
    Connect,
    Start,
    answer,
    is_drained,
    send_checkpoint,
    uploader_is_idle,
    wait_until,
    wait_until_settled,
)
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import RunEnv
from trainer.process.channel import attempt_dir, write_json
from trainer.store import open_store
from trainer.store.checksum import crc64
from trainer.upload.owner import claim_attempt

pytestmark = pytest.mark.slow


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
from tests.uploads import send_checkpoint
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
    s3_proxy.plan("PUT", *[held] * 20)  # one of them may be the lease's or a heartbeat
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


def test_attempts_are_numbered_without_gaps_by_whoever_comes(uri: str) -> None:
    store, taken = open_store(uri), []
    threads = [threading.Thread(target=lambda: taken.append(claim_attempt(store, RUN))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [1, 2, 3, 4, 5, 6]


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
