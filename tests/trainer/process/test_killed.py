"""How a trainer ended that left no word: by its last phase, and by whether a signal had come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.contract import CRASH, Exit, RunEnv
from trainer.process import children, supervise
from trainer.process.channel import read_json, write_json
from trainer.process.children import KILL_SECONDS, MemberProcess, TrainerProcess
from trainer.process.counts import PROCESSES
from trainer.process.nodes import CURRENT, LEFT, Meetings, torchrun_environ


@pytest.mark.parametrize(
    ("phase", "code"), [("starting", Exit.INTERRUPTED), ("staging", Exit.INTERRUPTED), ("training", CRASH)]
)
def test_a_trainer_that_is_killed_while_it_waits_for_others_was_interrupted(
    tmp_path: Path, phase: str, code: int
) -> None:
    """A signal reaches no process that waits in a collective, and after a while it is killed. Nothing is lost then."""
    signals: Any = SimpleNamespace(received=[], trainer=None, seconds_since=lambda: 0.0)

    class Waiting(TrainerProcess):
        def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
            write_json(local / "status.json", {"phase": phase, "step": 0})
            self.process = subprocess.Popen(["sleep", "60"], start_new_session=True)

        def wait(self, since_signal: Callable[[], float]) -> None:
            signals.received.append(signal.SIGTERM)
            self.process.kill()
            self.process.wait()

    assert supervise.run_trainer([], {}, tmp_path / "attempt", signals, Waiting)["code"] == code


def test_a_machine_that_joins_waits_no_longer_for_one_that_has_died(tmp_path: Path) -> None:
    """It is reached, as by a kernel that has not noticed, and never answers. The lease tells that nobody leads."""
    (tmp_path / "pids").mkdir()
    stands: Any = SimpleNamespace(look=iter([CURRENT, CURRENT, LEFT]).__next__)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        run = RunEnv(store="", run_id="run", scratch_dir="", nodes="2", address="127.0.0.1", attempt="1")
        told = torchrun_environ(run, place, 1.0, is_head=False, given={}) | {PROCESSES: "1"}
        trainer = MemberProcess(["digits"], os.environ | told, tmp_path, uploader=stands)
        began = time.monotonic()
        trainer.wait(lambda: time.monotonic() - began)
    assert trainer.process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < KILL_SECONDS / 2


def test_a_machine_that_the_run_has_no_place_for_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "SURPLUS_SECONDS", 2.0)
    (tmp_path / "pids").mkdir()
    stands: Any = SimpleNamespace(look=lambda: CURRENT)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = RunEnv(store="", run_id="run", scratch_dir="", nodes="2", address="127.0.0.1", attempt="1")
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        told = torchrun_environ(run, place, 1.0, is_head=False, given={}) | {PROCESSES: "1"}
        MemberProcess(["digits"], os.environ | told, tmp_path, uploader=stands).wait(lambda: -1.0)
    ended = read_json(tmp_path / "exit.json")
    assert ended is not None
    assert ended["code"] == Exit.HELD
    assert ended["message"].startswith("the run has its NODES=2 machines, and none has left within 2 s")
    meetings = Meetings()
    meetings.begin(1, "", leads=False)
    assert meetings.end(Exit.HELD, ended["message"], "", is_own=False) == Exit.HELD, "it does not come again"
