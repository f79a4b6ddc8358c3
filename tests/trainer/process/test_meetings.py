"""What ends a machine's part in a run of several: its own errors, a full disk among them, and losses without end."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from threading import Timer

import pytest

from trainer.contract import CRASH, Exit, MachineError, RunEnv, UserError
from trainer.process import nodes
from trainer.process.nodes import BROKEN, MEETING, MOST_LOSSES, Meetings, blaming_this_machine
from trainer.store import StoreError, naming_the_fix

ENV = RunEnv(store="out", run_id="r", scratch_dir="s", nodes="2", address="127.0.0.2", node="a")


def saved_by(attempt: int) -> str:
    return f"checkpoints/r/manifest/step-000000100.{attempt}.json"


def test_machines_that_meet_without_a_new_checkpoint_give_up_at_last(capfd: pytest.CaptureFixture[str]) -> None:
    """However the last attempt ended: 75 would make boot begin again, without counting."""
    for last in (Exit.INTERRUPTED, Exit.HELD, CRASH):
        meetings = Meetings()
        for number in range(1, MOST_LOSSES):
            meetings.begin(number, "", leads=False)
            assert meetings.end(CRASH, "lost", "", is_own=False) is None
        meetings.begin(MOST_LOSSES, "", leads=True)
        assert meetings.end(last, "lost", "", is_own=False) == CRASH
        assert "error: 8 attempts in a row have ended without a new checkpoint" in capfd.readouterr().err
    meetings.join_failed()
    told = meetings.environ(ENV, lambda: False)
    assert told["TRAINER_LAST_ATTEMPT"] == "0", "it may be joined again"
    assert told["TRAINER_SEEN_ATTEMPT"] == str(MOST_LOSSES), "but if it fails, the run has"
    meetings.begin(MOST_LOSSES + 1, saved_by(1), leads=True)
    assert meetings.end(Exit.HELD, "another leads", saved_by(1), is_own=False) is None
    assert meetings.end(Exit.USER, "", saved_by(1), is_own=False) == Exit.USER, "no other attempt mends that"
    assert meetings.end(Exit.FINISHED, "", saved_by(1), is_own=False) == Exit.FINISHED


def test_a_machine_that_crashes_twice_leaves_however_much_the_others_save_meanwhile(
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken, healthy = Meetings(), Meetings()
    for number in (1, 2):
        for meetings in (broken, healthy):
            meetings.begin(2 * number, saved_by(2 * number - 1), leads=meetings is healthy)
        assert healthy.end(CRASH, "rank 1 is gone", healthy.newest, is_own=False) is None
        ended = broken.end(CRASH, "no CUDA-capable device", broken.newest, is_own=True)
        assert ended == (None if number == 1 else BROKEN)
        broken.join_failed()
    assert healthy.losses == 1, "it saved alone, in attempt 3"
    assert "it leaves, and the others may go on. The last error: no CUDA-capable device" in capfd.readouterr().err


def test_a_machine_that_has_saved_with_the_others_may_crash_anew(capfd: pytest.CaptureFixture[str]) -> None:
    meetings = Meetings()
    for number in range(1, 5):  # a crash in each of four long attempts
        meetings.begin(number, saved_by(number - 1), leads=False)
        assert meetings.end(CRASH, "out of memory", saved_by(number), is_own=True) is None
    meetings.begin(5, saved_by(4), leads=False)
    assert meetings.end(CRASH, "out of memory", saved_by(4), is_own=True) == CRASH, "boot counts this start from one"


def test_a_full_disk_of_one_machine_of_several_is_no_failure_of_the_run() -> None:
    def fills(code: int, env: RunEnv) -> None:
        with blaming_this_machine(env), naming_the_fix("the scratch folder"):
            raise OSError(code, os.strerror(code)) if code else MemoryError

    for code in (errno.ENOSPC, errno.EROFS, errno.ENOMEM, errno.EDQUOT, 0):
        with pytest.raises(MachineError, match=r"the scratch folder cannot be used: .*; "):
            fills(code, ENV)
        with pytest.raises(UserError):
            fills(code, replace(ENV, nodes="1"))
    with pytest.raises(UserError):
        fills(errno.EACCES, ENV)
    with pytest.raises(UserError, match="the store"), blaming_this_machine(ENV), naming_the_fix("the store"):
        raise StoreError("no space left", "ENOSPC")  # all machines have the same


def test_a_port_that_another_program_has_between_two_attempts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "PORT_SECONDS", 0.6)
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        env = replace(ENV, rendezvous=f"127.0.0.2:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="another program has the port"):
            Meetings().environ(env, lambda: False)
        meetings = Meetings()
        meetings.begin(1, "", leads=True)
        meetings.join_failed()
        with pytest.raises(MachineError, match=r"the port.*; the same command continues the run"):
            meetings.environ(env, lambda: False)
        assert meetings.environ(env, lambda: True)[MEETING] == "", "it is to stop"
        Timer(0.2, taken.close).start()
        assert meetings.environ(env, lambda: False)[MEETING] == env.rendezvous


def test_what_an_attempt_saved_as_it_ended_counts_once_the_next_one_begins() -> None:
    """A member has left before the head commits its last save."""
    meetings = Meetings()
    meetings.begin(5, saved_by(4), leads=False)
    assert meetings.end(CRASH, "no CUDA-capable device", saved_by(4), is_own=True) is None
    meetings.begin(6, saved_by(4), leads=False)
    assert meetings.end(Exit.INTERRUPTED, "one comes", saved_by(4), is_own=False) is None
    meetings.begin(7, saved_by(6), leads=False)
    assert meetings.end(CRASH, "no CUDA-capable device", saved_by(6), is_own=True) is None
