"""Machines that wait for one another: what a damaged status file does to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.contract import Lease, RunEnv, run_key
from trainer.process.channel import attempt_dir
from trainer.store import open_store
from trainer.upload.machines import Companion

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
