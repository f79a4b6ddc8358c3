"""launch of a run that exists: it goes on with what it computes, or says why it does not."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from infra.operate.commands import launch
from infra.operate.planning import start
from infra.operate.planning.options import Request
from infra.operate.planning.start import start_run
from infra.operate.session import Aws as Operator
from infra.run import fleet
from infra.run.spend import Machine, Spend
from tests.infra import hub
from tests.infra.deployed import Deployed
from tests.infra.operate.launches import GROUP, INSTALLATION, begin, group, plan, read_spec, schedule, stop, where
from tests.infra.operator import infra, session
from trainer.contract import UserError, run_key

pytestmark = pytest.mark.usefixtures("served")


def test_a_run_goes_on_with_the_types_that_it_was_given_or_with_new_ones(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine", types=("g6.4xlarge",)))
    stop(place)
    assert begin(place, Request(run_id="mine")).types == ("g6.4xlarge",)
    assert group(place).types == ("g6.4xlarge",)
    stop(place)
    begin(place, Request(run_id="mine", types=("g5.xlarge",)))
    assert group(place).types == ("g5.xlarge",)


def test_a_run_goes_on_with_a_gpu_without_bf16_if_its_own_precision_is_another(place: Deployed) -> None:
    """Also where the installation names that type, or where it is new. Only the run's spec tells the precision."""
    shards = [{"file": "a.arrow", "images": 1_281_167, "bytes": 37 * 10**9, "crc32": 1}]
    stored = {"images": 1_281_167, "sizes": [{"short_side": 256, "quality": 90, "shards": shards}]}
    splits = {"train": stored, "val": {"images": 0, "sizes": []}}  # a g4dn.xlarge has no room for the source
    place.put("datasets/imagenet-1k/v1/index.json", {"splits": splits})
    fp16: dict[str, Any] = {"recipe": "finetune", "arguments": ("--precision", "fp16"), "types": ("g4dn.xlarge",)}
    place.put(run_key("half", "spec.json"), plan(Request(run_id="half", **fp16)).spec.to_json())
    place.put(run_key("digits", "spec.json"), plan(Request(run_id="digits", recipe="digits")).spec.to_json())
    place.put(run_key("brain", "spec.json"), plan(Request(run_id="brain", recipe="finetune")).spec.to_json())

    def go_on(run_id: str) -> int:
        asked = Request(run_id=run_id, types=("g4dn.xlarge",))
        started = launch.launch(Operator(session()), INSTALLATION, asked, is_checked=True)
        stop(place)
        return started

    assert plan(Request(run_id="half"), instance_types="g4dn.xlarge").spec.types == ("g4dn.xlarge",)
    assert (go_on("half"), go_on("digits")) == (0, 0)
    with pytest.raises(UserError, match=r"g4dn\.xlarge cannot compute in bf16, which this run asks for"):
        go_on("brain")


def test_a_run_that_runs_is_left_alone_by_a_second_launch(place: Deployed) -> None:
    begin(place, Request(recipe="digits", run_id="mine"))
    ended = infra("launch", "--run", "mine", "--hours", "9")
    assert ended.code == 0
    assert "mine is running already" in ended.said
    assert "make stop, then make launch RUN=mine" in ended.said
    assert group(place).desired == 1


def test_a_failed_run_whose_machine_is_kept_is_told_to_be_stopped_first(place: Deployed) -> None:
    assert begin(place, Request(recipe="digits", run_id="mine", keep_minutes=30.0)).keep_minutes == 30.0
    place.put(run_key("mine", "failed.json"), {"attempt": 1, "message": "the token was missing"})
    ended = infra("launch", "--run", "mine")
    assert ended.code == 0
    again = "mine has failed (the token was missing), and its machine is still there: make stop, then make launch"
    assert again in ended.said
    stop(place)
    assert begin(place, Request(run_id="mine")).keep_minutes == 30.0


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


@pytest.mark.parametrize("overtaken_after", ["assign", "_schedule_stops"])
def test_of_two_operators_who_launch_at_once_one_starts_and_the_other_is_told(
    place: Deployed, monkeypatch: pytest.MonkeyPatch, overtaken_after: str
) -> None:
    """Both have found the groups free. The other one's tags come right after a step of ours."""
    module = start if overtaken_after.startswith("_") else fleet
    step, planned = getattr(module, overtaken_after), plan(Request(recipe="digits", run_id="mine"))

    def then_the_other(*arguments: object) -> None:
        step(*arguments)
        monkeypatch.setattr(module, overtaken_after, step)
        fleet.assign(place.aws.client("autoscaling"), [GROUP], "theirs", time.time() + 3600)
        place.aws.client("scheduler").create_schedule(**(schedule_of_theirs | {"Name": "theirs"}))

    begin(place, Request(recipe="digits", run_id="before"))
    stop(place)
    keys = ("GroupName", "ScheduleExpression", "FlexibleTimeWindow", "Target")
    schedule_of_theirs = {key: schedule(place, "before")[key] for key in keys}
    monkeypatch.setattr(module, overtaken_after, then_the_other)
    with pytest.raises(UserError, match="somebody else launches theirs at the same time, and RUN=mine was not started"):
        start_run(Operator(session()).client, where(place), planned.spec, ["g5.xlarge"])
    assert (group(place).run_id, group(place).desired) == ("theirs", 0)
    assert schedule(place, "theirs")["State"] == "ENABLED"
    assert begin(place, Request(recipe="digits", run_id="theirs")).run_id == "theirs"
    assert (group(place).run_id, group(place).desired) == ("theirs", 1)


def test_of_two_operators_on_different_markets_only_one_starts(
    place: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other launches from beginning to end between two steps of ours, in the group that ours does not use."""
    assign, theirs = fleet.assign, plan(Request(recipe="digits", run_id="theirs", market="on-demand")).spec
    ours, client = plan(Request(recipe="digits", run_id="mine")).spec, Operator(session()).client

    def then_the_other(*arguments: Any) -> None:
        assign(*arguments)
        monkeypatch.setattr(fleet, "assign", assign)
        start_run(client, where(place), theirs, ["g5.xlarge"])

    monkeypatch.setattr(fleet, "assign", then_the_other)
    with pytest.raises(UserError, match="somebody else launches theirs at the same time, and RUN=mine was not started"):
        start_run(client, where(place), ours, ["g5.xlarge"])
    groups = fleet.read_groups(place.aws.client("autoscaling"), INSTALLATION.groups_of("train"))
    assert [(group.run_id, group.desired) for group in groups] == [("theirs", 0), ("theirs", 1)]


def test_a_group_that_shows_its_new_tags_late_is_asked_again(place: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the user would be told of somebody who is not there."""
    begin(place, Request(recipe="digits", run_id="before"))
    stop(place)
    answers, read = [], fleet.read_groups

    def late(*arguments: Any) -> list[fleet.Group]:
        found = read(*arguments)
        is_new = any(group.run_id == "mine" for group in found)
        answers.append(is_new)
        return [replace(group, run_id="before") for group in found] if is_new and answers.count(True) == 1 else found

    monkeypatch.setattr(fleet, "read_groups", late)
    assert begin(place, Request(recipe="digits", run_id="mine")).run_id == "mine"
    assert (group(place).run_id, group(place).desired) == ("mine", 1)


def test_two_laptops_do_not_launch_the_same_run_twice(place: Deployed) -> None:
    planned = plan(Request(recipe="digits", run_id="mine"))
    begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    with pytest.raises(UserError, match="RUN=mine was launched by someone else at the same time"):
        start_run(Operator(session()).client, where(place), planned.spec, ["g5.xlarge"])
    assert group(place).desired == 0
