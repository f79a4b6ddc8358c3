"""`status`: every figure against what the trainer, the guard and AWS left."""

from __future__ import annotations

import re
import signal
import sys
import time
from dataclasses import replace

import pytest

from infra.operate.session import AwsError
from infra.operate.text import weekday_time
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, RUN, Deployed, client
from tests.infra.operator import Commands, operate
from trainer.contract import Lease, attempt_key, checkpoint_key, manifest_key, run_key

CAPACITY = "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available."


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `status` prints, with single spaces."""
    assert operate("status", *arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_running_training_has_all_its_figures(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch(hours=10)
    deployed.train_to(350)
    deployed.spend(2, 0.4)
    text = shown(capsys)
    for figure in (
        f"run {RUN} (train, recipe rn50)",
        "state training, heard",
        "step 350 of 1,000 (35.0 %)",
        "speed 250 images/s",
        "top-1 62.50 % in validation, best 63.00 % at step 200",
        "ETA 11 min,",  # 650 steps of 256 images
        "checkpoint step 350,",
        "interruptions none; attempt 1 is the newest",
        "cost $0.80 spent, $0.40 an hour, $0.87 projected, of a budget of $10.00",
        "g6.xlarge in us-east-1b, spot, running",
        "the same bits on the same machine type",
        "deadline",
        "make logs",
    ):
        assert figure in text, f"{figure}\n{text}"
    assert re.search(r"in (9 h 59|10 h 00) min", text), text
    assert "bill by the month" not in text


def test_interruptions_come_from_the_ledger_and_name_the_machine_types(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.put(attempt_key(RUN, 1), {"attempt": 1, "exit": 75, "machine": {"type": "g5.xlarge"}})
    deployed.put(attempt_key(RUN, 2), {"attempt": 2, "machine": {"type": "g5.xlarge"}})
    deployed.train_to(150, attempt=10)
    text = shown(capsys)
    assert "interruptions 2 (1 with a last save, 1 without); ran on g5.xlarge, g6.xlarge: not bit for bit" in text
    assert "attempt 10 is the newest" in text
    assert "step 150 of 1,000" in text


def test_a_projection_beyond_the_budget_is_red_on_a_terminal(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.launch()
    deployed.train_to(350)
    deployed.spend(20, 0.8)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    assert "\033[31m$16.15 projected\033[0m" in shown(capsys)


def test_a_silent_machine_is_told_from_one_that_boots(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.launch()
    assert "state a machine boots" in shown(capsys)
    deployed.train_to(150)
    later = time.time() + 400
    monkeypatch.setattr(time, "time", lambda: later)
    text = shown(capsys)
    assert "silent for 6 min (last: training); the guard replaces a hung machine" in text


def test_no_machine_has_its_reason_and_the_fix(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    deployed.launch()
    text = shown(capsys)
    assert "state waiting for a machine" in text
    assert "no machine AWS has no such machine free right now" in text
    assert "on-demand machines" in text


def test_a_group_that_aws_has_suspended_is_told_with_the_command_that_resumes_it(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    autoscaling, group = client(deployed.aws, "autoscaling"), INSTALLATION.train_group
    autoscaling.suspend_processes(AutoScalingGroupName=group)
    deployed.launch()
    text = shown(capsys)
    assert "state waiting for a machine" in text
    assert f"launches of {group} are suspended, as AWS does after 24 hours without any machine" in text
    assert f"aws autoscaling resume-processes --auto-scaling-group-name {group}" in text


def test_after_a_rewind_the_run_is_at_the_older_step_and_was_not_interrupted_by_it(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(350)
    older = {"step": 300, "attempt": 2, "time": time.time(), "counters": {"step": 300, "validated": 300}}
    deployed.put(manifest_key(RUN, 300, 2), older)
    deployed.put(checkpoint_key(RUN, "HEAD.json"), Lease(attempt=2, newest=manifest_key(RUN, 300, 2)).to_json())
    deployed.put(attempt_key(RUN, 2), {"attempt": 2, "exit": 0, "machine": {}})
    assert "step 300 of 1,000" in shown(capsys)
    deployed.put(attempt_key(RUN, 3), {"attempt": 3, "machine": {"type": "g6.xlarge"}})
    assert "interruptions 1 (0 with a last save, 1 without); attempt 3 is the newest" in shown(capsys)


def wait_for_another_second() -> None:
    """S3 tells times in whole seconds."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)


def test_why_an_earlier_launch_got_no_machine_is_not_told_of_this_one(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    deployed.launch()
    assert "no such machine free" in shown(capsys)
    operate("stop")
    capsys.readouterr()
    wait_for_another_second()
    deployed.aws.set(launch_failures={INSTALLATION.train_group: "Max spot instance count exceeded"})
    deployed.launch()
    text = shown(capsys)
    assert "vCPU quota" in text
    assert "no such machine free" not in text


def test_after_a_stop_the_spend_stands_still_and_the_reason_is_the_guards(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.launch()
    deployed.train_to(350)
    deployed.spend(2, 0.4)
    deployed.put(run_key(RUN, "guard.json"), {"reason": "the budget of $0.80 is spent"})
    operate("stop")
    capsys.readouterr()
    later = time.time() + 36000
    monkeypatch.setattr(time, "time", lambda: later)
    text = shown(capsys)
    assert "state stopped: the budget of $0.80 is spent" in text
    assert "cost $0.80 spent, of a budget" in text
    assert "ETA" not in text
    assert f"make launch RUN={RUN}" in text


def test_a_machine_that_is_kept_after_a_failure_is_shown_until_when(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(deployed.launch(hours=1), keep_minutes=90.0)
    deployed.put(run_key(RUN, "spec.json"), spec.to_json())
    deployed.end("failed", "the loss is not finite")
    text = shown(capsys)
    until = weekday_time(spec.deadline)  # which comes first
    assert f"state failed: the loss is not finite; its machine is kept until {until} for make shell, and bills" in text
    assert "make shell" in text.partition("and bills")[2]
    operate("stop")
    assert "is kept" not in shown(capsys)


def test_how_a_run_ended_is_said_and_a_failure_counts_only_for_the_newest_attempt(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(350)
    deployed.end("failed", "the loss is not finite")
    assert "state failed: the loss is not finite" in shown(capsys)
    deployed.put(attempt_key(RUN, 2), {"attempt": 2})
    assert "state training" in shown(capsys)
    deployed.end("done", "1000 steps are done")
    assert "state done: 1000 steps are done" in shown(capsys)


def test_nothing_running_says_what_stays_and_costs(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.put("datasets/imagenet/v1/train-0.arrow", bytes(20_000_000))
    text = shown(capsys)
    assert "there is no run" in text
    assert f"data s3://{deployed.bucket} 20.0 MB in 1 objects $0.00 a month" in text
    assert "secret resnet-spot/hf-token $0.40 a month" in text
    assert "together $0.40 a month, $0.01 a day (list prices of us-east-1 in March 2026)" in text


def test_nothing_deployed_is_no_error(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert "nothing is deployed in us-east-1" in text
    assert "make deploy" in text


def test_run_chooses_a_run_and_without_it_the_newest_counts(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch("first")
    deployed.train_to(150, run_id="first")
    operate("stop")
    wait_for_another_second()
    deployed.launch("second")
    operate("stop")
    capsys.readouterr()
    assert "run second" in shown(capsys)
    assert "run first" in shown(capsys, "--run", "first")


def test_a_preparation_shows_its_phase_and_progress(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = "prepare-imagenet-1k-ab12"
    deployed.launch(run_id, kind="prepare")
    beat = {"phase": "preparing", "step": 0, "progress": 123456, "time": time.time(), "attempt": 1}
    deployed.put(run_key(run_id, "heartbeat.json"), beat)
    text = shown(capsys)
    assert f"run {run_id} (prepare)" in text
    assert "state preparing, heard" in text
    assert "progress 123,456 in this phase" in text


def test_few_and_small_objects_are_read_of_a_long_run(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch()
    deployed.train_to(950)
    deployed.aws.clear_calls()
    shown(capsys)
    assert deployed.aws.calls().count("s3.GetObject") <= 16


def test_watch_shows_it_again_until_ctrl_c_and_goes_on_when_aws_does_not_answer(deployed: Deployed) -> None:
    deployed.launch()
    with Commands(deployed.aws) as commands:
        command = commands.start("status", "--watch")
        command.wait_for(lambda: any("a machine boots" in line for line in command.lines))
        deployed.aws.fault("ec2.DescribeInstances", "InvalidRequest")
        command.wait_for(lambda: any("trying again" in line for line in command.lines))
        deployed.aws.heal()
        shown = len(command.lines)
        command.wait_for(lambda: any("a machine boots" in line for line in command.lines[shown:]))
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 0
        assert command.notes == []


def test_a_refusal_is_one_sentence_with_the_fix(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.fault("ec2.DescribeInstances", "UnauthorizedOperation")
    with pytest.raises(
        AwsError, match=r"the machines of the run: AWS refused \(UnauthorizedOperation\).*administrator"
    ):
        operate("status")
