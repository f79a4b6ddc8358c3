"""A machine that joins a run which is under way gets its data first: the others do not wait for it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import PATIENCE, ROOT
from tests.emulator.s3 import Answer, FaultyProxy, Forward
from tests.runs import Run
from tests.trainer.process.test_nodes import ENV, LONG, machine
from trainer.contract import CRASH, Exit, Lease, RunEnv, attempt_key, checkpoint_key, dataset_key, run_key
from trainer.data.format import read_index
from trainer.process.channel import attempt_dir, read_json
from trainer.process.children import StagingProcess, UploaderProcess
from trainer.process.nodes import CURRENT, LEFT, OVER
from trainer.store import open_store
from trainer.upload import machines
from trainer.upload.machines import Companion

Make = Callable[..., Run]


def stored_copy(folder: Path, uri: str) -> str:
    """A prepared folder, copied to S3."""
    index = read_index(folder)
    place = f"{uri}/{dataset_key(index.name, index.version, '')}".rstrip("/")
    store = open_store(place)
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        store.put(str(path.relative_to(folder)), path.read_bytes())
    return place


def holds(gate: threading.Event) -> Callable[[Forward], Answer]:
    def wait(forward: Forward) -> Answer:
        gate.wait(PATIENCE)
        return forward()

    return wait


@pytest.mark.slow
def test_the_others_train_while_a_machine_gets_its_data_and_meet_it_then(
    new_run: Make, tmp_path: Path, digits_folder: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, gate = stored_copy(digits_folder, s3_uri), threading.Event()
    s3_proxy.plan("GET", lambda forward: forward(), *[holds(gate)] * 100)  # all but the index
    first, second = (machine(new_run, tmp_path, number) for number in (2, 3))
    first.start(*LONG)

    def it_trains() -> bool:
        return bool(first.lease().newest) and first.json("heartbeat.json")["phase"] == "training"

    first.until(it_trains, 90)
    second.start(*LONG, TRAINER_DATA=place)

    def it_stages() -> bool:
        return second.status().get("phase") == "staging" and "GET" in s3_proxy.requests[-1]

    second.until(it_stages, 60)
    began = first.status()["step"]

    def steps_go_on() -> bool:
        return int(first.status().get("step", 0)) >= began + 5

    first.until(steps_go_on)

    def the_record_tells() -> bool:
        return bool(second.json("nodes/node-3.json").get("phase") == "staging")

    second.until(the_record_tells)
    record = second.json("nodes/node-3.json")
    assert (record["role"], record["message"]) == ("member", "gets its data before it meets the others")
    assert (first.lease().attempt, first.status().get("nodes", 1)) == (1, 1), "nobody has been interrupted"
    s3_proxy.faults.clear()
    gate.set()

    def they_train_together() -> bool:
        return bool(first.status().get("nodes", 1) == 2 and first.status()["step"] > began + 5)

    first.until(they_train_together, 90)
    assert second.json("nodes/node-3.json")["message"] == ""
    assert first.stop(signal.SIGTERM) == Exit.INTERRUPTED
    assert second.stop(signal.SIGTERM) == Exit.INTERRUPTED
    said = "this machine gets its data, and meets the others then, who train meanwhile"
    assert second.output.count(said) == 1, second.output


@pytest.fixture
def joining(tmp_path: Path) -> RunEnv:
    (tmp_path / "store").mkdir()
    return replace(
        ENV, store=str(tmp_path / "store"), scratch_dir=str(tmp_path), lease_seconds="60", attempt="4", data="digits"
    )


def companion(env: RunEnv, lease: Lease) -> Companion:
    store = open_store(env.store)
    store.put(checkpoint_key("r", "HEAD.json"), lease.to_json())
    return Companion(env, store, lease)


HELD = Lease(attempt=4, owner="b", since=7.0, renewed=1, rendezvous="127.0.0.9:1")


def test_the_head_has_its_data_once_it_has_trained_in_this_attempt_or_before(joining: RunEnv) -> None:
    member = companion(joining, HELD)
    assert not member.head_has_data(), "the store does not tell: they meet at once"
    told: tuple[tuple[Any, bool], ...] = (
        ({"attempt": 4, "phase": "staging"}, False), ({"attempt": 4, "phase": "training"}, True),
        ({"attempt": 3, "phase": "training"}, False), ([], False),
    )  # fmt: skip
    for beat, has_data in told:
        member.store.put(run_key("r", "heartbeat.json"), json.dumps(beat).encode())
        assert member.head_has_data() == has_data, beat
    for begun, has_data in (({"attempt": 4}, False), ({"attempt": 4, "has_data": True}, True)):
        member.store.put(attempt_key("r", 4), json.dumps(begun).encode())
        assert member.head_has_data() == has_data, begun


def test_a_member_knows_whether_its_attempt_goes_on_and_leads_where_nobody_does(
    joining: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = companion(joining, HELD)
    assert member.standing() == CURRENT
    for lease in (replace(HELD, attempt=5), replace(HELD, since=8.0), replace(HELD, owner="")):
        member.view.lease = lease
        assert member.standing() == OVER, lease
    monkeypatch.setattr(machines, "UNLED_SECONDS", 1e-9)
    assert member.standing() == LEFT, "it has no owner"
    member.view.lease = HELD
    assert member.standing() == CURRENT
    member.view.seen_at -= 61
    assert member.standing() == LEFT, "its owner is dead"
    member.looked_at -= 61
    assert member.standing() == OVER, "or the store does not answer"


class Told(UploaderProcess):
    """An uploader of which only this is asked."""

    def __init__(self, standing: str):
        self.standing = standing

    def look(self) -> str:
        return self.standing


def staged(env: RunEnv, standing: str, **environ: str) -> dict[str, Any] | None:
    """What a machine that gets its data leaves of how it went."""
    local = attempt_dir(env)
    (local / "pids").mkdir(parents=True)
    environ |= {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    process = StagingProcess(["digits"], env.to_environ() | environ, local, uploader=Told(standing))
    process.wait(lambda: -math.inf)
    return read_json(local / "exit.json")


def test_data_is_staged_and_a_mistake_in_it_is_told_as_in_an_attempt(joining: RunEnv, digits_folder: Path) -> None:
    here = replace(joining, data=str(digits_folder))
    ended = staged(here, OVER)
    assert ended is not None
    assert (ended["code"], ended["message"]) == (Exit.FINISHED, "the data is here")
    nowhere = replace(joining, data=f"{joining.scratch_dir}/nothing-here", attempt="5")
    ended = staged(nowhere, CURRENT)
    assert ended is not None
    assert ended["code"] == Exit.USER
    assert "nothing-here" in ended["message"]


def test_a_signal_ends_staging_at_once(
    joining: RunEnv, digits_folder: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    place, gate = stored_copy(digits_folder, s3_uri), threading.Event()
    s3_proxy.requests.clear()
    s3_proxy.plan("GET", lambda forward: forward(), *[holds(gate)] * 100)
    env = replace(joining, data=place)
    (attempt_dir(env) / "pids").mkdir(parents=True)
    process = StagingProcess(["digits"], {**os.environ, **env.to_environ()}, attempt_dir(env), uploader=Told(CURRENT))
    deadline = time.monotonic() + PATIENCE
    while len(s3_proxy.requests) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    signalled = time.monotonic()
    process.interrupt()
    process.wait(lambda: -math.inf)
    assert time.monotonic() - signalled < 5
    gate.set()
    ended = read_json(attempt_dir(env) / "exit.json")
    assert ended is not None
    assert (ended["code"], ended["message"]) == (Exit.INTERRUPTED, "nothing had to be saved")


def test_a_machine_that_gets_its_data_ends_where_nobody_leads_any_more(joining: RunEnv) -> None:
    assert staged(joining, LEFT) is None, "it was killed, and left no reason"


def test_staging_that_stands_still_ends_as_a_crash(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from trainer.staging import end_if_it_stalls
from trainer.telemetry.status import Status
end_if_it_stalls(Status(Path({str(tmp_path)!r}) / "status.json", writes=True), Path({str(tmp_path)!r}), 0.1)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == CRASH
    ended = read_json(tmp_path / "exit.json")
    assert ended is not None
    assert ended["message"] == "the data of this machine has not got on for 0.1 s"
