"""`stop` and `shell`: the machines, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra.operate.commands import stop
from infra.operate.session import Aws as Operator
from infra.operate.session import AwsError
from infra.run import fleet
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, RUN, Deployed, client, deploy
from tests.infra.operator import operate, session
from trainer.contract import UserError


def schedules(aws: Aws) -> list[str]:
    found = client(aws, "scheduler").list_schedules(GroupName=INSTALLATION.schedule_group)["Schedules"]
    return [schedule["Name"] for schedule in found]


def stray_machine(deployed: Deployed) -> str:
    """One with the installation's tag that no group knows."""
    (machine,) = client(deployed.aws, "ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1, InstanceType="g6.xlarge",
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "resnet-spot", "Value": INSTALLATION.name}]}
        ],
    )["Instances"]  # fmt: skip
    return str(machine["InstanceId"])


def test_stop_ends_every_machine_and_keeps_everything_else(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=2)
    deployed.launch("prepare-imagenet", kind="prepare")
    deployed.train_to(150)
    stray_machine(deployed)
    kept = deployed.keys()
    assert operate("stop") == 0
    assert deployed.machines() == []
    assert deployed.desired() == deployed.desired(INSTALLATION.prepare_group) == 0
    assert schedules(deployed.aws) == []
    assert deployed.keys() == kept
    text = capsys.readouterr().out
    assert "nothing bills by the hour" in text
    assert f"make launch RUN={RUN}" in text
    assert operate("stop") == 0
    assert "no run was active" in capsys.readouterr().out


def test_the_group_is_at_zero_before_a_machine_is_terminated(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.clear_calls()
    stray_machine(deployed)
    operate("stop")
    calls = deployed.aws.calls()
    assert calls.index("autoscaling.SetDesiredCapacity") < calls.index("ec2.TerminateInstances")


def test_a_machine_that_does_not_go_is_named_after_a_while(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    id = stray_machine(deployed)
    client(deployed.aws, "ec2").modify_instance_attribute(InstanceId=id, DisableApiTermination={"Value": True})
    with pytest.raises(AwsError, match=r"terminate the machines: AWS refused"):
        operate("stop")
    client(deployed.aws, "ec2").modify_instance_attribute(InstanceId=id, DisableApiTermination={"Value": False})
    monkeypatch.setattr(stop, "terminate_machines", lambda *_: {id: "running", "i-2": "shutting-down"})
    monkeypatch.setattr(stop, "ASK_SECONDS", 0.01)
    with pytest.raises(AwsError, match=rf"still there after 0 s: {id} \(running\).*run the same command again"):
        stop.wait_until_gone(None, INSTALLATION, 0.02)  # type: ignore[arg-type]


def test_a_machine_that_only_shuts_down_slowly_is_named_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with a GPU may take EC2 more than ten minutes, which nobody pays."""
    monkeypatch.setattr(stop, "terminate_machines", lambda *_: {"i-1": "shutting-down"})
    monkeypatch.setattr(stop, "ASK_SECONDS", 0.01)
    stop.wait_until_gone(None, INSTALLATION, 0.02)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "still there after 0 s: i-1 (shutting-down): EC2 takes its time, and bills none of it" in said
    assert "no machine is left" not in said


def test_a_group_that_is_asked_for_machines_after_the_stop_is_set_to_zero_again(deployed: Deployed) -> None:
    deployed.launch()
    stop.empty_groups(Operator(session()), INSTALLATION)
    fleet.scale(client(deployed.aws, "autoscaling"), INSTALLATION.train_group, 1)
    stop.terminate_machines(Operator(session()), INSTALLATION)
    assert (deployed.desired(), deployed.machines()) == (0, [])


def test_machines_of_the_on_demand_group_are_stopped(deployed: Deployed) -> None:
    autoscaling, group = client(deployed.aws, "autoscaling"), INSTALLATION.on_demand_group
    fleet.assign(autoscaling, [group], RUN, time.time() + 3600)
    fleet.scale(autoscaling, group, 1)
    assert len(deployed.machines()) == 1
    assert operate("stop") == 0
    assert deployed.machines() == []
    assert deployed.desired(group) == 0


def test_a_group_that_aws_refuses_to_stop_does_not_spare_the_others(deployed: Deployed) -> None:
    first, *others = INSTALLATION.groups
    for group in INSTALLATION.groups:
        fleet.scale(client(deployed.aws, "autoscaling"), group, 1)
    deployed.aws.fault("autoscaling.SetDesiredCapacity", code="AccessDenied", status=403, times=1)
    with pytest.raises(AwsError, match=f"set the Auto Scaling group {first} to 0: AWS refused"):
        operate("stop")
    assert deployed.desired(first) == 1
    assert [deployed.desired(group) for group in others] == [0, 0]


@pytest.mark.usefixtures("quick_destroy")
def test_an_older_installation_without_an_on_demand_group_is_shown_stopped_and_destroyed(aws: Aws) -> None:
    older = deploy(aws, without=["OnDemand"])
    older.launch()
    assert operate("status") == 0
    assert operate("stop") == 0
    assert older.machines() == []
    assert operate("destroy") == 0


def test_no_wait_returns_at_once(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.launch()
    monkeypatch.setattr(stop, "wait_until_gone", lambda *_: pytest.fail("it waited"))
    assert operate("stop", "--no-wait") == 0
    assert deployed.desired() == 0


def test_stop_with_nothing_deployed_is_done(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate("stop") == 0
    assert "no run was active" in capsys.readouterr().out


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_shell_names_the_missing_tool_and_where_it_comes_from(deployed: Deployed, tools: Path) -> None:
    with pytest.raises(UserError, match=r"`aws` is not installed.*getting-started-install"):
        operate("shell")
    install(tools, "aws")
    with pytest.raises(UserError, match=r"`session-manager-plugin` is not installed.*install-plugin"):
        operate("shell")


def test_shell_opens_a_session_on_the_machine_that_runs(
    deployed: Deployed, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tools, "aws", "session-manager-plugin")
    with pytest.raises(UserError, match=r"no machine runs: .*make launch"):
        operate("shell")
    deployed.launch(nodes=2)
    first, second = (machine.id for machine in deployed.machines())
    started: list[list[str]] = []

    class Replaced(Exception):  # noqa: N818  # as this process is by execvp
        pass

    def execvp(file: str, arguments: list[str]) -> None:
        started.append(arguments)
        raise Replaced

    monkeypatch.setattr(os, "execvp", execvp)
    for arguments in ((), ("--node", second)):
        with pytest.raises(Replaced):
            operate("shell", *arguments)
    begin = ["aws", "ssm", "start-session", "--target"]
    assert started == [[*begin, id, "--region", "us-east-1"] for id in (first, second)]
    assert f"of 2: {first}, {second}; NODE= chooses" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"NODE='i-x' begins the id of no machine of the run: .*{first}, {second}"):
        operate("shell", "--node", "i-x")
