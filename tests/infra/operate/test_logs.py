"""`logs`: no line that CloudWatch took is lost or shown twice, whatever comes late, out of order or not at all."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from infra.operate.commands import logs
from infra.operate.commands.logs import Screen, Tail, follow, parse_since
from infra.operate.runs import Ending, ExplainedBucket
from infra.operate.session import AwsError
from tests.emulator.aws import Aws
from tests.infra import awslogs
from tests.infra.deployed import INSTALLATION, RUN, Command, Commands, Deployed, deploy, operate, operator
from trainer.contract import UserError

CAPACITY = "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available."


class Writer:
    """What Docker's log driver does: streams of a machine each, and events with the time of the machine's clock."""

    def __init__(self, aws: Aws) -> None:
        self.client = aws.client("logs")
        self.streams: set[str] = set()
        self.written: list[str] = []

    def write(self, *texts: str, machine: str = "i-1", number: str = "1", age_seconds: float = 0) -> None:
        stream = f"{RUN}/{machine}/{number}"
        if stream not in self.streams:
            self.client.create_log_stream(logGroupName=INSTALLATION.log_group, logStreamName=stream)
            self.streams.add(stream)
        at = int((time.time() - age_seconds) * 1000)
        events = [{"timestamp": at, "message": text} for text in texts]
        self.client.put_log_events(logGroupName=INSTALLATION.log_group, logStreamName=stream, logEvents=events)
        self.written += texts


@pytest.fixture
def deployed(aws: Aws) -> Deployed:
    return deploy(aws)


@pytest.fixture
def writer(deployed: Deployed) -> Writer:
    return Writer(deployed.aws)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps in less time."""
    for name, seconds in (("LINES", 0.05), ("ENDING", 0.2), ("QUIET", 0.5), ("SWEEP", 0.5), ("MOST_WAIT", 0.2)):
        monkeypatch.setattr(logs, f"{name}_SECONDS", seconds)


@pytest.fixture
def start(aws: Aws) -> Iterator[Callable[..., Command]]:
    """`python -m infra logs` in a process of its own."""
    with Commands(aws) as commands:
        yield partial(commands.start, "logs")


@pytest.mark.parametrize("seed", range(3))
def test_every_line_is_shown_once_though_it_comes_late_in_pages_out_of_order_and_calls_fail(
    deployed: Deployed, writer: Writer, quick: None, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance, aws = random.Random(seed), deployed.aws
    aws.set(log_delay_seconds=chance.choice([0.0, 0.4]), log_page_events=chance.choice([7, 40]))
    ended = threading.Event()

    def write() -> None:
        for batch in range(40):
            count = chance.randint(1, 5)
            writer.write(
                *(f"line {batch}.{number}" for number in range(count)), machine=f"i-{chance.randint(1, 3)}",
                age_seconds=chance.choice([0, 0, 0, 1, 30, 115, 1800]),
            )  # fmt: skip
            if batch % 15 == 7:
                aws.fault("logs.FilterLogEvents", "network", times=5)
            if batch % 15 == 12:
                aws.fault("logs.FilterLogEvents", "ThrottlingException", times=5)
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    tail = Tail(aws_client(aws), INSTALLATION.log_group, RUN, since=time.time() - 7200)
    follow(tail, Screen(), lambda: Ending("done", "", time.time()) if ended.is_set() else None)
    thread.join()
    shown = [line.partition(" ")[2] if line.startswith("i-") else line for line in capsys.readouterr().out.splitlines()]
    assert sorted(shown) == sorted(writer.written)


def aws_client(aws: Aws) -> Any:
    """As the command has it, but without botocore's own retries, which wait for seconds."""
    import boto3
    from botocore.config import Config

    return boto3.client("logs", config=Config(retries={"mode": "standard", "max_attempts": 0}))


def test_a_line_that_comes_an_hour_late_is_shown_when_the_run_has_ended(
    writer: Writer, deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    tail, screen = Tail(aws_client(deployed.aws), INSTALLATION.log_group, RUN, since=time.time() - 20000), Screen()
    writer.write("now")
    screen.show(tail.poll(logs.OVERLAP_SECONDS))
    writer.write("from long ago", age_seconds=10000)
    assert screen.show(tail.poll(logs.SWEEP_OVERLAP_SECONDS)) == 0
    assert screen.show(tail.poll()) == 1
    assert capsys.readouterr().out.splitlines() == ["now", "from long ago"]


def test_a_machine_whose_clock_is_hours_ahead_hides_no_line_of_another(writer: Writer, deployed: Deployed) -> None:
    tail = Tail(aws_client(deployed.aws), INSTALLATION.log_group, RUN, since=time.time() - 60)
    writer.write("from the future", age_seconds=-7000)
    assert [line.text for line in tail.poll(logs.OVERLAP_SECONDS)] == ["from the future"]
    writer.write("from now", machine="i-2")
    assert [line.text for line in tail.poll(logs.OVERLAP_SECONDS)] == ["from now"]


def test_lines_have_their_machine_in_front_as_soon_as_there_is_a_second_one(
    writer: Writer, deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("step 1", age_seconds=3)
    writer.write("boot", machine="i-1", number="boot", age_seconds=2)
    writer.write("step 2", machine="i-2", age_seconds=1)
    assert operate("logs", "--no-follow") == 0
    assert capsys.readouterr().out.splitlines() == ["step 1", "boot", "i-2 step 2"]


def test_another_runs_lines_are_not_shown(
    writer: Writer, deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("mine")
    writer.client.create_log_stream(logGroupName=INSTALLATION.log_group, logStreamName=f"{RUN}2/i-9/1")
    writer.client.put_log_events(
        logGroupName=INSTALLATION.log_group, logStreamName=f"{RUN}2/i-9/1",
        logEvents=[{"timestamp": int(time.time() * 1000), "message": "of the run whose name begins like mine"}],
    )  # fmt: skip
    assert operate("logs", "--no-follow") == 0
    assert capsys.readouterr().out == "mine\n"


def test_since_leaves_out_what_is_older(writer: Writer, deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch()
    writer.write("old", age_seconds=50)
    writer.write("new")
    assert operate("logs", "--no-follow", "--since", "20s") == 0
    assert capsys.readouterr().out == "new\n"


def test_since_is_a_duration_or_a_time() -> None:
    assert parse_since("90s", 1000) == 910
    assert parse_since("2h", 10000) == 2800
    assert parse_since("1970-01-02T00:00:00+00:00", 0) == 86400
    with pytest.raises(UserError, match=r"SINCE='yesterday' is no time: .*10m"):
        parse_since("yesterday", 0)


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


def test_throttling_is_waited_out_in_silence(
    writer: Writer, deployed: Deployed, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.write("a line")
    deployed.aws.fault("logs.FilterLogEvents", "ThrottlingException", times=4)
    tail = Tail(aws_client(deployed.aws), INSTALLATION.log_group, RUN, since=time.time() - 60)
    follow(tail, Screen(), lambda: Ending("done", "", time.time()))
    assert capsys.readouterr() == ("a line\n", "")


def test_a_refusal_ends_it_with_the_reason(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.fault("logs.FilterLogEvents", "AccessDeniedException")
    with pytest.raises(AwsError, match=r"the log group /resnet-spot/runs: AWS refused .*administrator"):
        operate("logs")


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
        logs.find_ending(operator(), INSTALLATION, bucket, RUN, INSTALLATION.train_group, Screen())
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
    writer: Writer, deployed: Deployed, quick: None, capsys: pytest.CaptureFixture[str]
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
    writer: Writer, deployed: Deployed, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    writer.write("loss is nan")
    deployed.end("failed", "the loss is not finite: lower optim.peak_lr")
    assert operate("logs") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("loss is nan\n")
    assert "failed: the loss is not finite: lower optim.peak_lr" in shown


def test_without_the_log_group_it_says_where_the_rest_is(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.client("logs").delete_log_group(logGroupName=INSTALLATION.log_group)
    with pytest.raises(UserError, match=r"no log group /resnet-spot/runs: .*make pull"):
        operate("logs", "--no-follow")


def test_without_a_run_it_says_how_to_start_one(deployed: Deployed) -> None:
    with pytest.raises(UserError, match=r"no run .* yet: start one with `make launch`"):
        operate("logs")
    with pytest.raises(UserError, match=r"RUN='nope' is no run .*none yet"):
        operate("logs", "--run", "nope")


def test_without_a_deployment_it_says_what_to_do(aws: Aws) -> None:
    with pytest.raises(UserError, match=r"resnet-spot-storage is not deployed in us-east-1.*make deploy"):
        operate("logs")


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
