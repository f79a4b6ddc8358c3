"""`logs` while a run goes on: it follows machines as they change, waits for them, and ends with the run."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from infra.operate.commands import logs
from infra.operate.commands.logs import Screen
from infra.operate.ends import EndTeller
from infra.operate.runs import ExplainedBucket
from tests.emulator.aws import Aws
from tests.infra import awslogs
from tests.infra.deployed import INSTALLATION, RUN, Deployed
from tests.infra.operate.log_writer import Writer
from tests.infra.operator import Command, Commands, operate, operator

CAPACITY = "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available."


@pytest.fixture
def start(aws: Aws) -> Iterator[Callable[..., Command]]:
    """`python -m infra logs` in a process of its own."""
    with Commands(aws) as commands:
        yield partial(commands.start, "logs")


def test_the_command_follows_across_a_replacement_and_says_how_the_run_ended(
    writer: Writer, deployed: Deployed, start: Callable[..., Command]
) -> None:
    deployed.launch()
    following = start()
    writer.write("first machine")
    following.wait_for(lambda: "first machine" in following.lines)
    (machine,) = deployed.machines()
    deployed.aws.client("ec2").terminate_instances(InstanceIds=[machine.id])
    writer.write("second machine", machine="i-2")
    following.wait_for(lambda: "i-2 second machine" in following.lines)
    deployed.end("done", "1000 steps are done")
    writer.write("last words", machine="i-2")
    assert following.end() == 0
    assert "i-2 last words" in following.lines
    assert f"run {RUN} done: 1000 steps are done" in following.lines
    assert "make pull" in following.lines[-2]
    assert any("g6.xlarge in us-east-1b, spot" in note for note in following.notes)


def test_ctrl_c_leaves_the_run_alone_and_ends_well(
    writer: Writer, deployed: Deployed, start: Callable[..., Command]
) -> None:
    deployed.launch()
    writer.write("step 1")
    following = start()
    following.wait_for(lambda: "step 1" in following.lines)
    following.process.send_signal(signal.SIGINT)
    assert following.end() == 0
    assert any("make stop" in line for line in following.lines)
    assert deployed.desired() == 1
    assert "Traceback" not in "".join(following.notes)


def test_a_lost_network_is_one_line_and_no_lost_line(
    writer: Writer, deployed: Deployed, start: Callable[..., Command]
) -> None:
    deployed.launch()
    writer.write("before")
    following = start()
    following.wait_for(lambda: "before" in following.lines)
    deployed.aws.fault("*", "network")
    following.wait_for(lambda: any("trying again" in note for note in following.notes))
    deployed.aws.heal()
    writer.write("meanwhile", age_seconds=5)
    following.wait_for(lambda: "meanwhile" in following.lines)
    following.wait_for(lambda: any("answers again" in note for note in following.notes))
    lost = [note for note in following.notes if "cannot be reached" in note]
    assert len(lost) == 1
    assert re.search(r"-- .*: AWS cannot be reached: .*; check the network .*; trying again", lost[0])
    assert following.lines == ["before", "meanwhile"]


def test_while_there_is_no_machine_the_reason_is_shown_within_30_seconds(
    deployed: Deployed, start: Callable[..., Command]
) -> None:
    deployed.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    deployed.launch()
    following = start()
    following.wait_for(lambda: following.notes)
    began = time.monotonic()
    following.wait_for(lambda: any("no such machine free" in note for note in following.notes))
    assert time.monotonic() - began < 30
    deployed.aws.set(launch_failures={INSTALLATION.train_group: "Max spot instance count exceeded"})
    began = time.monotonic()
    following.wait_for(lambda: any("quota" in note and "make preflight" in note for note in following.notes))
    assert time.monotonic() - began < 30


def test_why_an_earlier_launch_got_no_machine_is_not_told_of_this_one(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    def notes() -> str:
        bucket = ExplainedBucket(deployed.aws.client("s3"), deployed.bucket)
        logs.find_ending(operator(), INSTALLATION, bucket, RUN, Screen(), EndTeller(bucket, RUN))
        return capsys.readouterr().err

    deployed.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    deployed.launch()
    assert "no such machine free" in notes()
    operate("stop")
    second = int(time.time())
    while int(time.time()) == second:  # S3 tells times in whole seconds
        time.sleep(0.02)
    deployed.aws.set(launch_failures={INSTALLATION.train_group: "Max spot instance count exceeded"})
    deployed.launch()
    told = notes()
    assert "vCPU quota" in told
    assert "no such machine free" not in told


def test_a_run_that_was_stopped_ends_the_following(
    writer: Writer, deployed: Deployed, quick_logs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("step 1")
    operate("stop")
    capsys.readouterr()
    assert operate("logs", "--run", RUN) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("step 1\n")
    assert f"run {RUN} stopped: " in shown
    assert f"make launch RUN={RUN}" in shown


def test_a_failed_run_shows_its_lines_and_why_it_failed(
    writer: Writer, deployed: Deployed, quick_logs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("loss is nan")
    deployed.end("failed", "the loss is not finite: lower optim.peak_lr")
    assert operate("logs") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("loss is nan\n")
    assert "failed: the loss is not finite: lower optim.peak_lr" in shown


@pytest.mark.engine
def test_through_the_real_log_driver_no_line_is_lost_or_doubled_though_the_machine_changes(
    deployed: Deployed, start: Callable[..., Command]
) -> None:
    if reason := awslogs.why_no_engine():
        pytest.skip(reason)
    deployed.launch()
    with awslogs.run_engine(deployed.aws.endpoint, deployed.aws.environ) as engine:
        following = start()
        for machine in ("i-1", "i-2"):
            container = engine.print_lines(
                INSTALLATION.log_group, f"{RUN}/{machine}/1", 300, 0.003, awslogs_force_flush_interval_seconds="1"
            )
            assert engine.wait(container) == 0
        deployed.end("done", "all is printed")
        assert following.end() == 0
    lines = [re.sub(r"^i-\d ", "", line) for line in following.lines if "line" in line]
    numbers = [int(line.split()[1]) for line in lines]
    assert sorted(numbers) == sorted([*range(300)] * 2)
    assert numbers[:300] == [*range(300)]
