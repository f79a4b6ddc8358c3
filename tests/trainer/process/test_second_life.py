"""An attempt has one life: workers that are killed and started again end it. While its head saves, nobody joins it."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import ROOT
from tests.runs import QUICK
from tests.trainer.process.test_nodes import ENV
from trainer.contract import CRASH, Exit, Lease, LostRunError, RunEnv, checkpoint_key, run_key
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir, leave_exit, read_json, write_json
from trainer.process.children import TrainerProcess
from trainer.process.nodes import CURRENT, MEETING, OVER
from trainer.process.supervise import run_trainer
from trainer.store import open_store
from trainer.upload import machines
from trainer.upload.machines import Companion, Scout

# A trainer that says that it trains, and tells of itself once it has met the others. Then it is killed, as by torchrun.
LIFE = """
import os, signal, sys
from pathlib import Path
from trainer.process.channel import register, write_json
folder = Path(sys.argv[1])
register(folder)
print("trains", flush=True)
if sys.argv[2] == "met":
    write_json(folder / "status.json", {"phase": "saving", "step": 7})
os.kill(os.getpid(), int(sys.argv[3]))
"""


class TwoLives(TrainerProcess):
    """What torchrun does with a worker that does not end in time after a newcomer has come."""

    met, has_others, signal = "met", True, signal.SIGKILL

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
        self.local, self.is_alone = local, False
        life = [sys.executable, "-c", LIFE, str(local), self.met, str(int(self.signal))]
        self.lives = [subprocess.run(life, cwd=ROOT, capture_output=True, check=False)]
        self.process = subprocess.Popen(life, cwd=ROOT, stdout=subprocess.PIPE)

    def wait(self, since_signal: Callable[[], float]) -> None:
        said, _ = self.process.communicate(timeout=60)
        self.lives.append(subprocess.CompletedProcess([], self.process.returncode, said))


class TwoLivesAlone(TwoLives):
    has_others = False


class TwoStarts(TwoLives):
    met = "not met"


class TwoEnds(TwoStarts):
    signal = signal.SIGTERM


def two_lives(kind: type[TwoLives], folder: Path) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """What the supervisor makes of it; what each life said, and its exit code."""
    started: list[TwoLives] = []

    def start(arguments: Sequence[str], environ: dict[str, str], local: Path) -> TwoLives:
        started.append(kind(arguments, environ, local))
        return started[0]

    signals: Any = SimpleNamespace(received=[], trainer=None, seconds_since=lambda: -math.inf)
    ended = run_trainer([], {}, folder / "attempt", signals, start)
    return ended, [(life.stdout.decode(), life.returncode) for life in started[0].lives]


def test_a_killed_worker_that_is_started_again_does_not_train_and_its_attempt_is_over(tmp_path: Path) -> None:
    ended, lives = two_lives(TwoLives, tmp_path)
    assert lives == [("trains\n", -signal.SIGKILL), ("", 0)]
    assert (ended["code"], ended["run_failed"]) == (Exit.INTERRUPTED, False), "the machines meet again"
    assert ended["message"] == "its processes were killed before they had saved and ended"
    assert two_lives(TwoLives, tmp_path)[1] == lives, "another attempt begins with an empty folder"


def test_without_other_machines_a_worker_that_was_killed_is_a_crash(tmp_path: Path) -> None:
    """A user's own PET_MAX_RESTARTS has torchrun start it again."""
    ended, lives = two_lives(TwoLivesAlone, tmp_path)
    assert lives[1] == ("", 0)
    assert ended["code"] == CRASH


def test_a_worker_that_was_killed_before_it_met_the_others_may_be_started_again(tmp_path: Path) -> None:
    ended, lives = two_lives(TwoStarts, tmp_path)
    assert lives == [("trains\n", -signal.SIGKILL)] * 2
    assert ended["code"] == CRASH


def test_a_worker_that_torchrun_ends_before_it_has_met_the_others_is_no_crash_of_this_machine(tmp_path: Path) -> None:
    """Two of them would make this machine leave: so it was where the leading machine was lost while all met."""
    ended, lives = two_lives(TwoEnds, tmp_path)
    assert lives == [("trains\n", 0)] * 2
    assert (ended["code"], ended.get("lost_partner")) == (CRASH, True)


def test_a_reason_that_the_life_before_left_stays(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    write_json(tmp_path / "status.json", {"phase": "saving"})
    leave_exit(tmp_path, Exit.USER, "labels out of range")
    life = [sys.executable, "-c", LIFE, str(tmp_path), "met", "9"]
    ended = subprocess.run(life, cwd=ROOT, capture_output=True, text=True, check=True)
    reason = read_json(tmp_path / "exit.json")
    assert reason is not None
    assert (ended.stdout, reason["message"]) == ("", "labels out of range")


def test_the_trainer_itself_leaves_such_an_attempt_before_it_does_anything(tmp_path: Path) -> None:
    env = replace(ENV, store=str(tmp_path / "store"), scratch_dir=str(tmp_path), attempt="3")
    (attempt_dir(env) / "pids").mkdir(parents=True)
    write_json(attempt_dir(env) / "status.json", {"phase": "saving", "step": 7})
    command = [sys.executable, "-m", "trainer.train", *QUICK]
    environ = os.environ | env.to_environ() | {SOCKET_VARIABLE: str(tmp_path / "nobody")}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not (tmp_path / "store").exists()
    assert (read_json(attempt_dir(env) / "status.json") or {}).get("step") == 7


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[RunEnv, Lease]]:
    """A run whose head holds the lease of attempt 4, and whose meeting place answers."""
    for name, seconds in (("HEADLESS_SECONDS", 0.3), ("OVER_SECONDS", 0.1), ("SCOUT_SECONDS", 0.01)):
        monkeypatch.setattr(machines, name, seconds)
    monkeypatch.setenv(MEETING, "")
    (tmp_path / "store").mkdir()
    env = replace(ENV, store=str(tmp_path / "store"), scratch_dir=str(tmp_path), lease_seconds="60", attempt="4")
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        place = f"127.0.0.1:{head.getsockname()[1]}"
        lease = Lease(attempt=4, owner="b", since=7.0, renewed=1, rendezvous=place)
        open_store(env.store).put(checkpoint_key("r", "HEAD.json"), lease.to_json())
        yield env, lease


def tell(env: RunEnv, attempt: int, phase: str) -> None:
    body = json.dumps({"attempt": attempt, "phase": phase}).encode()
    open_store(env.store).put(run_key("r", "heartbeat.json"), body)


@pytest.mark.parametrize("last", ["4", "0"])  # whether it took part in the attempt, or comes anew
def test_nobody_joins_while_the_head_saves_for_the_last_time_however_long(
    last: str, led: tuple[RunEnv, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    env, lease = led
    store, saves = open_store(env.store), 3 * machines.HEADLESS_SECONDS
    monkeypatch.setenv("TRAINER_LAST_ATTEMPT", last)
    tell(env, 4, "saving")
    following = replace(lease, attempt=5)

    def follow() -> None:
        store.put(checkpoint_key("r", "HEAD.json"), following.to_json())

    threading.Timer(saves, follow).start()
    began = time.monotonic()
    assert Scout(env, store).head() == following
    assert time.monotonic() >= began + saves


@pytest.mark.parametrize(("attempt", "phase"), [(4, "training"), (3, "saving")])
def test_a_head_that_trains_is_joined_and_an_older_attempts_heartbeat_does_not_count(
    attempt: int, phase: str, led: tuple[RunEnv, Lease]
) -> None:
    env, lease = led
    tell(env, attempt, phase)
    assert Scout(env, open_store(env.store)).head() == lease


def test_a_head_that_does_not_answer_is_waited_for_only_as_long_as_it_saves(led: tuple[RunEnv, Lease]) -> None:
    env, lease = led
    store = open_store(env.store)
    store.put(checkpoint_key("r", "HEAD.json"), replace(lease, rendezvous="127.0.0.9:1").to_json())
    tell(env, 4, "saving")
    threading.Timer(0.5, tell, [env, 4, "training"]).start()
    began = time.monotonic()
    with pytest.raises(LostRunError, match="has not answered"):
        Scout(env, store).head()
    assert time.monotonic() >= began + 0.4 + machines.HEADLESS_SECONDS  # it looks now and then, last before the end


def test_a_machine_that_has_got_its_data_does_not_join_while_the_head_saves(led: tuple[RunEnv, Lease]) -> None:
    env, lease = led
    member = Companion(env, open_store(env.store), lease)
    for phase, standing in (("training", CURRENT), ("saving", OVER)):
        tell(env, 4, phase)
        member.look()
        assert member.standing() == standing, phase
