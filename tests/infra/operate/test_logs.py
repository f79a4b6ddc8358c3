"""`logs`: no line that CloudWatch took is lost or shown twice, whatever comes late, out of order or not at all."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from infra.operate.commands import logs
from infra.operate.commands.logs import Screen, Tail, follow, parse_since
from infra.operate.runs import Ending
from infra.operate.session import AwsError
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, RUN, Deployed
from tests.infra.operate.log_writer import Writer
from tests.infra.operator import operate
from trainer.contract import UserError


@pytest.mark.parametrize("seed", range(3))
def test_every_line_is_shown_once_though_it_comes_late_in_pages_out_of_order_and_calls_fail(
    deployed: Deployed, writer: Writer, quick_logs: None, capsys: pytest.CaptureFixture[str], seed: int
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


def test_throttling_is_waited_out_in_silence(
    writer: Writer, deployed: Deployed, quick_logs: None, capsys: pytest.CaptureFixture[str]
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
