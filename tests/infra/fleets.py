"""An installation in the emulated account without CDK: its groups, bucket, topic, schedule; and its guard."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from infra.config import Installation, Tag, schedule_names
from infra.guard import Guard, GuardSettings, rules
from infra.guard.memory import Memory
from infra.run import fleet
from infra.run.fleet import FleetMachine
from infra.run.spec import Spec
from infra.run.spend import Spend
from tests.emulator.aws import Aws
from trainer.contract import Lease, checkpoint_key, run_key

INSTALLATION = Installation()
BUCKET = "a-store"
RUN = "run-1"
PRICES = {"g6.xlarge": 0.8048, "g5.xlarge": 1.006}
ALL_RULES = {rule.__name__ for rule in (*rules.STOPS, *rules.TERMINATIONS, rules.outside)} | {
    "on_demand_due", "too_many", "replaced_in_vain",
}  # fmt: skip


def only(*names: str) -> Collection[str]:
    """What a guard is made without, so that these rules are all that it has."""
    assert set(names) <= ALL_RULES
    return ALL_RULES - set(names)


@dataclass(frozen=True)
class Lab:
    """One account; `tick` is a look of the guard so many minutes from now. S3's clock is the real one."""

    aws: Aws
    topic: str
    inbox: str  # a queue that the topic feeds
    began: float

    def client(self, service: str) -> Any:
        return client(self.aws, service)

    def guard(self, without: Collection[str] = ()) -> Guard:
        settings = GuardSettings.from_environ({
            "INSTALLATION": INSTALLATION.name, "BUCKET": BUCKET, "TOPIC": self.topic,
            "GROUPS": ",".join(INSTALLATION.groups),
        })  # fmt: skip
        return Guard(self.client, settings, without)

    def tick(self, minutes: float = 0.0) -> list[str]:
        """By a guard that remembers nothing, as after a cold start of the function."""
        return self.guard().tick(self.began + minutes * 60)

    def launch(self, run_id: str = RUN, group: str = INSTALLATION.train_group, nodes: int = 1, **spec: Any) -> Spec:
        """As the operator's `launch` does it, without its checks: a run that may use the on-demand group, too."""
        wanted = {"budget_usd": 10.0, "hours": 10.0, "created": self.began, "deadline": self.began + 36000}
        launched = Spec(**{"run_id": run_id, "prices": PRICES, "nodes": nodes, **wanted, **spec})
        self.put(run_key(run_id, "spec.json"), launched.to_json())
        autoscaling = self.client("autoscaling")
        groups = (group, INSTALLATION.on_demand_group) if group == INSTALLATION.train_group else (group,)
        fleet.assign(autoscaling, groups, run_id, launched.deadline)
        for name in schedule_names(run_id)[: len(groups)]:
            self.client("scheduler").create_schedule(
                GroupName=INSTALLATION.schedule_group, Name=name, ScheduleExpression="at(2099-01-01T00:00:00)",
                FlexibleTimeWindow={"Mode": "OFF"},
                Target={"Arn": "arn:aws:scheduler:::aws-sdk:autoscaling:setDesiredCapacity",
                        "RoleArn": "arn:aws:iam::123456789012:role/stop", "Input": "{}"},
            )  # fmt: skip
        fleet.scale(autoscaling, group, nodes)
        return launched

    def put(self, key: str, body: bytes | Mapping[str, Any]) -> None:
        self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body if isinstance(body, bytes) else json.dumps(body))

    def get(self, key: str) -> bytes:
        return bytes(self.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def beat(self, step: int = 1, phase: str = "training", attempt: int = 1) -> None:
        """A heartbeat, now."""
        self.put(run_key(RUN, "heartbeat.json"), {"phase": phase, "step": step, "progress": step, "attempt": attempt})

    def record(self, *machines: str, attempt: int = 1, phase: str = "training") -> None:
        """The records of machines of a run of several, now."""
        for id in machines:
            body = {"node": id, "role": "member", "attempt": attempt, "phase": phase}
            self.put(run_key(RUN, f"nodes/{id}.json"), body)

    def commit(self, step: int) -> None:
        """A checkpoint."""
        self.put(checkpoint_key(RUN, "HEAD.json"), Lease(attempt=1, newest=f"manifest-{step}").to_json())

    def desired(self, group: str = INSTALLATION.train_group) -> int:
        return group_state(self.client("autoscaling"), group).desired

    def machines(self, run_id: str = "") -> list[FleetMachine]:
        return fleet.machines(self.client("ec2"), INSTALLATION.name, run_id)

    def billing(self) -> list[str]:
        return [machine.id for machine in self.machines() if machine.is_billing]

    def memory(self, run_id: str = RUN) -> Memory:
        return Memory.from_json(self.get(run_key(run_id, "guard.json")))

    def spend(self, run_id: str = RUN) -> Spend:
        return Spend.from_json(self.get(run_key(run_id, "spend.json")))

    def schedules(self) -> list[str]:
        found = self.client("scheduler").list_schedules(GroupName=INSTALLATION.schedule_group)["Schedules"]
        return [schedule["Name"] for schedule in found]

    def mail(self) -> list[str]:
        """What the topic's subscriber has received since the last call."""
        found = []
        sqs = self.client("sqs")
        while received := sqs.receive_message(QueueUrl=self.inbox, MaxNumberOfMessages=10).get("Messages"):
            for message in received:
                told = json.loads(message["Body"])
                found.append(f"{told['Subject']}: {told['Message']}")
                sqs.delete_message(QueueUrl=self.inbox, ReceiptHandle=message["ReceiptHandle"])
        return found


def group_state(autoscaling: Any, name: str) -> fleet.Group:
    (found,) = fleet.read_groups(autoscaling, [name])
    return found


@cache
def client(aws: Aws, service: str) -> Any:
    """One for all tests: making one takes a third of a second."""
    return aws.client(service)


def make_lab(aws: Aws) -> Lab:
    make_group(aws, INSTALLATION.train_group, maximum=2)
    make_group(aws, INSTALLATION.on_demand_group, maximum=2, market=fleet.ON_DEMAND)
    make_group(aws, INSTALLATION.prepare_group, maximum=1)
    client(aws, "s3").create_bucket(Bucket=BUCKET)
    client(aws, "scheduler").create_schedule_group(Name=INSTALLATION.schedule_group)
    sns, sqs = client(aws, "sns"), client(aws, "sqs")
    topic = sns.create_topic(Name="guard")["TopicArn"]
    inbox = sqs.create_queue(QueueName="inbox")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=inbox, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    return Lab(aws, topic, inbox, time.time())


def make_group(aws: Aws, name: str, maximum: int = 1, market: str = fleet.SPOT) -> None:
    """A group of machines as the training stack makes it, in two zones."""
    ec2 = client(aws, "ec2")
    template = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12345678"})
    zones = {"Name": "availability-zone", "Values": ["us-east-1a", "us-east-1b"]}
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets(Filters=[zones])["Subnets"]]
    client(aws, "autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name, MinSize=0, MaxSize=maximum, DesiredCapacity=0, VPCZoneIdentifier=",".join(subnets),
        Tags=[{"Key": Tag.INSTALLATION, "Value": INSTALLATION.name, "PropagateAtLaunch": True,
               "ResourceId": name, "ResourceType": "auto-scaling-group"}],
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateId": template["LaunchTemplate"]["LaunchTemplateId"], "Version": "1",
                },
                "Overrides": [{"InstanceType": type} for type in PRICES],
            },
            "InstancesDistribution": {
                "OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": 100 * (market == fleet.ON_DEMAND),
            },
        },
    )  # fmt: skip
