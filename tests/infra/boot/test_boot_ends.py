"""The ends of a machine's life that are not the run's success: by the exit code, at the deadline, at its very boot.

How the machines are made is said in test_boot.py; the two files are apart so that they can run side by side.
"""

from __future__ import annotations

import threading
import time
from email.message import Message

import pytest

from infra.config import Tag
from tests.infra.boot.boot_machines import DEADLINE, RUN, Machine

pytestmark = pytest.mark.engine


def test_a_machine_that_is_not_needed_waits_three_times_for_the_other_and_then_goes_alone(machine: Machine) -> None:
    machine.launched().boot("exit 76")
    machine.wait_until_off()
    assert machine.lives() == 4
    assert "autoscaling.TerminateInstanceInAutoScalingGroup" in machine.aws.calls()
    assert "autoscaling.SetDesiredCapacity" not in machine.aws.calls()
    assert (machine.group_now()["Instances"], machine.desired()) == ([], 0)
    assert machine.failed() is None


def put_counts(machine: Machine, saved: int, attempts: int) -> None:
    """The attempt of the newest checkpoint, and the run's newest attempt."""
    newest = f"checkpoints/{machine.run}/manifest/step-00000{saved:03}.{saved}.json"
    machine.put(f"checkpoints/{machine.run}/HEAD.json", {"newest": newest})
    machine.put(f"runs/{machine.run}/attempts/{attempts}.json", {})


def test_a_machine_that_has_lost_its_gpu_makes_room_for_another_but_not_for_ever(machine: Machine) -> None:
    machine.files["usr/local/bin/nvidia-smi"] = b"#!/bin/sh\nexit 15\n"
    machine.launched()
    put_counts(machine, 2, 21)
    machine.boot("exit 1")
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (1, 1, None)
    assert "the GPU is lost: another machine takes over" in machine.console()

    put_counts(machine, 2, 22)  # so many starts without a checkpoint, and none of the machines has worked
    machine.power_on()
    machine.wait_until_off()
    assert (machine.lives(), machine.desired()) == (4, 0)
    failed = machine.failed()
    assert failed is not None

    put_counts(machine, 23, 23)  # it has worked since, and now Docker itself finds no GPU
    machine.set_desired(1)
    machine.settings["GPU"] = "--gpus all"
    machine.write_files()
    machine.power_on()
    machine.wait_for("the GPU is lost: the guard replaces this machine")
    assert machine.is_on()
    assert (machine.lives(), machine.desired(), machine.failed()) == (4, 1, failed)


def test_what_only_the_user_can_change_is_told_and_ends_a_prepare_without_its_token_until_a_later_attempt(
    machine: Machine,
) -> None:
    message = r"no token: make secret \033[2J\n " + "é" * 2000
    own = {"attempt": 2, "exit": 78, "message": "the trainer's own words"}
    machine.kind, machine.run = "prepare", "prepare-imagenet"
    machine.launched(arguments=("--data", "ILSVRC/imagenet-1k"), data="")
    machine.aws.fault("secretsmanager.GetSecretValue", code="AccessDeniedException", message="not allowed")
    machine.put(f"runs/{machine.run}/attempts/1.json", {})
    machine.boot(f"exit 78 {message}", "hold 78")
    machine.wait_until_off()
    assert machine.argv() == ["/bin/python", "-m", "trainer.prepare", "--data", "ILSVRC/imagenet-1k"]
    assert (machine.scratch / "secrets.1").read_text() == ""
    assert [line for line in machine.log("boot") if "without a Hugging Face token" in line and "not allowed" in line]
    assert (machine.desired(), machine.failed()) == (0, {"attempt": 1, "exit": 78, "message": message[:1000]})

    machine.set_desired(1)  # and the group gets another machine, which finds the failure
    machine.power_on()
    machine.wait_until_off()
    assert (machine.lives(), machine.desired()) == (1, 0)
    assert r"prepare-imagenet has failed: no token: make secret \033[2J\n é" in machine.console()

    machine.set_desired(1)
    machine.put(f"runs/{machine.run}/attempts/2.json", {})  # somebody has started it again since
    machine.power_on()
    machine.wait_for_life(2)
    machine.put(f"runs/{machine.run}/failed.json", own)
    machine.let_go(2)
    machine.wait_until_off()
    assert (machine.lives(), machine.desired(), machine.failed()) == (2, 0, own)


def test_at_the_deadline_the_run_saves_then_the_group_wants_no_machine_then_it_powers_off(machine: Machine) -> None:
    machine.settings["STOP_SECONDS"] = "2"
    machine.launched().boot("serve")
    machine.wait_for_life(1)
    machine.imds.documents[DEADLINE] = str(int(time.time()) + 8)
    machine.sh("systemctl kill --kill-whom=main --signal=KILL resnet-spot-deadline.service")  # it comes back, and reads
    machine.wait_until_off()
    saved = sorted(machine.scratch.glob("saved.*"))
    assert len(saved) == machine.lives()
    assert machine.desired() == 0
    told = [line for line in machine.log("boot") if line.startswith("the deadline")]
    assert told[-2:] == ["the deadline has come: stopping the run", "the deadline: scaling resnet-spot-train to 0"]


def silence_tags(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The metadata service hangs at the first question for a tag, until the event is set, and errs at the others."""
    answer, asked, released = machine.imds.answer, threading.Event(), threading.Event()

    def answer_or_not(method: str, path: str, headers: Message) -> tuple[int, str]:
        if "/tags/" not in path:
            return answer(method, path, headers)
        if not asked.is_set():
            asked.set()
            released.wait()
        return 503, "not now"

    monkeypatch.setattr(machine.imds, "answer", answer_or_not)
    return released


def test_a_machine_without_a_reason_to_live_powers_off_and_leaves_a_group_alone_whose_run_it_cannot_learn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn: its run is done, its spec is none, its deadline is past, it has no run, it cannot learn its run."""
    machine.settings["IDENTIFY_SECONDS"] = "4"
    machine.launched().put(f"runs/{machine.run}/done.json", {})
    machine.boot("serve")
    machine.wait_until_off()
    assert machine.desired() == 0

    def boot_again() -> None:
        machine.set_desired(1)
        machine.power_on()
        machine.wait_until_off()

    machine.imds.documents[RUN] = "rn50-2"
    machine.put("runs/rn50-2/spec.json", {"data": "s3://bucket/no-arguments"})
    boot_again()
    failed = machine.get("runs/rn50-2/failed.json")
    assert failed is not None
    assert (machine.desired(), failed["exit"]) == (0, 78)
    assert "spec.json is not that of a run on AWS" in failed["message"]

    machine.imds.documents[DEADLINE] = str(int(time.time()) + 100)  # too near for anything but to leave
    boot_again()
    assert machine.desired() == 0

    del machine.imds.documents[RUN]
    boot_again()
    assert machine.desired() == 0
    assert f"no run: the machine has no tags {Tag.RUN}" in machine.console()

    released = silence_tags(machine, monkeypatch)
    boot_again()
    released.set()
    assert "does not tell whose this machine is" in machine.console()
    assert (machine.lives(), machine.desired()) == (0, 1)
