"""Real processes of which one is killed, stopped, hangs or fails: the others leave in time, and name it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from tests.trainer.learning.made_lookouts import QUICK, Crew
from trainer.learning.lookout import Lookout
from trainer.learning.verdicts import Pace
from trainer.learning.world import World
from trainer.telemetry.status import Status


def test_when_one_is_killed_the_others_name_it_in_one_line_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Crew(tmp_path, {1: "killed"}) as crew:
        for message in crew.messages(0, 2):
            assert message.startswith("1 the connection to another process was lost ("), message
            assert "rank 1 on node1 has not been heard of" in message
            assert "rank 0" not in message
            assert "rank 2" not in message
            assert re.search(r"its last word was step [1-9]\d?, starting$", message), message
    assert "Traceback" not in capfd.readouterr().err


def test_when_one_is_stopped_the_others_leave_out_of_a_collective_that_never_ends(tmp_path: Path) -> None:
    with Crew(tmp_path, {2: "stopped"}) as crew:
        began = time.monotonic()
        for message in crew.messages(0, 1):
            found = re.match(r"1 rank 2 on node2 has not been heard of for 3 s; its last word was step [1-9]", message)
            assert found, message
        assert time.monotonic() - began > QUICK.lost


def test_a_training_has_a_lookout_from_its_first_step_on(tmp_path: Path) -> None:
    """Without one, the first process would wait a day for the gradients of the other, which is stopped."""
    with Crew(tmp_path, {1: "stopped"}, size=2, steps=0) as crew:
        (message,) = crew.messages(0, seconds=60)
    assert message.startswith("1 rank 1 on node1 has not been heard of for 3 s; its last word was step "), message


def test_when_one_hangs_it_is_named_and_the_stacks_of_all_are_there(tmp_path: Path) -> None:
    with Crew(tmp_path, {1: "sleeps"}, pace=replace(QUICK, lost=30.0, hung=2.0)) as crew:
        for message in crew.messages(0, 1, 2):
            assert message.startswith("1 rank 1 on node1 (step 25, starting) hangs: nothing has moved for 2 s"), message
    for rank in range(3):
        stacks = (tmp_path / f"{rank}/hang.{rank}.txt").read_text()
        assert ("forget_to_go_on" in stacks) == (rank == 1)
        assert ("all_reduce" in stacks) == (rank != 1)
        assert b"all_reduce" in (tmp_path / f"{rank}/hang.{rank}.pkl").read_bytes()


def test_when_the_store_dies_all_leave_and_name_its_address(tmp_path: Path) -> None:
    with Crew(tmp_path, {}) as crew:
        crew.is_at(3)
        crew.keeper.kill()
        port = (tmp_path / "port").read_text()
        for message in crew.messages(0, 1, 2):
            assert message.startswith(f"1 the meeting point 127.0.0.1:{port} has not answered for 3 s"), message


def test_the_error_of_one_counts_on_its_machine_and_is_told_on_the_others(tmp_path: Path) -> None:
    with Crew(tmp_path, {1: "fails"}) as crew:
        other, own, another = crew.messages(0, 1, 2)
        assert own == "1 ValueError: the 7th image has 5 channels"
        for message in (other, another):
            assert "rank 1 on node1 has ended: ValueError: the 7th image has 5 channels" in message, message


def test_a_normal_end_makes_no_noise_although_one_stays_longer_than_silence_may_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Crew(tmp_path, {0: "leaves late"}, pace=replace(QUICK, lost=1.0), steps=8) as crew:
        crew.messages(0, 1, 2)
        assert [worker.exitcode for worker in crew.workers] == [0, 0, 0]
    assert capfd.readouterr().err == ""


def test_a_last_save_goes_on_although_the_store_has_left_with_the_others(tmp_path: Path) -> None:
    with Crew(tmp_path, {0: "saves late"}, pace=replace(QUICK, beat=1.5, lost=2.0), steps=8) as crew:
        crew.messages(1, 2)
        crew.keeper.kill()
        crew.messages(0)
        assert crew.workers[0].exitcode == 0


def test_the_beats_of_four_processes_cost_less_than_half_a_percent_of_steps_of_50_ms(tmp_path: Path) -> None:
    store, status = (
        TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False),
        Status(tmp_path / "s", writes=False),
    )
    crew = [Lookout(store, World(rank, 0, 4, torch.device("cpu")), status, tmp_path, Pace()) for rank in range(4)]
    for each in crew:
        each._beat()
    began, rounds = time.process_time(), 200  # the store's own thread counts, too
    for _ in range(rounds):
        crew[0]._beat()
        for _ in range(4):
            assert crew[0].judge.verdict() is None
    seconds = (time.process_time() - began) / rounds
    assert seconds < 0.005 * Pace().beat
