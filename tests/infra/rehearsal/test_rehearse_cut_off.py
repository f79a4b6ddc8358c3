"""`rehearse` leaves nothing that bills, whatever ends it: signals, a lost terminal, a kill, AWS's refusals.

CDK is a stand-in that makes small stacks with the real names, and no machine boots: test_rehearse.py has those.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.config import AMI, Installation
from infra.operate.rehearsal.scope import rehearsal_of
from infra.operate.session import ExitCode
from tests import ROOT
from tests.emulator.aws import ACCOUNT, Aws
from tests.emulator.inventory import inventory
from tests.infra.deployed import REPOSITORY
from tests.infra.operator import GIVEN_IMAGE, prepare_account

REHEARSED = rehearsal_of(Installation())
PATIENCE_SECONDS = 120.0
FIRST = "an earlier rehearsal was cut off: it is cleaned up first"
# In place of CDK: both stacks, with a pause between them while the file `hold` is there.
NODE = """\
#!{python}
import os, sys, time
sys.path.insert(0, {root!r})
from infra.config import Installation
from tests.emulator.aws import Aws
from tests.infra import deployed
deployed.INSTALLATION = Installation(name={name!r})
open({folder!r} + "/cdk-began", "w").close()
while os.path.exists({folder!r} + "/hold"):
    time.sleep(0.05)
deployed.deploy(Aws(os.environ["AWS_ENDPOINT_URL"]))
"""


@dataclass
class Operator:
    """Somebody who rehearses, in a folder of his own."""

    aws: Aws
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "infra", "-c", f"image_uri={GIVEN_IMAGE}", "rehearse", *options]

    def start(self, *options: str, is_piped: bool = False) -> subprocess.Popen[str]:
        with (self.folder / "said").open("a") as said:
            process = subprocess.Popen(
                self.command(*options), cwd=self.folder, env=self.environ(), stdin=subprocess.DEVNULL, text=True,
                start_new_session=True, stdout=subprocess.PIPE if is_piped else said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.started.append(process)
        return process

    def environ(self) -> dict[str, str]:
        here = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JSII_NODE": str(self.folder / "node")}
        return self.aws.environ | here

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def report(self) -> dict[str, Any]:
        text = (self.folder / "rehearsal.json").read_text()
        assert ACCOUNT not in text
        found: dict[str, Any] = json.loads(text)
        return found

    def machines(self) -> list[str]:
        return [name for kind, name in inventory(self.aws) if kind == "machine"]

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            if time.monotonic() > deadline or self.started[-1].poll() is not None:
                pytest.fail(f"it did not come; exit {self.started[-1].poll()}\n{self.said()}")
            time.sleep(0.05)


@pytest.fixture
def operator(aws: Aws, tmp_path: Path) -> Iterator[Operator]:
    prepare_account(aws)
    aws.client("ecr").create_repository(repositoryName=REPOSITORY)
    aws.client("ssm").get_parameter(Name=AMI)  # from then on the emulated inventory has it
    node = tmp_path / "node"
    words = {"python": sys.executable, "root": str(ROOT), "name": REHEARSED.name, "folder": str(tmp_path)}
    node.write_text(NODE.format(**words))
    node.chmod(0o755)
    found = Operator(aws, tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.wait()


def end(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_machine_runs_ends_it_and_leaves_nothing(operator: Operator, number: signal.Signals) -> None:
    before = inventory(operator.aws)
    process = operator.start("--yes")
    operator.wait_for(operator.machines)
    process.send_signal(number)
    assert end(process) == 130
    assert inventory(operator.aws) == before, operator.said()
    report = operator.report()
    assert (report["whole"], report["left"], report["good"]) == (False, [], False)
    assert "nothing is left of the rehearsal, says AWS" in operator.said()


def test_a_terminal_that_was_closed_leaves_nothing(operator: Operator) -> None:
    before = inventory(operator.aws)
    process = operator.start("--yes", is_piped=True)
    operator.wait_for(operator.machines)
    assert process.stdout is not None
    process.stdout.close()  # every print fails from now on
    process.send_signal(signal.SIGHUP)
    end(process)
    assert inventory(operator.aws) == before
    assert operator.report()["left"] == []


def test_ctrl_c_while_stacks_are_made_waits_for_cdk_and_removes_what_it_made(operator: Operator) -> None:
    before = inventory(operator.aws)
    (operator.folder / "hold").touch()
    process = operator.start("--yes")
    operator.wait_for((operator.folder / "cdk-began").exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: CDK gets it, too
    assert end(process) == 130
    assert inventory(operator.aws) == before


def test_one_more_ctrl_c_does_not_end_the_cleaning_and_is_answered(operator: Operator) -> None:
    before = inventory(operator.aws)
    process = operator.start("--yes")
    operator.wait_for(operator.machines)
    process.send_signal(signal.SIGINT)
    operator.wait_for(lambda: "cleaning up …" in operator.said())
    process.send_signal(signal.SIGINT)
    assert end(process) == 130
    assert "cleaning up, so that nothing bills" in operator.said()
    assert inventory(operator.aws) == before


def test_after_a_kill_the_machine_runs_on_and_the_next_rehearsal_removes_everything_first(operator: Operator) -> None:
    before = inventory(operator.aws)
    killed = operator.start("--yes")
    operator.wait_for(operator.machines)
    killed.kill()
    end(killed)
    (first,) = operator.machines()
    schedules = operator.aws.client("scheduler").list_schedules(GroupName=REHEARSED.schedule_group)["Schedules"]
    assert len(schedules) == 1  # the machine ends without us

    refused = operator.start()
    assert end(refused) == ExitCode.USAGE
    assert "An earlier rehearsal left" in operator.said()
    assert operator.machines() == [first]  # a question without an answer changes nothing

    process = operator.start("--yes")
    operator.wait_for(lambda: set(operator.machines()) - {first})
    assert operator.said().count(FIRST) == 1
    process.send_signal(signal.SIGINT)
    assert end(process) == 130
    assert inventory(operator.aws) == before


def test_ctrl_c_while_it_removes_what_an_earlier_one_left_waits_until_that_is_gone(operator: Operator) -> None:
    before = inventory(operator.aws)
    killed = operator.start("--yes")
    operator.wait_for(operator.machines)
    killed.kill()
    end(killed)
    process = operator.start("--yes")
    operator.wait_for(lambda: FIRST in operator.said())
    process.send_signal(signal.SIGINT)
    assert end(process) == 130
    assert inventory(operator.aws) == before
    assert not (operator.folder / "rehearsal.json").exists()  # it had not begun


def test_where_aws_refuses_the_launch_the_rehearsal_fails_and_leaves_nothing(operator: Operator) -> None:
    before = inventory(operator.aws)
    operator.aws.fault("autoscaling.CreateOrUpdateTags")
    process = operator.start("--yes")
    assert end(process) == 1
    assert inventory(operator.aws) == before, operator.said()
    report = operator.report()
    failed = {act["name"]: act["said"] for act in report["steps"] if not act["is_good"]}
    assert list(failed) == ["prepare", "train"]
    assert "AccessDenied" in failed["train"]
    assert (report["whole"], report["good"]) == (True, False)


def test_a_signal_while_it_cleans_up_at_its_end_does_not_end_the_cleaning(operator: Operator) -> None:
    before = inventory(operator.aws)
    operator.aws.fault("autoscaling.CreateOrUpdateTags")
    process = operator.start("--yes")
    operator.wait_for(lambda: "cleaning up …" in operator.said())
    process.send_signal(signal.SIGTERM)
    assert end(process) == 1
    assert inventory(operator.aws) == before


def test_where_aws_refuses_to_clean_up_it_says_so_and_the_next_one_does_it(operator: Operator) -> None:
    before = inventory(operator.aws)
    process = operator.start("--yes")
    operator.wait_for(operator.machines)
    operator.aws.fault("cloudformation.DeleteStack")
    process.send_signal(signal.SIGINT)
    assert end(process) == ExitCode.REFUSED
    assert "NOT CLEANED UP" in operator.said()
    assert operator.machines() == []  # that comes first
    assert operator.report()["left"] is None
    operator.aws.heal()
    again = operator.start("--yes")
    operator.wait_for(operator.machines)
    again.send_signal(signal.SIGINT)
    assert end(again) == 130
    assert inventory(operator.aws) == before


def test_who_may_not_look_for_the_role_of_a_notice_leaves_nothing_that_bills(operator: Operator) -> None:
    before = inventory(operator.aws)
    operator.aws.fault("iam.GetRole")
    operator.aws.fault("autoscaling.CreateOrUpdateTags")
    assert end(operator.start("--yes")) == 1
    assert "what bills is removed all the same" in operator.said()
    assert inventory(operator.aws) == before
    assert operator.report()["left"] == []


def test_it_asks_before_it_spends_and_says_the_most_dollars(operator: Operator) -> None:
    before = inventory(operator.aws)
    assert end(operator.start()) == ExitCode.USAGE
    assert "It costs at most $0." in operator.said()
    assert "there is no terminal: add --yes (make: YES=1)" in operator.said()
    assert inventory(operator.aws) == before
    assert not (operator.folder / "rehearsal.json").exists()
