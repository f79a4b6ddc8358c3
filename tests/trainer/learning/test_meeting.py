"""Processes that meet: who is missing is named, and nobody waits without an end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch._C._distributed_c10d import HashStore

from tests.trainer.lab import CONFIG
from trainer import train as module
from trainer.contract import CRASH, MachineError, RunEnv
from trainer.learning import meeting
from trainer.learning.meeting import Meeting, is_head, meet, meeting_point
from trainer.process.channel import attempt_dir, read_json


@pytest.mark.parametrize(
    ("given", "head"),
    [({}, True), ({"GROUP_RANK": "1"}, False), ({"GROUP_RANK": "1", "TRAINER_IS_HEAD": "1"}, True),
     ({"GROUP_RANK": "0", "TRAINER_IS_HEAD": "0"}, False), ({"LOCAL_RANK": "1", "TRAINER_IS_HEAD": "1"}, False),
     ({"LOCAL_RANK": "1"}, False), ({"GROUP_RANK": "0", "TRAINER_IS_HEAD": ""}, True)],
)  # fmt: skip
def test_the_main_process_is_the_first_of_the_machine_that_owns_the_run_or_of_torchruns_first(
    given: dict[str, str], head: bool
) -> None:
    assert is_head(given) is head


def meet_in_threads(heads: list[bool], *, size: int) -> list[int | str]:
    """What `main_of` tells each of these processes: the number of the main one, or the error."""

    def one(rank: int) -> int | str:
        try:
            return Meeting(store, rank, size, "10.0.0.9:29400", print).main_of(heads[rank])
        except MachineError as error:
            return str(error)

    store = HashStore()
    with ThreadPoolExecutor(len(heads)) as pool:
        return list(pool.map(one, range(len(heads))))


def test_all_processes_learn_which_one_is_the_main_one() -> None:
    assert meet_in_threads([False, False, True, False], size=4) == [2] * 4


@pytest.mark.parametrize(
    ("heads", "said"),
    [([True, False, True], "2 of the 3 processes that met say that their machine owns the run (numbers 0, 2)"),
     ([False, False, False], "0 of the 3 processes that met say that their machine owns the run (numbers -)")],
)  # fmt: skip
def test_two_owners_of_a_run_and_none_are_refused_by_every_process(heads: list[bool], said: str) -> None:
    for answer in meet_in_threads(heads, size=3):
        assert str(answer).startswith(said)


def test_processes_that_do_not_come_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.2)
    monkeypatch.setenv("TRAINER_ADDRESS", "10.0.0.7")
    for answer in meet_in_threads([True, False], size=4):
        said = "2 of 4 processes did not come within 0.2 s (numbers 2, 3); there were 0 and 1 on 10.0.0.7: see why in"
        assert str(answer).startswith(said)
        assert "must let TCP from every other one through, to all ports above 1023" in str(answer)


def test_one_that_comes_when_the_others_have_given_up_does_not_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.2)
    store = HashStore()
    for rank in (0, 1):
        with pytest.raises(MachineError, match=r"1 of 2 processes did not come .* \(numbers 1\); there were 0"):
            Meeting(store, rank, 2, "10.0.0.9:29400", print).main_of(head=rank == 0)
        monkeypatch.setattr(meeting, "MEETING_SECONDS", 100)


def test_a_meeting_point_that_nobody_hears_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(url: str, **options: object) -> Iterator[tuple[HashStore, int, int]]:
        raise torch.distributed.DistNetworkError("The client socket has failed to connect\nmore")
        yield

    monkeypatch.setattr(meeting, "rendezvous", nobody)
    with pytest.raises(MachineError, match=r"10\.0\.0\.9:29400 does not answer \(The client socket has failed to co"):
        meeting_point({"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "29400"})


def test_a_meeting_that_fails_is_a_crash_with_its_reason_so_that_the_machines_meet_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = RunEnv(store=str(tmp_path / "out"), run_id="run", scratch_dir=str(tmp_path / "scratch"))
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in (env.to_environ() | told).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.2)
    monkeypatch.setattr(module, "Interruption", lambda: None)
    attempt_dir(env).mkdir(parents=True)
    assert module.main(CONFIG) == CRASH
    ended = read_json(attempt_dir(env) / "exit.json")
    assert ended is not None
    assert ended["code"] == CRASH
    assert ended["message"].startswith("the meeting point 127.0.0.1:9 does not answer (")


def work(rank: int, port: int, folder: Path, seconds: Mapping[str, float], does: str) -> None:
    """One of three processes, which says what it meets with."""
    torch.set_num_threads(1)
    for name, value in seconds.items():
        setattr(meeting, name, value)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "3",
        "LOCAL_RANK": str(rank), "TRAINER_ADDRESS": f"10.0.0.{rank}",
    }  # fmt: skip
    said = folder / f"said.{rank}.txt"
    if does == "dies":
        meeting.torch.distributed.init_process_group = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]
    try:
        found = meet(os.environ, "gloo", said.write_text)
    except MachineError as error:
        said.write_text(str(error))
        return
    if does == "sleeps":
        time.sleep(1.5 * seconds["CONNECTING_SECONDS"] / 5)
    count = torch.ones(1)
    torch.distributed.all_reduce(count)
    said.write_text(f"rank {found} counts {count.item()}")
    torch.distributed.destroy_process_group()


def meet_in_processes(folder: Path, does: list[str], **seconds: float) -> list[str]:
    """What each of the processes says; those that do nothing are not started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=work, args=(rank, port, folder, seconds, act)) for rank, act in enumerate(does) if act
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        if worker.exitcode is None:
            worker.kill()
    return [path.read_text() for path in sorted(folder.glob("said.*"))]


def test_a_process_that_torchrun_announced_and_that_never_comes_is_named_by_all(tmp_path: Path) -> None:
    """Also by the one that has the store."""
    said = meet_in_processes(tmp_path, ["meets", "meets", ""], MEETING_SECONDS=3)
    assert len(said) == 2
    for answer in said:
        assert answer.startswith("1 of 3 processes did not come within 3 s (numbers 2); there were 0 on 10.0.0.0, 1 on")


def test_a_process_that_is_killed_while_all_connect_is_named_by_all(tmp_path: Path) -> None:
    said = meet_in_processes(tmp_path, ["meets", "meets", "dies"], CONNECTING_SECONDS=5)
    assert len(said) == 2
    for answer in said:
        assert answer.startswith("processes came to the meeting and were lost before all had met: 2 on 10.0.0.2;")


def test_who_has_met_may_wait_in_a_collective_for_longer_than_a_meeting_takes(tmp_path: Path) -> None:
    said = meet_in_processes(tmp_path, ["meets", "meets", "sleeps"], CONNECTING_SECONDS=15)
    assert said == [f"rank {rank} counts 3.0" for rank in range(3)]
