"""What the processes of an attempt wrote about a hang is in the store when the attempt has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.uploads import Start
from trainer.contract import RunEnv
from trainer.process.channel import attempt_dir
from trainer.store import open_store
from trainer.upload.hangs import ship_hangs


def test_the_stacks_of_a_hang_are_stored_at_the_attempts_end_under_the_machines_name(
    start: Start, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_NODE", "i-0abc")
    uploader = start(uri)
    env = RunEnv(store=uri, run_id=RUN, scratch_dir=str(tmp_path / "scratch"), attempt=str(uploader.attempt))
    local = attempt_dir(env)
    local.mkdir(parents=True)
    for name in ("hang.3.txt", "hang.3.pkl", "status.json"):
        (local / name).write_text('{"phase": "training"}')
    assert uploader.finish(seconds=30) == 0
    prefix = f"runs/{RUN}/hangs/{uploader.attempt}/"
    assert {info.key.removeprefix(prefix) for info in open_store(uri).list(prefix)} == {
        "i-0abc-hang.3.txt", "i-0abc-hang.3.pkl",
    }  # fmt: skip


def test_stacks_that_cannot_be_stored_stay_and_the_line_says_where(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    env = RunEnv(store=str(tmp_path / "store"), run_id=RUN, scratch_dir=str(tmp_path), attempt="1")
    attempt_dir(env).mkdir(parents=True)
    assert ship_hangs(env, open_store(env.store)) == ""
    (attempt_dir(env) / "hang.0.txt").mkdir()  # reading it fails
    assert str(attempt_dir(env)) in ship_hangs(env, open_store(env.store))
