"""launch: guards first, money last; what a run is told, what is refused, how an interrupted launch is repaired."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import botocore.exceptions
import pytest

from infra.config import Tag
from infra.operate.commands.launch import launch
from infra.operate.planning.options import Request
from infra.operate.planning.start import Place, check_policy, find_active, start_run, stop_schedules
from infra.operate.session import Aws as Operator
from infra.run import fleet
from tests.emulator.aws import Aws
from tests.infra import hub
from tests.infra.deployed import Deployed
from tests.infra.operate.launches import (
    GROUP,
    INSTALLATION,
    ON_DEMAND,
    begin,
    group,
    machines,
    plan,
    read_spec,
    schedule,
    stop,
    where,
)
from tests.infra.operator import infra, session
from trainer.contract import UserError

pytestmark = pytest.mark.usefixtures("served")
MONEY = "autoscaling.SetDesiredCapacity"


def test_a_launch_says_the_price_before_and_what_comes_next_after(place: Deployed) -> None:
    ended = infra("launch", "--recipe", "finetune", "--run", "my-run", "--hours", "20", "--budget", "9")
    assert ended.code == 0, ended.said + ended.error
    for expected in (
        "g5.xlarge     0.400       811", "budget    $9.00", "in 20 h 00 min", "launched: my-run",
        "make status RUN=my-run", "make logs RUN=my-run", "make stop", "AWS Pricing API for us-east-1",
    ):  # fmt: skip
        assert expected in ended.said
    state = group(place)
    assert (state.desired, state.run_id, state.market) == (1, "my-run", "spot")
    assert state.deadline == pytest.approx(time.time() + 20 * 3600, abs=120)
    (machine,) = machines(place)
    assert (machine.run_id, machine.type) == ("my-run", "g5.xlarge")


def test_the_run_finds_everything_that_it_needs_in_its_spec(place: Deployed) -> None:
    asked = Request(recipe="digits", arguments=("--epochs", "2"), hours=2.0, budget_usd=3.0, on_demand_after_minutes=15)
    spec = begin(place, asked)
    written = read_spec(place, spec.run_id)
    assert written == spec
    assert written.arguments == ("digits", "--epochs", "2")
    assert (written.budget_usd, written.hours, written.on_demand_after_minutes) == (3.0, 2.0, 15.0)
    assert written.deadline == written.created + 7200
    assert written.prices["g6.4xlarge"] == 1.3
    assert "Pricing API" in written.prices_source


def test_nobody_can_ask_the_group_for_more_machines_than_the_run(place: Deployed) -> None:
    assert group(place).maximum == 3
    begin(place)
    autoscaling = place.aws.client("autoscaling")
    with pytest.raises(autoscaling.exceptions.ClientError, match="max size:1"):  # the one way that a machine's role has
        autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=2)
    assert len(machines(place)) == 1


def test_the_guards_stand_before_the_money_flows(place: Deployed) -> None:
    place.aws.clear_calls()
    spec = begin(place)
    calls = place.aws.calls()
    put = calls.index("s3.PutObject")
    tag, stop = calls.index("autoscaling.CreateOrUpdateTags"), calls.index("scheduler.CreateSchedule")
    assert put < tag < stop < calls.index(MONEY) == len(calls) - 1
    assert calls.count("autoscaling.UpdateAutoScalingGroup") == 1  # none that writes back what another has read
    found = schedule(place, spec.run_id)
    at = time.strptime(found["ScheduleExpression"], "at(%Y-%m-%dT%H:%M:%S)")
    assert abs(time.mktime(at) - time.timezone - spec.deadline) < 2
    assert found["ActionAfterCompletion"] == "DELETE"
    # The one call that AWS checks nothing of but this permission: an update may need the launch template's, too.
    assert found["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:autoscaling:setDesiredCapacity"
    assert json.loads(found["Target"]["Input"]) == {"AutoScalingGroupName": GROUP, "DesiredCapacity": 0}
    tags = {tag["Key"]: tag for tag in place.aws.client("autoscaling").describe_tags()["Tags"]}
    assert tags[Tag.RUN]["PropagateAtLaunch"]
    assert tags[Tag.DEADLINE]["Value"] == str(int(spec.deadline))


STEPS = ("s3.PutObject", "autoscaling.UpdateAutoScalingGroup", "autoscaling.CreateOrUpdateTags",
         "scheduler.ListSchedules", "scheduler.CreateSchedule", MONEY)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_launch_that_breaks_off_anywhere_bills_nothing_and_the_same_launch_repairs_it(
    place: Deployed, step: str
) -> None:
    asked = Request(recipe="digits", run_id="broken")
    place.aws.fault(step, code="AccessDenied")
    with pytest.raises(botocore.exceptions.ClientError):
        begin(place, asked)
    assert group(place).desired == 0
    assert machines(place) == []
    place.aws.heal()
    begin(place, asked)
    assert (group(place).desired, group(place).run_id) == (1, "broken")
    assert stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group) == ["broken"]


def test_types_are_offered_by_dollars_per_image(place: Deployed) -> None:
    begin(place, Request(recipe="finetune"))
    assert group(place).types[:3] == ("g5.xlarge", "g5.2xlarge", "g6e.xlarge")
    assert "g6.4xlarge" not in group(place).types


def test_only_the_types_that_were_asked_for_are_offered(place: Deployed) -> None:
    begin(place, Request(recipe="digits", types=("g6.4xlarge",), market="on-demand"))
    assert group(place, ON_DEMAND).types == ("g6.4xlarge",)
    assert (group(place, ON_DEMAND).desired, group(place).desired) == (1, 0)
    (machine,) = machines(place)
    assert (machine.type, machine.market) == ("g6.4xlarge", "on-demand")


def test_a_run_that_may_change_to_on_demand_is_made_ready_in_both_groups(place: Deployed) -> None:
    """So the guard has only to set sizes."""
    longest = "r" * 63
    spec = begin(place, Request(recipe="digits", run_id=longest, on_demand_after_minutes=20))
    spot, other = group(place), group(place, ON_DEMAND)
    assert (spot.desired, other.desired) == (1, 0)
    assert (spot.market, other.market) == ("spot", "on-demand")
    assert (other.run_id, other.deadline) == (spot.run_id, spot.deadline) == (longest, int(spec.deadline))
    assert other.types == spot.types
    targets = {
        json.loads(schedule(place, name)["Target"]["Input"])["AutoScalingGroupName"]: schedule(place, name)
        for name in stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group)
    }
    assert targets.keys() == {GROUP, ON_DEMAND}
    assert len({one["ScheduleExpression"] for one in targets.values()}) == 1


def test_a_run_on_spot_alone_only_takes_the_tags_of_earlier_runs_from_the_other_group(place: Deployed) -> None:
    """Else the guard would find two deadlines of one run, and could not tell the newer."""
    begin(place, Request(recipe="digits", run_id="mine", on_demand_after_minutes=20, hours=9))
    stop(place)
    before = group(place, ON_DEMAND)
    spec = begin(place, Request(recipe="digits", run_id="mine", hours=3))
    assert group(place, ON_DEMAND) == replace(before, run_id="mine", deadline=int(spec.deadline))
    assert group(place).deadline == int(spec.deadline)
    stop(place)
    begin(place, Request(recipe="digits", run_id="other"))
    assert (group(place, ON_DEMAND).run_id, group(place, ON_DEMAND).desired) == ("other", 0)
    assert stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group) == ["other"]


def test_a_run_goes_on_in_the_other_market(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    begin(place, Request(recipe="digits", run_id="mine", market="on-demand"))
    assert (group(place).desired, group(place, ON_DEMAND).desired) == (0, 1)
    names = stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group)
    (target,) = (json.loads(schedule(place, name)["Target"]["Input"])["AutoScalingGroupName"] for name in names)
    assert target == ON_DEMAND


def test_an_active_run_in_the_on_demand_group_keeps_others_out(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="first", market="on-demand"))
    with pytest.raises(UserError, match=r"the run first is active: resnet-spot-on-demand.*make stop"):
        begin(place, Request(recipe="digits", run_id="second"))
    ended = infra("launch", "--recipe", "digits", "--run", "first")
    assert "first is running already" in ended.said


@pytest.mark.parametrize("kind", ["train", "prepare"])
def test_an_installation_of_an_older_version_must_be_deployed_first(place: Deployed, kind: str) -> None:
    """Its schedules have a role that may not do what a stop schedule is asked for now."""
    autoscaling = place.aws.client("autoscaling")
    autoscaling.delete_auto_scaling_group(AutoScalingGroupName=ON_DEMAND)
    asked = Request(recipe="digits") if kind == "train" else Request(kind="prepare", data=hub.IMAGENET)
    with pytest.raises(UserError, match=rf"{ON_DEMAND} does not exist, since an older version .*make deploy"):
        begin(place, asked)
    assert stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group) == []
    assert machines(place) == []


def test_the_stop_schedule_is_of_the_partition_that_the_installation_is_in(place: Deployed) -> None:
    china = Place(
        installation=INSTALLATION, bucket=place.bucket, scheduler_role="arn:aws-cn:iam::123456789012:role/stop"
    )
    start_run(Operator(session()).client, china, plan(Request(recipe="digits", run_id="mine")).spec, ["g5.xlarge"])
    target = schedule(place, "mine")["Target"]["Arn"]
    assert target == "arn:aws-cn:scheduler:::aws-sdk:autoscaling:setDesiredCapacity"


def test_more_files_than_the_credentials_of_a_run_can_name_are_refused_before_anything_starts(place: Deployed) -> None:
    files = [f"s3://{place.bucket}/checkpoints/{'r' * 60}/data/step-{step:08}.1.safetensors" for step in range(20)]
    asked = Request(
        recipe="digits", run_id="mine", arguments=("--model.weights", files[0], f"--model.weights={files[1]}")
    )
    check_policy(where(place), plan(asked).spec)
    many = replace(asked, arguments=tuple(f"--model.weights={file}" for file in files))
    with pytest.raises(UserError, match=r"names 20 files .* has \d{4} letters, and AWS takes 2048"):
        launch(Operator(session()), INSTALLATION, many, is_checked=True)
    assert (group(place).desired, place.keys()) == (0, set())


def test_ctrl_c_while_it_is_launched_names_the_run_and_bills_nothing(
    place: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet, "scale", interrupt)
    assert launch(Operator(session()), INSTALLATION, Request(recipe="digits", run_id="mine"), is_checked=True) == 130
    printed = capsys.readouterr()
    assert "starting mine" in printed.out
    assert "interrupted: make launch RUN=mine starts it all the same, make stop" in printed.err
    assert group(place).desired == 0


def test_another_run_at_the_same_time_is_refused(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="first"))
    with pytest.raises(UserError, match=r"the run first is active.*make stop"):
        begin(place, Request(recipe="digits", run_id="second"))
    assert group(place).run_id == "first"


def test_a_machine_that_is_still_there_keeps_the_next_run_out(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="first"))
    autoscaling = place.aws.client("autoscaling")
    (instance,) = group(place).instance_ids
    autoscaling.detach_instances(
        AutoScalingGroupName=GROUP, InstanceIds=[instance], ShouldDecrementDesiredCapacity=True
    )
    with pytest.raises(UserError, match=f"still has machines .{instance}"):
        begin(place, Request(recipe="digits", run_id="second"))


def test_preparing_data_and_training_do_not_keep_each_other_out(place: Deployed) -> None:
    begin(place, Request(kind="prepare", data=hub.IMAGENET, run_id="prepare-x"))
    assert find_active(Operator(session()).client, INSTALLATION, [INSTALLATION.prepare_group])
    begin(place, Request(recipe="digits", run_id="training"))
    assert set(stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group)) == {"prepare-x", "training"}


def test_the_schedule_of_an_earlier_run_does_not_stop_this_one(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="earlier"))
    stop(place)
    begin(place, Request(recipe="digits", run_id="later"))
    assert stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group) == ["later"]


@pytest.mark.parametrize("command", ["launch", "stop", "secret", "prepare"])
def test_without_credentials_every_command_says_how_to_get_some(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    ended = infra(command, stdin=hub.TOKEN)
    assert ended.code == 4
    assert "there are no AWS credentials: export AWS_PROFILE=" in ended.error
    assert len(ended.error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("launch",), "the stack resnet-spot-storage is not deployed in us-east-1: `make deploy`"),
        (("launch", "--recipe", "resnet51"), "recipe 'resnet51' is unknown: choose one of digits, finetune"),
        (("launch", "--types", "c7a.2xlarge"), "instance type 'c7a.2xlarge' has no GPU: use types of g5, g6 or g6e"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_fix(aws: Aws, arguments: tuple[str, ...], message: str) -> None:
    ended = infra(*arguments)
    assert ended.code == 2
    assert message in ended.error
    assert len(ended.error.splitlines()) == 1
