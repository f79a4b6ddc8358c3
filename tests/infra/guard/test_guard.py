"""The guard function against AWS over HTTP: each guard alone, with all others left out; and a run from its launch to
its end. S3's clock is the real one, so `tick(minutes)` looks into the future."""

from __future__ import annotations

import pytest

from infra.config import Tag, schedule_names
from infra.guard import handler
from infra.run import fleet
from tests.infra.fleets import ALL_RULES, BUCKET, INSTALLATION, RUN, Lab, only
from trainer.contract import attempt_key, run_key

GROUP = INSTALLATION.train_group


def test_nothing_happens_to_a_run_that_is_well(lab: Lab) -> None:
    lab.launch()
    lab.beat()
    assert lab.tick(1) == []
    assert lab.desired() == 1
    assert len(lab.billing()) == 1
    assert lab.mail() == [f"resnet-spot: run {RUN}: the run has started: training, step 1"]
    assert lab.tick(2) == []
    assert lab.mail() == []
    in_an_hour = lab.spend().usd_at_most(lab.began + 3600)
    assert in_an_hour == pytest.approx(0.8048 * 0.4 + 0.05, rel=0.05)  # spot, and the extras


def test_a_price_that_rises_and_falls_between_two_looks_is_charged_at_its_highest(lab: Lab) -> None:
    """So the tally is never short. Before the first look, that is the highest since the launch."""
    lab.launch()
    changes = [[0.0, 0.3], [lab.began + 60, 0.7], [lab.began + 120, 0.3]]
    lab.aws.set(spot_usd={"g6.xlarge": changes})
    lab.tick(10)
    assert lab.spend().usd(lab.began + 600) == pytest.approx(0.75 / 6, rel=0.02)
    assert lab.spend().usd_per_hour() == pytest.approx(0.35)
    lab.aws.set(spot_usd={"g6.xlarge": [*changes, [lab.began + 700, 0.5], [lab.began + 800, 0.2]]})
    lab.tick(20)
    assert lab.spend().usd(lab.began + 1200) == pytest.approx(0.75 / 6 + 0.55 / 6, rel=0.02)
    assert lab.spend().usd_per_hour() == pytest.approx(0.25)


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
    lab.guard(without=ALL_RULES).tick(now)
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
    fleet.assign(autoscaling, [GROUP], RUN, lab.began + 50000)  # what `launch` does first
    lab.tick(4)
    assert sorted(lab.schedules()) == sorted(schedule_names(RUN))


def test_a_look_in_the_middle_of_a_launch_does_not_take_the_run_for_over(lab: Lab) -> None:
    autoscaling, guard = lab.client("autoscaling"), lab.guard()
    fleet.assign(autoscaling, [GROUP], RUN, lab.began + 36000)  # what `launch` does first
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


def test_a_training_and_a_preparation_are_guarded_at_the_same_time(lab: Lab) -> None:
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
        "GROUPS": ",".join(INSTALLATION.groups),
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
