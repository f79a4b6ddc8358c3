"""Machines that wait for one another: what a damaged status file does to them."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.contract import Lease, RunEnv, checkpoint_key, run_key
from trainer.process.channel import attempt_dir
from trainer.process.nodes import MEETING
from trainer.store import StoreError, open_store
from trainer.upload import machines
from trainer.upload.machines import Companion, Scout

ENV = RunEnv(store="", run_id="r", scratch_dir="", nodes="2", address="127.0.0.2", node="a", lease_seconds="60")


@pytest.fixture
def waiting(tmp_path: Path) -> RunEnv:
    (tmp_path / "store").mkdir()
    return replace(ENV, store=str(tmp_path / "store"), scratch_dir=str(tmp_path))


def test_a_member_looks_after_the_lease_whatever_is_wrong_with_its_record(
    waiting: RunEnv, capfd: pytest.CaptureFixture[str]
) -> None:
    env = replace(waiting, attempt="3")
    attempt_dir(env).mkdir(parents=True)
    status = attempt_dir(env) / "status.json"
    member = Companion(env, open_store(env.store), Lease(attempt=3, owner="b"))
    status.write_text('{"phase": "trai')  # half of it, on a full disk
    assert member.record.has_news()
    member.beat()
    record = json.loads(member.store.get(run_key("r", "nodes/a.json")))
    assert (record["role"], record["phase"]) == ("member", None)
    status.write_text(json.dumps({"phase": "training", "step": 7}))
    member.record.machine = {"of": object()}  # no JSON
    member.beat()
    assert "no record of this machine could be stored: Object of type object" in capfd.readouterr().err
    member.record.machine = {}
    member.beat()
    assert json.loads(member.store.get(run_key("r", "nodes/a.json")))["step"] == 7


def test_while_a_store_fails_nobody_takes_the_run_from_a_head_that_could_not_renew_its_lease(
    waiting: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEETING, "127.0.0.2:29500")
    store = open_store(waiting.store)
    read = store.get_with_etag
    with socket.create_server(("127.0.0.1", 0)) as head:
        lease = Lease(attempt=4, owner="b", renewed=1, rendezvous=f"127.0.0.1:{head.getsockname()[1]}")
        store.put(checkpoint_key("r", "HEAD.json"), lease.to_json())
        scout = Scout(replace(waiting, lease_seconds="1"), store)
        scout.modesty = 0.0
        scout.view.look()
        until = time.monotonic() + 2

        def fails(key: str) -> tuple[bytes, str]:
            if time.monotonic() < until:
                raise StoreError("503 SlowDown") from TimeoutError()
            return read(key)

        monkeypatch.setattr(store, "get_with_etag", fails)
        assert scout.head() == lease
    assert time.monotonic() > until


def test_a_store_that_fails_for_as_long_as_a_head_may_be_missed_ends_the_wait(
    waiting: RunEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "HEADLESS_SECONDS", 1.0)
    store = open_store(waiting.store)

    def fails(key: str) -> tuple[bytes, str]:
        raise StoreError("503 SlowDown") from TimeoutError()

    scout = Scout(waiting, store)
    monkeypatch.setattr(store, "get_with_etag", fails)
    began = time.monotonic()
    with pytest.raises(StoreError, match="503"):
        scout.head()
    assert time.monotonic() - began >= 1
