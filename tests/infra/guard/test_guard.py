"""The guard function against AWS over HTTP: each guard alone, with all others left out; and what it does when AWS
refuses it something. S3's clock is the real one, so `tick(minutes)` looks into the future."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest

from infra.config import Tag
from infra.guard import handler, rules
from infra.run import fleet
from tests.emulator.aws import Aws
from tests.infra.fleets import BUCKET, INSTALLATION, RUN, Lab, make_lab
from trainer.contract import attempt_key, run_key

GROUP = INSTALLATION.train_group
ALL = {rule.__name__ for rule in (*rules.STOPS, *rules.TERMINATIONS, rules.outside)} | {"on_demand_due"}


@pytest.fixture
def lab(aws: Aws) -> Lab:
    return make_lab(aws)


def only(*names: str) -> Collection[str]:
    assert set(names) <= ALL
    return ALL - set(names)


def test_nothing_happens_to_a_run_that_is_well(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    assert lab.tick(1) == []
    assert lab.desired() == 1
    assert len(lab.billing()) == 1
    assert lab.mail() == []
    in_an_hour = lab.spend().usd_at_most(lab.began + 3600)
    assert in_an_hour == pytest.approx(0.8048 * 0.4 + 0.05, rel=0.05)  # spot, and the extras


@pytest.mark.parametrize(
    ("guard", "minutes", "reason"),
    [
        ("past_deadline", 601, "the deadline has passed"),
        ("budget_spent", 30, "of the budget of $0.15 are spent"),
        ("finished", 3, "the run has finished"),
        ("failed", 3, "the run has failed: no such recipe"),
        ("without_run", 1, ""),
        ("without_spec", 1, "no valid spec.json, hence no budget: it is missing"),
        ("blind", 16, "no budget can be kept"),
    ],
)
def test_each_guard_alone_stops_what_must_not_go_on(lab: Lab, guard: str, minutes: float, reason: str) -> None:
    lab.launch(budget_usd=0.15)
    lab.beat()
    match guard:
        case "finished":
            lab.put(run_key(RUN, "done.json"), {"attempt": 1})
        case "failed":
            lab.put(run_key(RUN, "failed.json"), {"attempt": 1, "message": "no such recipe"})
        case "without_run":
            lab.client("autoscaling").delete_tags(
                Tags=[{"ResourceId": GROUP, "ResourceType": "auto-scaling-group", "Key": Tag.RUN}]
            )
        case "without_spec":
            lab.client("s3").delete_object(Bucket=BUCKET, Key=run_key(RUN, "spec.json"))
        case "blind":
            lab.aws.fault("s3.GetObject", code="AccessDenied", status=403)
    now = lab.began + minutes * 60
    lab.guard(without=ALL).tick(now)
    assert lab.desired() == 1  # without any guard the money runs
    lab.guard(without=only(guard)).tick(now)
    assert lab.desired() == 0
    assert lab.billing() == []
    if reason:
        told = [message for message in lab.mail() if reason in message]
        assert len(told) == 1
        lab.aws.heal()
        lab.tick(minutes + 1)
        if guard not in ("blind",):  # whose memory could not be kept
            assert reason in lab.memory().reason
            assert [message for message in lab.mail() if reason in message] == []  # once


def test_a_run_that_is_over_takes_its_schedule_with_it_and_is_left_alone_then(lab: Lab) -> None:
    lab.launch()
    lab.put(run_key(RUN, "done.json"), {"attempt": 1})
    guard = lab.guard()
    for minute in (3, 4):
        assert guard.tick(lab.began + minute * 60) == []
    assert lab.schedules() == []
    (machine,) = lab.spend().machines
    assert machine.ended
    for minute in (18, 19, 20):
        guard.tick(lab.began + minute * 60)
    lab.aws.clear_calls()
    assert guard.tick(lab.began + 21 * 60) == []
    assert [call for call in lab.aws.calls() if call.startswith("s3.")] == []  # nothing to look for any more
    assert lab.tick(22) == []  # nor after a cold start
    assert lab.memory().is_over


def test_a_launch_that_follows_keeps_its_own_schedule(lab: Lab) -> None:
    lab.launch(budget_usd=0.01)
    lab.tick(3)
    assert lab.desired() == 0
    autoscaling = lab.client("autoscaling")
    fleet.assign(autoscaling, GROUP, RUN, lab.began + 50000)  # what `launch` does first
    lab.tick(4)
    assert lab.schedules() == [RUN]


def test_a_look_in_the_middle_of_a_launch_does_not_take_the_run_for_over(lab: Lab) -> None:
    autoscaling, guard = lab.client("autoscaling"), lab.guard()
    fleet.assign(autoscaling, GROUP, RUN, lab.began + 36000)  # what `launch` does first
    guard.tick(lab.began)
    lab.launch()
    guard.tick(lab.began + 60)
    lab.mail()
    fleet.scale_to_zero(autoscaling, GROUP)
    lab.put(run_key(RUN, "done.json"), {"attempt": 1})
    for minute in (3, 4, 5):
        guard.tick(lab.began + minute * 60)
    (machine,) = lab.spend().machines
    assert machine.ended
    assert lab.schedules() == []
    assert any("the run has finished" in message for message in lab.mail())


def test_while_a_machine_bills_the_stored_tally_says_that_there_is_a_guard(lab: Lab) -> None:
    lab.launch()
    guard = lab.guard()
    for minute in range(12):
        now = lab.began + minute * 60
        guard.tick(now)
        assert now - lab.spend().at <= 300
    lab.aws.clear_calls()
    guard.tick(lab.began + 12 * 60)
    assert "s3.PutObject" not in lab.aws.calls()  # but not at every look


def test_a_guard_that_comes_back_after_days_bills_a_forgotten_machine_to_its_deadline_at_most(lab: Lab) -> None:
    lab.launch()
    lab.tick(1)
    fleet.scale_to_zero(lab.client("autoscaling"), GROUP)
    lab.client("ec2").delete_tags(
        Resources=[machine.id for machine in lab.machines()], Tags=[{"Key": Tag.INSTALLATION}]
    )  # as if EC2 had forgotten it
    lab.tick(3 * 24 * 60)
    (machine,) = lab.spend().machines
    assert machine.ended == pytest.approx(lab.began + 36000 + 600, abs=2)


def test_a_failure_does_not_count_after_a_later_attempt(lab: Lab) -> None:
    lab.launch()
    lab.beat(attempt=2)
    lab.put(run_key(RUN, "failed.json"), {"attempt": 1, "message": "no such recipe"})
    lab.put(attempt_key(RUN, 2), {"attempt": 2})
    lab.tick(3)
    assert lab.desired() == 1


def test_a_hung_machine_is_replaced_three_times_and_then_the_run_stops(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    lab.commit(100)
    minute = 16.0
    for kill in range(1, 4):
        (machine,) = lab.billing()
        lab.tick(minute)  # looks hung
        assert lab.billing() == [machine]
        lab.tick(minute + 1)  # and still does
        (replacement,) = lab.billing()
        assert replacement != machine
        assert lab.memory().hang_kills == kill
        minute += 2
    lab.tick(minute)
    lab.tick(minute + 1)
    assert lab.desired() == 0
    assert lab.billing() == []
    assert "no heartbeat" in lab.memory().reason
    assert len([message for message in lab.mail() if "no heartbeat" in message]) == 4


def test_a_newer_checkpoint_gives_a_hanging_run_three_more_machines(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    minute = 16.0
    for step in range(5):
        lab.commit(step)
        lab.tick(minute)
        lab.tick(minute + 1)
        assert lab.memory().hang_kills == 1
        minute += 2
    assert lab.desired() == 1


def test_a_heartbeat_that_may_not_be_read_is_no_hang(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    (machine,) = lab.billing()
    guard = lab.guard()
    guard.tick(lab.began)
    lab.aws.fault("s3.GetObject", code="AccessDenied", status=403)
    for minute in range(16, 40):
        assert guard.tick(lab.began + minute * 60) != []
    assert lab.billing() == [machine]  # what the process remembers bridges it
    assert lab.desired() == 1


def test_budget_and_tally_outlive_a_bucket_that_cannot_be_written(lab: Lab) -> None:
    lab.launch(budget_usd=0.15)
    guard = lab.guard()
    guard.tick(lab.began)
    lab.aws.fault("s3.*", code="InternalError", status=500)
    guard.tick(lab.began + 29 * 60)
    assert lab.desired() == 0
    lab.aws.heal()
    guard.tick(lab.began + 30 * 60)
    (machine,) = lab.spend().machines
    assert machine.ended


def test_a_tally_that_cannot_be_read_is_never_overwritten(lab: Lab) -> None:
    lab.launch()
    lab.put(run_key(RUN, "spend.json"), b"not a tally")
    assert any("spend.json is not valid" in problem for problem in lab.tick(1))
    assert lab.get(run_key(RUN, "spend.json")) == b"not a tally"
    assert lab.desired() == 1
    lab.tick(16)
    assert lab.desired() == 0
    assert any("spend.json is not valid" in message for message in lab.mail())


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"run_id": 1}', None])
def test_a_spec_that_was_broken_by_hand_stops_the_run_and_says_so(lab: Lab, body: bytes | None) -> None:
    lab.launch()
    if body is None:
        edited = json.loads(lab.get(run_key(RUN, "spec.json"))) | {"budget_usd": "ten"}
        body = json.dumps(edited).encode()
    lab.put(run_key(RUN, "spec.json"), body)
    lab.tick(1)
    assert lab.desired() == 0
    assert any("make launch" in message for message in lab.mail())


@pytest.mark.parametrize(
    "call", ["ec2.DescribeInstances", "ec2.DescribeSpotPriceHistory", "sns.Publish", "s3.GetObject"]
)
def test_the_deadline_holds_whatever_else_aws_refuses(lab: Lab, call: str) -> None:
    lab.launch()
    lab.aws.fault(call, code="UnauthorizedOperation", status=403)
    lab.tick(601)
    assert lab.desired() == 0


def test_the_deadline_holds_whatever_breaks_in_the_guard_itself(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.launch()

    def broken(*arguments: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("infra.guard.reading.read_run", broken)
    assert any("a mistake" in problem for problem in lab.tick(599))
    assert lab.tick(601)
    assert lab.desired() == 0


def test_a_group_that_cannot_be_read_is_stopped_after_its_machines_tags(lab: Lab) -> None:
    lab.launch()
    lab.aws.fault("autoscaling.DescribeAutoScalingGroups", code="AccessDenied", status=403)
    lab.tick(599)
    lab.aws.heal()
    assert lab.desired() == 1
    lab.aws.fault("autoscaling.DescribeAutoScalingGroups", code="AccessDenied", status=403)
    lab.tick(601)
    lab.aws.heal()
    assert lab.desired() == 0


def test_a_refused_notice_is_told_at_the_next_look(lab: Lab) -> None:
    lab.launch()
    lab.aws.fault("sns.Publish", code="AuthorizationError", status=403)
    lab.tick(601)
    assert lab.desired() == 0
    lab.aws.heal()
    assert lab.mail() == []
    lab.tick(602)
    assert len(lab.mail()) == 1


def test_a_machine_that_its_group_does_not_let_go_is_terminated(lab: Lab) -> None:
    """Scale-in protection and a suspended process keep a machine: EC2 itself still takes it away."""
    lab.launch()
    lab.beat()
    (machine,) = lab.billing()
    autoscaling = lab.client("autoscaling")
    autoscaling.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[machine], ProtectedFromScaleIn=True)
    fleet.scale_to_zero(autoscaling, GROUP)
    guard = lab.guard(without=only("unwanted"))
    for minute in (1, 2, 3):
        guard.tick(lab.began + minute * 60)
        assert lab.billing() == [machine]
    guard.tick(lab.began + 5 * 60)
    assert machine not in lab.billing()


def test_a_machine_past_the_deadline_is_terminated_in_any_case(lab: Lab) -> None:
    lab.launch()
    lab.guard(without=only("overdue")).tick(lab.began + 602.5 * 60)
    gone = [machine for machine in lab.machines() if not machine.is_billing]
    assert len(gone) == 1


def test_a_machine_of_an_earlier_run_goes_and_is_billed_to_that_run(lab: Lab) -> None:
    lab.launch(run_id="run-0")
    (old,) = lab.billing()
    lab.launch(nodes=2)
    guard = lab.guard(without=only("unwanted"))
    for minute in (0, 1, 2, 3):
        guard.tick(lab.began + minute * 60)
    assert old not in lab.billing()
    guard.tick(lab.began + 240)
    assert [machine.id for machine in lab.spend("run-0").machines] == [old]
    assert lab.spend("run-0").machines[0].ended
    assert old not in [machine.id for machine in lab.spend().machines]
    assert len(lab.billing()) == 2


def test_a_machine_outside_the_groups_is_terminated_once_it_cannot_be_a_new_one(lab: Lab) -> None:
    lab.client("ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": Tag.INSTALLATION, "Value": INSTALLATION.name}]}
        ],
    )  # fmt: skip
    guard = lab.guard(without=only("outside"))
    guard.tick(lab.began + 60)
    assert len(lab.billing()) == 1
    guard.tick(lab.began + 16 * 60)
    assert lab.billing() == []
    assert any("outside its groups" in message for message in lab.mail())


def test_without_any_spot_machine_it_changes_to_on_demand_after_the_stated_wait(lab: Lab) -> None:
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0)
    for minute in (0, 9):
        lab.tick(minute)
        state = fleet.group_state(lab.client("autoscaling"), GROUP)
        assert state is not None
        assert state.market == "spot"
    lab.tick(10)
    state = fleet.group_state(lab.client("autoscaling"), GROUP)
    assert state is not None
    assert state.market == "on-demand"
    (message,) = lab.mail()
    assert "no such machine free" in message


def test_why_no_machine_came_is_not_told_by_an_earlier_launch(lab: Lab) -> None:
    lab.aws.set(launch_failures={GROUP: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(on_demand_after_minutes=10.0, deadline=lab.began + 3600 + 36000)  # an hour after those failures
    for minute in (60, 70):
        lab.tick(minute)
    (message,) = lab.mail()
    assert message.endswith("from now on on-demand machines.")


def test_both_groups_are_guarded(lab: Lab) -> None:
    prepare = INSTALLATION.prepare_group
    lab.launch()
    lab.launch(run_id="prepare-1", group=prepare, kind="prepare", deadline=lab.began + 600)
    lab.tick(11)
    assert lab.desired(prepare) == 0
    assert lab.desired() == 1
    assert [machine.run_id for machine in lab.machines() if machine.is_billing] == [RUN]


def test_the_function_itself_runs_from_its_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "INSTALLATION": INSTALLATION.name, "BUCKET": BUCKET, "TOPIC": lab.topic,
        "TRAIN_GROUP": GROUP, "PREPARE_GROUP": INSTALLATION.prepare_group,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    lab.launch(deadline=lab.began - 1)
    handler({}, None)
    assert lab.desired() == 0

    lab.launch(run_id="run-2", deadline=lab.began - 1)
    lab.aws.fault("s3.GetObject", code="AccessDenied", status=403)
    with pytest.raises(RuntimeError, match=r"run-2/spec\.json cannot be read"):  # the alarm sees it
        handler({}, None)
    assert lab.desired() == 0  # and the rest was done all the same
