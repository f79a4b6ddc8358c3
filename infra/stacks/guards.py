"""The guards outside the machines: the guard function, which runs every minute, and what stop schedules need.

`infra.guard` holds the function's decisions. `launch` makes the schedules, one for each run.
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
from infra.stacks import permissions, roles

GUARD_CODE = (
    "infra/__init__.py",
    "infra/config.py",
    "infra/guard",
    "infra/run",
    "trainer/__init__.py",
    "trainer/contract.py",
)
PERIOD = cdk.Duration.minutes(1)
SILENT_MINUTES = 5  # after so long with errors, or without any guard, the alarm sends a mail
# Money beside machines. An alarm mails, and ends nothing: nobody but you can tell what may go.
LOG_BYTES = 100_000_000  # in 5 minutes: 60 cents an hour. A run writes less than 1 MB
# In 5 minutes: 3.24 dollars an hour, if it goes to the internet at 9 cents a GB. A run sends 2.1 GB, checkpoints of
# 307 MB every 45 s. They go to S3 in its region, which is free. Of several machines each sends up to twice the
# gradients, 102 MB, in each step, to private addresses in its zone. That is free, too, so their alarm is a false one:
# https://aws.amazon.com/ec2/pricing/on-demand/, "Data transfer within the same AWS Region".
NETWORK_BYTES = 3_000_000_000
BUCKET_BYTES = 3_000_000_000_000  # 69 dollars a month. ImageNet and a run that never ends have 2.7 TB, see docs/aws.md


def topic(scope: Construct, installation: Installation) -> sns.Topic:
    """The SNS topic for mails: the guard has acted, or the guard does not run."""
    made = sns.Topic(scope, "Topic", enforce_ssl=True)
    if installation.email:
        made.add_subscription(subscriptions.EmailSubscription(installation.email))
    made.add_to_resource_policy(  # enforce_ssl gave the topic a policy, and without this statement no alarm may publish
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
    """The guard function, the rule that calls it every minute, and the alarm for when it fails or does not run.

    A call takes at most 50 s, comes every 60 s and is never retried, so no two calls run at the same time. Reserved
    concurrency would ensure the same, but a new account has none to reserve, and the deploy would fail.
    """

    def __init__(
        self,
        scope: Construct,
        *,
        installation: Installation,
        arns: permissions.Arns,
        log_group: logs.LogGroup,
        topic: sns.Topic,
        bucket_name: str,
    ) -> None:
        super().__init__(scope, "Guard")
        role = roles.role(self, "Role", iam.ServicePrincipal("lambda.amazonaws.com"), permissions.guard(arns))
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
                "GROUPS": ",".join(installation.groups),
            },
        )
        events.Rule(
            self,
            "EveryMinute",
            description="resnet-spot: calls the guard every minute",
            schedule=events.Schedule.rate(PERIOD),
            targets=[targets.LambdaFunction(function, retry_attempts=0, max_event_age=PERIOD)],
        )
        alarm = cloudwatch.Alarm(
            self,
            "Alarm",
            alarm_description="resnet-spot: the guard fails or does not run; look at its log, and `make stop`",
            metric=function.metric_errors(period=PERIOD, statistic="Sum"),  # a call without error reports 0
            threshold=1,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            evaluation_periods=SILENT_MINUTES,
            treat_missing_data=cloudwatch.TreatMissingData.MISSING,
        )
        alarm.add_alarm_action(actions.SnsAction(topic))
        # Without calls there is no data, and the alarm changes to INSUFFICIENT_DATA. A new alarm begins in that state:
        # that is no change, so nobody gets a mail.
        alarm.add_insufficient_data_action(actions.SnsAction(topic))


class MoneyAlarms(Construct):
    """What machines could spend without the guard seeing it: lines of log, traffic, bytes in the bucket.

    S3 measures its buckets once a day, and EC2 its machines every 5 minutes, at no cost. `group` is the one in which
    trainings begin. Nobody watches what other machines send, nor how many objects there are: every alarm costs while
    nothing runs.
    """

    def __init__(
        self, scope: Construct, *, log_group: logs.LogGroup, topic: sns.Topic, bucket_name: str, group: str
    ) -> None:
        super().__init__(scope, "Money")
        five_minutes, day = cdk.Duration.minutes(5), cdk.Duration.days(1)
        for id, said, metric, most in (
            (
                "Logs",
                "more than 100 MB of log lines came in within 5 minutes, at $0.50 a GB: `make logs`, and `make stop`",
                cloudwatch.Metric(
                    namespace="AWS/Logs",
                    metric_name="IncomingBytes",
                    dimensions_map={"LogGroupName": log_group.log_group_name},
                    period=five_minutes,
                    statistic="Sum",
                ),
                LOG_BYTES,
            ),
            (
                "Network",
                "the training machines sent more than 3 GB within 5 minutes, at $0.09 a GB if to the internet: a run "
                "sends 2.1 GB, to the bucket, and on several machines far more to each other, which is free within a "
                "zone: on one machine look who sends what, and `make stop`",
                cloudwatch.Metric(
                    namespace="AWS/EC2",
                    metric_name="NetworkOut",
                    dimensions_map={"AutoScalingGroupName": group},
                    period=five_minutes,
                    statistic="Sum",
                ),
                NETWORK_BYTES,
            ),
            (
                "BucketSize",
                "the bucket has more than 3 TB, which cost $69 a month: `make cost`, and look who writes what",
                cloudwatch.Metric(
                    namespace="AWS/S3",
                    metric_name="BucketSizeBytes",
                    dimensions_map={"BucketName": bucket_name, "StorageType": "StandardStorage"},
                    period=day,
                    statistic="Average",
                ),
                BUCKET_BYTES,
            ),
        ):
            alarm = cloudwatch.Alarm(
                self,
                id,
                alarm_description=f"resnet-spot: {said}",
                metric=metric,
                threshold=most,
                comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
                evaluation_periods=1,
                treat_missing_data=cloudwatch.TreatMissingData.IGNORE,  # none between two days, or without a machine
            )
            alarm.add_alarm_action(actions.SnsAction(topic))


class StopSchedules(Construct):
    """The group of the one-time stop schedules, the role with which a schedule sets an Auto Scaling group to 0, and
    the alarm for when it cannot.
    """

    def __init__(
        self, scope: Construct, *, installation: Installation, arns: permissions.Arns, topic: sns.Topic
    ) -> None:
        super().__init__(scope, "StopSchedules")
        group = scheduler.CfnScheduleGroup(self, "Group", name=installation.schedule_group)
        principal = iam.ServicePrincipal(
            "scheduler.amazonaws.com",
            conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID, "aws:SourceArn": group.attr_arn}},
        )
        self.role = roles.role(self, "Role", principal, permissions.scheduler(arns))
        # "Emitted when the target returns an exception after EventBridge Scheduler calls the target API":
        # https://docs.aws.amazon.com/scheduler/latest/UserGuide/monitoring-cloudwatch.html
        failed = cloudwatch.Metric(
            namespace="AWS/Scheduler",
            metric_name="TargetErrorCount",
            dimensions_map={"ScheduleGroup": installation.schedule_group},
            period=PERIOD,
            statistic="Sum",
        )
        alarm = cloudwatch.Alarm(
            self,
            "Alarm",
            alarm_description="resnet-spot: a stop schedule could not set its group to 0 at the deadline: `make stop`",
            metric=failed,
            threshold=1,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            evaluation_periods=1,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,  # there is data only where a schedule failed
        )
        alarm.add_alarm_action(actions.SnsAction(topic))
