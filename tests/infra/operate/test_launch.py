"""launch: guards first, money last; what a run is told, what is refused, how an interrupted launch is repaired."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import pytest

from infra.config import Installation, Tag
from infra.operate.commands.launch import launch
from infra.operate.planning.options import Request
from infra.operate.planning.plan import Plan, describe, epochs_in, make_plan, new_run_id
from infra.operate.planning.start import Place, find_active, start_run, stop_schedules
from infra.operate.runs import open_bucket
from infra.operate.session import Aws as Operator
from infra.operate.terminal import plain
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.emulator.aws import Aws
from tests.infra import deployed, hub
from tests.infra.deployed import Deployed
from tests.infra.operator import infra, prepare_account, session
from trainer.contract import RUN_ID_RULE, UserError, run_key

INSTALLATION = Installation()
GROUP = INSTALLATION.train_group
MONEY = "autoscaling.SetDesiredCapacity"


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    with hub.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def place(aws: Aws) -> Deployed:
    prepare_account(aws)
    account = deployed.deploy(aws)
    aws.client("secretsmanager").put_secret_value(SecretId=INSTALLATION.secret_name, SecretString=hub.TOKEN)
    return account


def plan(asked: Request | None = None, **installation: str) -> Plan:
    operator = Operator(session())
    given = Installation(**installation)
    return make_plan(operator, given, open_bucket(operator, given), asked or Request(recipe="digits"), time.time())


def where(account: Deployed) -> Place:
    role = "arn:aws:iam::123456789012:role/stop"
    return Place(installation=INSTALLATION, bucket=account.bucket, scheduler_role=role)


def machines(account: Deployed) -> list[fleet.FleetMachine]:
    return fleet.machines(account.aws.client("ec2"), INSTALLATION.name)


def begin(account: Deployed, asked: Request | None = None) -> Spec:
    """Plan and start, as `launch` does after its checks."""
    planned = plan(asked)
    etag = planned.existing.etag if planned.existing else ""
    types = [one.type for one in planned.offered]
    start_run(Operator(session()).client, where(account), planned.spec, types, replaces=etag)
    return planned.spec


def group(account: Deployed, name: str = GROUP) -> fleet.Group:
    found = fleet.group_state(account.aws.client("autoscaling"), name)
    assert found
    return found


def schedule(account: Deployed, name: str) -> dict[str, Any]:
    found: dict[str, Any] = account.aws.client("scheduler").get_schedule(
        GroupName=INSTALLATION.schedule_group, Name=name
    )  # fmt: skip
    return found


def read_spec(account: Deployed, run_id: str) -> Spec:
    body = account.aws.client("s3").get_object(Bucket=account.bucket, Key=run_key(run_id, "spec.json"))["Body"].read()
    return Spec.from_json(body)


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
    assert found["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:autoscaling:updateAutoScalingGroup"
    assert json.loads(found["Target"]["Input"]) == {"AutoScalingGroupName": GROUP, "MinSize": 0, "DesiredCapacity": 0}
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
    assert group(place).types == ("g6.4xlarge",)
    assert group(place).market == "on-demand"


def test_a_run_goes_on_with_the_types_that_it_was_given_or_with_new_ones(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine", types=("g6.4xlarge",)))
    stop(place)
    assert begin(place, Request(run_id="mine")).types == ("g6.4xlarge",)
    assert group(place).types == ("g6.4xlarge",)
    stop(place)
    begin(place, Request(run_id="mine", types=("g5.xlarge",)))
    assert group(place).types == ("g5.xlarge",)


def test_the_stop_schedule_is_of_the_partition_that_the_installation_is_in(place: Deployed) -> None:
    china = Place(
        installation=INSTALLATION, bucket=place.bucket, scheduler_role="arn:aws-cn:iam::123456789012:role/stop"
    )
    start_run(Operator(session()).client, china, plan(Request(recipe="digits", run_id="mine")).spec, ["g5.xlarge"])
    target = schedule(place, "mine")["Target"]["Arn"]
    assert target == "arn:aws-cn:scheduler:::aws-sdk:autoscaling:updateAutoScalingGroup"


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
    assert find_active(Operator(session()).client, INSTALLATION, INSTALLATION.prepare_group)
    begin(place, Request(recipe="digits", run_id="training"))
    assert set(stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group)) == {"prepare-x", "training"}


def test_a_run_that_runs_is_left_alone_by_a_second_launch(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine"))
    ended = infra("launch", "--run", "mine", "--hours", "9")
    assert ended.code == 0
    assert "mine is running already" in ended.said
    assert "make stop, then make launch RUN=mine" in ended.said
    assert group(place).desired == 1


def stop(account: Deployed) -> None:
    fleet.scale_to_zero(account.aws.client("autoscaling"), GROUP)


def test_a_stopped_run_goes_on_with_what_it_computes_and_new_limits(place: Deployed) -> None:
    limits: dict[str, Any] = {"run_id": "mine", "hours": 1.0, "budget_usd": 2.0}
    first = begin(place, Request(recipe="digits", arguments=("--epochs", "3"), **limits))
    stop(place)
    place.put(run_key("mine", "failed.json"), {"attempt": 1, "message": "the token was missing"})
    again = begin(place, Request(run_id="mine", hours=5.0))
    assert (again.recipe, again.arguments, again.created) == ("digits", ("digits", "--epochs", "3"), first.created)
    assert (again.hours, again.budget_usd) == (5.0, 2.0)
    assert again.deadline > first.deadline + 3 * 3600
    assert read_spec(place, "mine") == again
    assert group(place).deadline == int(again.deadline)
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(again.deadline)) in str(schedule(place, "mine"))
    listed = place.aws.client("s3").list_objects_v2(Bucket=place.bucket, Prefix=run_key("mine", "failed"))
    assert listed["KeyCount"] == 0  # else boot would take it for the last word and stop at once


def test_a_run_does_not_become_another_one(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    with pytest.raises(UserError, match="RECIPE='finetune' is not what RUN=mine was started with"):
        plan(Request(recipe="finetune", run_id="mine"))
    with pytest.raises(UserError, match="ARGS='--epochs 9' is not what RUN=mine"):
        plan(Request(arguments=("--epochs", "9"), run_id="mine"))


@pytest.mark.parametrize(
    ("kind", "run_id", "fix"),
    [
        ("train", "prepare-x", "only a preparation's name begins with 'prepare-'; use RUN=x"),
        ("prepare", "imagenet", "a preparation's name begins with 'prepare-'; use RUN=prepare-imagenet"),
    ],
)
def test_a_name_of_the_other_kind_is_refused(place: Deployed, kind: str, run_id: str, fix: str) -> None:
    data = hub.IMAGENET if kind == "prepare" else ""
    with pytest.raises(UserError, match=f"RUN='{run_id}' does not fit: {fix}"):
        plan(Request(kind=kind, data=data, run_id=run_id))


def test_a_preparation_goes_on_by_launch_too(place: Deployed) -> None:
    begin(place, Request(kind="prepare", data=hub.IMAGENET, run_id="prepare-x"))
    fleet.scale_to_zero(place.aws.client("autoscaling"), INSTALLATION.prepare_group)
    assert begin(place, Request(run_id="prepare-x")).kind == "prepare"


def test_disk_and_address_are_told_to_the_guard_which_counts_them(place: Deployed) -> None:
    train, prepare = plan(disk_gib="730"), plan(Request(kind="prepare", data=hub.IMAGENET))
    assert train.spec.extras_usd_per_hour == pytest.approx(0.08 + 0.005)
    assert prepare.spec.extras_usd_per_hour == pytest.approx(400 * 0.08 / 730 + 0.005)


def test_a_finished_run_says_so(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    place.end("done", "finished", run_id="mine")
    ended = infra("launch", "--run", "mine")
    assert ended.code == 2
    assert "RUN=mine is finished: `make status RUN=mine` shows its result" in ended.error


def test_a_run_without_money_left_says_how_much_is_enough(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine", budget_usd=2.0))
    stop(place)
    machine = Machine(id="i-1", type="g5.xlarge", zone="a", market="spot", launched=0.0, ended=7200, usd_per_hour=1.0)
    place.put(run_key("mine", "spend.json"), Spend(at=7200, machines=(machine,)).to_json())
    with pytest.raises(UserError, match=r"RUN=mine has spent \$2\.00 of its budget of \$2\.00: use RUN=mine BUDGET=3"):
        plan(Request(run_id="mine"))
    assert begin(place, Request(run_id="mine", budget_usd=5.0)).budget_usd == 5.0


def test_two_laptops_do_not_launch_the_same_run_twice(place: Deployed) -> None:
    planned = plan(Request(recipe="digits", run_id="mine"))
    begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    with pytest.raises(UserError, match="RUN=mine was launched by someone else at the same time"):
        start_run(Operator(session()).client, where(place), planned.spec, ["g5.xlarge"])
    assert group(place).desired == 0


def test_the_schedule_of_an_earlier_run_does_not_stop_this_one(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="earlier"))
    stop(place)
    begin(place, Request(recipe="digits", run_id="later"))
    assert stop_schedules(place.aws.client("scheduler"), INSTALLATION.schedule_group) == ["later"]


def test_a_budget_or_a_deadline_below_the_estimate_is_refused_unless_asked_for(place: Deployed) -> None:
    with pytest.raises(UserError, match=r"BUDGET=2 is below the estimate of \$5\.37 .*: use BUDGET=7, or ANYWAY=1"):
        plan(Request(recipe="finetune", budget_usd=2.0))
    with pytest.raises(UserError, match=r"HOURS=3 is below the estimate of 13\.4 hours .*: use HOURS=27, or ANYWAY=1"):
        plan(Request(recipe="finetune", hours=3.0))
    assert plan(Request(recipe="finetune", hours=3.0, budget_usd=2.0, anyway=True)).spec.budget_usd == 2.0
    assert plan(Request(recipe="finetune", arguments=("--epochs=4",), budget_usd=2.0)).spec.budget_usd == 2.0


def test_prices_that_nobody_tells_come_from_the_dated_table(place: Deployed) -> None:
    place.aws.fault("pricing.*", code="AccessDeniedException")
    place.aws.fault("ec2.DescribeSpotPriceHistory", code="UnauthorizedOperation")
    planned = plan(Request(recipe="finetune"))
    assert planned.spec.prices["g5.4xlarge"] == 1.624
    assert planned.offered[0].usd_per_hour == 1.006
    assert "2026-01-19" in planned.prices_source
    assert "did not answer" in plain(describe(planned))


def test_prepared_data_is_used_where_the_bucket_has_it(place: Deployed) -> None:
    shards = [{"file": "a.arrow", "images": 10, "bytes": 1000, "crc32": 1}]
    sizes = [{"short_side": 256, "quality": 90, "shards": shards}]
    index = {"splits": {"train": {"images": 640_583, "sizes": sizes}, "val": {"images": 0, "sizes": []}}}
    place.put("datasets/imagenet-1k/v1/index.json", index)
    whole, half = plan(Request(recipe="finetune", data="other/dataset")), plan(Request(recipe="finetune"))
    assert half.spec.data == f"s3://{place.bucket}/datasets/imagenet-1k/v1"
    assert half.offered[0].hours < 0.6 * whole.offered[0].hours
    with pytest.raises(UserError, match="is in another bucket"):
        plan(Request(recipe="finetune", data="s3://elsewhere/datasets/imagenet-1k/v1"))


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [((), 0), (("--epochs", "4"), 4), (("--epochs=12", "--seed", "1"), 12), (("--optim.warmup-epochs", "5"), 0)],
)
def test_epochs_on_the_command_line_change_the_estimate(arguments: tuple[str, ...], epochs: int) -> None:
    assert epochs_in(arguments) == epochs


def test_a_new_run_is_named_after_recipe_and_day() -> None:
    names = {new_run_id("finetune", 1.79e9) for _ in range(50)}
    assert len(names) > 40
    assert all(name.startswith("finetune-20260921-") for name in names)
    assert all(re.fullmatch(RUN_ID_RULE, name) for name in names)
    assert new_run_id("prepare-imagenet-1k", 0.0)[:-4] == "prepare-imagenet-1k-19700101-"


@pytest.mark.parametrize("command", ["launch", "cost", "secret", "prepare"])
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
