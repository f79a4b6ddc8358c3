"""What ends an idle bill from outside of the machines: the guard function every minute, and what stop schedules need.

Not here: what the guard decides (`infra.guard`), and the schedules, which `launch` makes, one for each run.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.config import ROOT, Installation
from infra.stacks import roles

GUARD_CODE = (
    "infra/__init__.py",
    "infra/config.py",
    "infra/guard",
    "infra/run",
    "trainer/__init__.py",
    "trainer/contract.py",
)
PERIOD = cdk.Duration.minutes(1)
SILENT_MINUTES = 5  # of errors, or of no guard at all, before someone is told


def topic(scope: Construct, installation: Installation) -> sns.Topic:
    """Who is told when the guard acts, or when it does not."""
    made = sns.Topic(scope, "Topic", enforce_ssl=True)
    if installation.email:
        made.add_subscription(subscriptions.EmailSubscription(installation.email))
    made.add_to_resource_policy(  # the topic's own policy replaces the one that lets the account's alarms in
        iam.PolicyStatement(
            sid="Alarms",
            principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
            actions=["sns:Publish"],
            resources=[made.topic_arn],
            conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID}},
        )
    )
    return made


class GuardFunction(Construct):
    """The function, its clock, and the alarm that tells when it fails or does not run.

    A tick takes at most 50 s, comes every 60 and is never repeated, so that no two run at a time. Reserved concurrency
    would say the same, but a new account has none to reserve, and the deploy would fail.
    """

    def __init__(
        self,
        scope: Construct,
        *,
        installation: Installation,
        arns: roles.Arns,
        log_group: logs.LogGroup,
        topic: sns.Topic,
        bucket_name: str,
    ) -> None:
        super().__init__(scope, "Guard")
        role = roles.role(self, "Role", iam.ServicePrincipal("lambda.amazonaws.com"), roles.guard(arns))
        function = lambda_.Function(
            self,
            "Function",
            function_name=installation.guard_function,
            description="resnet-spot: every minute, ends what must not run any longer",
            runtime=lambda_.Runtime.PYTHON_3_14,
            handler="infra.guard.handler",
            code=lambda_.Code.from_asset(
                str(ROOT),
                ignore_mode=cdk.IgnoreMode.DOCKER,
                exclude=["*", *(f"!{path}" for path in GUARD_CODE), "**/__pycache__"],
            ),
            memory_size=256,
            timeout=cdk.Duration.seconds(50),
            retry_attempts=0,
            max_event_age=PERIOD,
            role=role.without_policy_updates(),
            log_group=log_group,
            environment={
                "INSTALLATION": installation.name,
                "BUCKET": bucket_name,
                "TOPIC": topic.topic_arn,
                "TRAIN_GROUP": installation.train_group,
                "PREPARE_GROUP": installation.prepare_group,
            },
        )
        events.Rule(
            self,
            "EveryMinute",
            description="resnet-spot: the guard's clock",
            schedule=events.Schedule.rate(PERIOD),
            targets=[targets.LambdaFunction(function, retry_attempts=0, max_event_age=PERIOD)],
        )
        alarm = cloudwatch.Alarm(
            self,
            "Alarm",
            alarm_description="resnet-spot: the guard fails or does not run; look at its log, and `make stop`",
            metric=function.metric_errors(period=PERIOD, statistic="Sum"),  # each run tells it, also a good one
            threshold=1,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            evaluation_periods=SILENT_MINUTES,
            treat_missing_data=cloudwatch.TreatMissingData.MISSING,
        )
        alarm.add_alarm_action(actions.SnsAction(topic))
        # A guard that does not run leaves no data. A new alarm begins so, which is no change, and tells nobody.
        alarm.add_insufficient_data_action(actions.SnsAction(topic))


class StopSchedules(Construct):
    """The group of the one-time schedules, and the role with which each sets an Auto Scaling group to 0."""

    def __init__(self, scope: Construct, *, installation: Installation, arns: roles.Arns) -> None:
        super().__init__(scope, "StopSchedules")
        group = scheduler.CfnScheduleGroup(self, "Group", name=installation.schedule_group)
        principal = iam.ServicePrincipal(
            "scheduler.amazonaws.com",
            conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID, "aws:SourceArn": group.attr_arn}},
        )
        self.role = roles.role(self, "Role", principal, roles.scheduler(arns))
