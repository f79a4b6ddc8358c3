"""The start of an uploader: its exit code by the kind of fault, and folders that hold more than what is ours."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from tests.checkpoints import RUN, owner
from tests.emulator.s3 import FaultyProxy, refuse
from trainer.contract import CRASH, Exit, LostRunError, RunEnv
from trainer.store import open_store
from trainer.upload import uploader
from trainer.upload.owner import claim_attempt


@pytest.mark.parametrize(
    ("status", "code", "ends"), [(503, "SlowDown", CRASH), (403, "AccessDenied", Exit.USER)], ids=["outage", "mistake"]
)
def test_an_outage_at_a_start_is_no_mistake_of_the_user(
    status: int, code: str, ends: int, s3_uri: str, s3_proxy: FaultyProxy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    env = RunEnv(store=s3_uri, run_id=RUN, scratch_dir=str(tmp_path))
    for name, value in env.to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "nice", lambda more: 0)
    monkeypatch.setattr(uploader, "PROBE_SECONDS", 0.0)
    s3_proxy.plan("PUT", *[refuse(status, code)] * 3)
    assert uploader.main() == ends
    assert code in capfd.readouterr().err


def test_files_of_others_among_the_attempts_are_no_attempts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert claim_attempt(store, RUN) == 1
    for name in (".DS_Store", "._1.json", "@eaDir/1.json", "7.json.tmp", "notes.json"):
        store.put(f"runs/{RUN}/attempts/{name}", b"")
    assert claim_attempt(store, RUN) == 2


def test_a_scratch_folder_without_locks_costs_only_the_fast_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    store, flock = open_store(str(tmp_path / "store")), fcntl.flock
    ours = owner(store, 1, tmp_path, lease_seconds=0.2)

    def locks(file: object, operation: int) -> None:
        if file == ours.machine.fd:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", locks)
    ours.claim(print, lambda before: None)
    assert ours.is_mine
    ours.release()


def test_of_several_machines_one_that_was_slower_gives_up_at_once_and_can_join(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    owner(store, 1, tmp_path).claim(print, lambda before: None)
    (tmp_path / "elsewhere").mkdir()
    slower = owner(store, 2, tmp_path / "elsewhere", lease_seconds=3)
    slower.rendezvous = "127.0.0.9:1"
    started = time.monotonic()
    with pytest.raises(LostRunError, match=r"held by attempt 1 on .*, which was quicker: this machine joins it"):
        slower.claim(print, lambda before: None)
    assert time.monotonic() - started < 2, "3 s is the lease"
