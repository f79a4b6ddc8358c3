"""What sends a mail: a guard that does not run, and money that no machine costs."""

from __future__ import annotations

import pytest

from infra.config import Installation
from tests.infra.synthesized import flat, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js


def test_a_guard_that_fails_or_does_not_run_for_five_minutes_is_told() -> None:
    alarm = stacks().training.one("CloudWatch::Alarm", "Guard")
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == ("AWS/Lambda", "Errors", "Sum")
    assert (alarm["Period"], alarm["EvaluationPeriods"], alarm["Threshold"]) == (60, 5, 1)
    assert alarm["TreatMissingData"] == "missing"  # to INSUFFICIENT_DATA, where a new alarm begins
    assert flat(alarm["AlarmActions"]) == flat(alarm["InsufficientDataActions"]) == ["<Topic>"]
    assert flat(alarm["Dimensions"]) == [{"Name": "FunctionName", "Value": "<GuardFunction>"}]


def test_a_stop_schedule_that_cannot_stop_its_group_is_told_at_once() -> None:
    """Nobody else would see it: the machine's own timer and the guard stop the run at the same time."""
    alarm = stacks().training.one("CloudWatch::Alarm", "StopSchedules")
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == ("AWS/Scheduler", "TargetErrorCount", "Sum")
    assert (alarm["Period"], alarm["EvaluationPeriods"], alarm["Threshold"]) == (60, 1, 1)
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert alarm["TreatMissingData"] == "notBreaching"  # so that the next failure is told, too
    assert alarm["Dimensions"] == [{"Name": "ScheduleGroup", "Value": Installation().schedule_group}]
    assert flat(alarm["AlarmActions"]) == ["<Topic>"]


def test_traffic_is_watched_in_the_group_in_which_trainings_begin() -> None:
    alarm = stacks("changed").training.one("CloudWatch::Alarm", "MoneyNetwork")
    assert alarm["Dimensions"] == [{"Name": "AutoScalingGroupName", "Value": Installation().on_demand_group}]
    assert "on several machines far more to each other, which is free within a zone" in alarm["AlarmDescription"]


@pytest.mark.parametrize(
    ("alarm", "metric", "dimensions", "period", "most"),
    [
        ("MoneyLogs", "AWS/Logs IncomingBytes Sum", {"LogGroupName": "<RunLogs>"}, 300, 100e6),
        ("MoneyNetwork", "AWS/EC2 NetworkOut Sum", {"AutoScalingGroupName": "resnet-spot-train"}, 300, 3e9),
        (
            "MoneyBucketSize", "AWS/S3 BucketSizeBytes Average",
            {"BucketName": "bucket-name", "StorageType": "StandardStorage"}, 86400, 3e12,
        ),
    ],
)  # fmt: skip
def test_money_beside_machines_is_told(
    alarm: str, metric: str, dimensions: dict[str, str], period: int, most: float
) -> None:
    found = stacks().training.one("CloudWatch::Alarm", alarm)
    assert f"{found['Namespace']} {found['MetricName']} {found['Statistic']}" == metric
    assert {one["Name"]: flat(one["Value"]) for one in found["Dimensions"]} == dimensions
    assert (found["Period"], found["EvaluationPeriods"], found["Threshold"]) == (period, 1, most)
    assert (found["ComparisonOperator"], found["TreatMissingData"]) == ("GreaterThanThreshold", "ignore")
    assert flat(found["AlarmActions"]) == ["<Topic>"]
    assert "InsufficientDataActions" not in found  # a day without data is no news


def test_mail_is_sent_only_where_an_address_is_given() -> None:
    assert not stacks().training.all("SNS::Subscription")
    subscription = stacks("changed").training.one("SNS::Subscription")
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "me@example.org")
