"""Both stacks in the emulated account, small but with the real names and tags, and the files that a run leaves."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from infra.config import Installation, Output, Tag
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.emulator.aws import Aws
from tests.emulator.aws_images import MANIFEST
from tests.emulator.registry import Registry
from trainer.contract import Lease, attempt_key, checkpoint_key, manifest_key, metrics_key, run_key, snapshot_key

INSTALLATION = Installation()
RUN = "rn50-20260101-ab12"
IMAGE_TAG = INSTALLATION.image_tag_prefix + "1f" * 32
MACHINE_ROLE = f"{INSTALLATION.training_stack}-Role-of-machines"  # no name that CloudFormation makes: it is not swept
SCHEDULER_ROLE = f"arn:aws:iam::123456789012:role/{INSTALLATION.training_stack}-SchedulerRole0A1B2C3D-A1B2C3D4"
REPOSITORY = "cdk-hnb659fds-container-assets-123456789012-us-east-1"


def tags(**more: str) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in ({Tag.INSTALLATION: INSTALLATION.name} | more).items()]


def storage_template() -> dict[str, Any]:
    return {
        "Resources": {
            "Bucket": {
                "Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain",
                "Properties": {"Tags": tags(), "VersioningConfiguration": {"Status": "Enabled"}},
            },
            "Secret": {
                "Type": "AWS::SecretsManager::Secret", "DeletionPolicy": "Retain",
                "Properties": {"Name": INSTALLATION.secret_name, "Tags": tags()},
            },
        },
        "Outputs": {Output.BUCKET: {"Value": {"Ref": "Bucket"}}, Output.SECRET: {"Value": {"Ref": "Secret"}}},
    }  # fmt: skip


def group_resource(name: str, template: str, on_demand: int = 0) -> dict[str, Any]:
    return {
        "Type": "AWS::AutoScaling::AutoScalingGroup",
        "Properties": {
            "AutoScalingGroupName": name, "MinSize": "0", "MaxSize": "3", "DesiredCapacity": "0",
            "VPCZoneIdentifier": [{"Ref": "Subnet"}],
            "Tags": [{"Key": Tag.INSTALLATION, "Value": INSTALLATION.name, "PropagateAtLaunch": True}],
            "MixedInstancesPolicy": {
                "LaunchTemplate": {
                    "LaunchTemplateSpecification": {
                        "LaunchTemplateId": {"Ref": template},
                        "Version": {"Fn::GetAtt": [template, "LatestVersionNumber"]},
                    },
                    "Overrides": [{"InstanceType": "g6.xlarge"}, {"InstanceType": "g5.xlarge"}],
                },
                "InstancesDistribution": {"OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": on_demand},
            },
        },
    }  # fmt: skip


def training_template() -> dict[str, Any]:
    image = f"${{AWS::AccountId}}.dkr.ecr.${{AWS::Region}}.${{AWS::URLSuffix}}/{REPOSITORY}:{IMAGE_TAG}"
    image = image.replace("123456789012-us-east-1", "${AWS::AccountId}-${AWS::Region}")  # as CDK writes it
    return {
        "Resources": {
            "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.0.0.0/16", "Tags": tags()}},
            "Subnet": {
                "Type": "AWS::EC2::Subnet",
                "Properties": {
                    "CidrBlock": "10.0.0.0/24", "VpcId": {"Ref": "Vpc"}, "AvailabilityZone": "us-east-1b",
                    "Tags": tags(),
                },
            },
            "OtherSubnet": {
                "Type": "AWS::EC2::Subnet",
                "Properties": {
                    "CidrBlock": "10.0.1.0/24", "VpcId": {"Ref": "Vpc"}, "AvailabilityZone": "us-east-1c",
                    "Tags": tags(),
                },
            },
            "Placement": {"Type": "AWS::EC2::PlacementGroup", "Properties": {"Strategy": "cluster", "Tags": tags()}},
            "LaunchTemplate": {
                "Type": "AWS::EC2::LaunchTemplate",
                "Properties": {
                    "LaunchTemplateData": {
                        "ImageId": "ami-12345678",
                        "IamInstanceProfile": {"Arn": {"Fn::GetAtt": ["Profile", "Arn"]}},
                        "TagSpecifications": [
                            {"ResourceType": kind, "Tags": tags()}
                            for kind in ("instance", "volume", "network-interface")
                        ],
                    },
                    "TagSpecifications": [{"ResourceType": "launch-template", "Tags": tags()}],
                },
            },
            "Role": {
                "Type": "AWS::IAM::Role",
                "Properties": {"RoleName": MACHINE_ROLE, "AssumeRolePolicyDocument": {"Statement": []}},
            },
            "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [{"Ref": "Role"}]}},
            "Train": group_resource(INSTALLATION.train_group, "LaunchTemplate"),
            "OnDemand": group_resource(INSTALLATION.on_demand_group, "LaunchTemplate", 100),
            "Prepare": group_resource(INSTALLATION.prepare_group, "LaunchTemplate"),
            "Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": INSTALLATION.log_group}},
            "Schedules": {
                "Type": "AWS::Scheduler::ScheduleGroup", "Properties": {"Name": INSTALLATION.schedule_group}
            },
            "Topic": {
                "Type": "AWS::SNS::Topic", "Properties": {"TopicName": f"{INSTALLATION.training_stack}-Topic-A1B2"}
            },
        },
        "Outputs": {
            Output.IMAGE: {"Value": {"Fn::Sub": image}},
            Output.TOPIC: {"Value": {"Ref": "Topic"}},
            Output.SCHEDULER_ROLE: {"Value": SCHEDULER_ROLE},
            Output.SUBNETS: {"Value": {"Fn::Join": [",", [{"Ref": "Subnet"}, {"Ref": "OtherSubnet"}]]}},
            Output.PLACEMENT_GROUP: {"Value": {"Ref": "Placement"}},
        },
    }  # fmt: skip


client = cache(Aws.client)  # making one takes longer than using it


@dataclass(frozen=True)
class Deployed:
    """The account after `make deploy`."""

    aws: Aws

    @property
    def bucket(self) -> str:
        (found,) = [b["Name"] for b in client(self.aws, "s3").list_buckets()["Buckets"]]
        return str(found)

    def put(self, key: str, body: bytes | Mapping[str, Any]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client(self.aws, "s3").put_object(Bucket=self.bucket, Key=key, Body=data)

    def launch(self, run_id: str = RUN, *, nodes: int = 1, kind: str = "train", hours: float = 10) -> Spec:
        """What `launch` leaves, without its checks."""
        now = time.time()
        spec = Spec(
            run_id=run_id, kind=kind, recipe="rn50" if kind == "train" else "", budget_usd=10, hours=hours, nodes=nodes,
            created=now, deadline=now + hours * 3600, prices={"g6.xlarge": 0.8},
        )  # fmt: skip
        self.put(run_key(run_id, "spec.json"), spec.to_json())
        group = INSTALLATION.train_group if kind == "train" else INSTALLATION.prepare_group
        autoscaling = client(self.aws, "autoscaling")
        fleet.assign(autoscaling, [group], run_id, spec.deadline)
        client(self.aws, "scheduler").create_schedule(
            GroupName=INSTALLATION.schedule_group, Name=run_id, ScheduleExpression="at(2099-01-01T00:00:00)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": "arn:aws:scheduler:::aws-sdk:autoscaling:setDesiredCapacity",
                    "RoleArn": "arn:aws:iam::123456789012:role/stop", "Input": "{}"},
        )  # fmt: skip
        fleet.scale(autoscaling, group, nodes)
        return spec

    def train_to(self, step: int, *, run_id: str = RUN, attempt: int = 1, machine: str = "g6.xlarge") -> None:
        """What a trainer, its uploader and the guard leave at a step of 1,000, 100 to the epoch, 250 images/s."""
        now = time.time()
        validated = step // 100 * 100
        self.put(attempt_key(run_id, attempt), {"attempt": attempt, "started": now, "machine": {"type": machine}})
        self.put(run_key(run_id, "config.json"), {"epochs": 10, "global_batch_size": 256})
        self.put(run_key(run_id, "heartbeat.json"), {
            "phase": "training", "step": step, "progress": step, "time": now, "attempt": attempt, "owner": "i-1",
        })  # fmt: skip
        begin = {"step": 0, "time": now, "event": "start", "attempt": attempt, "origin": 0}
        for first in range(0, step, 50):
            rows = [
                {"step": s, "time": now, "train/epoch": s / 100, "train/top1": 0.5} for s in range(first, first + 50)
            ]
            rows[-1]["speed/images_per_second"] = 250.0
            if first == validated:
                rows[0] |= {"val/top1": 0.61, "val_ema/top1": 0.625}
            body = "".join(json.dumps(row) + "\n" for row in ([begin] * (not first) + rows))
            self.put(metrics_key(run_id, attempt, f"{first:08d}-{first + 49:08d}.jsonl"), body.encode())
        manifest, data = manifest_key(run_id, step, attempt), snapshot_key(run_id, step, attempt)
        best = {"top1": 0.63, "step": max(100, validated - 100), "weights": "ema"}
        self.put(data, bytes(5_000_000))
        self.put(manifest, {
            "step": step, "time": now, "counters": {"step": step, "validated": validated, "best": best},
            "config": {"epochs": 10, "global_batch_size": 256}, "steps_per_epoch": 100,
            "object": {"key": data, "bytes": 5_000_000},
        })  # fmt: skip
        self.put(checkpoint_key(run_id, "HEAD.json"), Lease(attempt=attempt, newest=manifest, best=manifest).to_json())

    def spend(self, hours: float, usd_per_hour: float, run_id: str = RUN) -> None:
        """The guard's tally: one machine since so many hours."""
        now = time.time()
        machine = Machine(
            id=self.machines()[0].id, type="g6.xlarge", zone="us-east-1b", market="spot", launched=now - hours * 3600,
            usd_per_hour=usd_per_hour,
        )  # fmt: skip
        self.put(run_key(run_id, "spend.json"), Spend(at=now, machines=(machine,)).to_json())

    def end(self, name: str, message: str, run_id: str = RUN, attempt: int = 1) -> None:
        """`done` or `failed`, just now."""
        self.put(run_key(run_id, f"{name}.json"), {"attempt": attempt, "message": message, "ended": time.time()})

    def desired(self, group: str = INSTALLATION.train_group) -> int:
        (found,) = fleet.read_groups(client(self.aws, "autoscaling"), [group])
        return found.desired

    def machines(self) -> list[fleet.FleetMachine]:
        """Those that bill."""
        return [m for m in fleet.machines(client(self.aws, "ec2"), INSTALLATION.name) if m.is_billing]

    def keys(self) -> set[str]:
        found = client(self.aws, "s3").list_objects_v2(Bucket=self.bucket)
        return {entry["Key"] for entry in found.get("Contents", [])}

    def images(self) -> int:
        return len(client(self.aws, "ecr").list_images(repositoryName=REPOSITORY)["imageIds"])


def push_image(registry: Registry, tag: str = IMAGE_TAG) -> None:
    """An image of two blobs, as `docker push` leaves it; under the name that the stack's template has, or another."""
    base = f"http://{registry.host}/v2/{REPOSITORY}"

    def send(method: str, url: str, body: bytes = b"", type: str = "application/octet-stream") -> str:
        request = urllib.request.Request(url, body, {"Content-Type": type}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.headers.get("Location", ""))

    blobs = []
    for body in (b"{}", bytes(1000)):
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        send("PUT", f"{send('POST', f'{base}/blobs/uploads/')}&digest={digest}", body)
        blobs.append({"mediaType": "application/octet-stream", "size": len(body), "digest": digest})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": blobs[0], "layers": blobs[1:]}
    send("PUT", f"{base}/manifests/{tag}", json.dumps(manifest).encode(), MANIFEST)


def deploy(aws: Aws, *, without: Collection[str] = ()) -> Deployed:
    """`without` some resources of the training stack, as an older version deployed it."""
    training = training_template()
    for id in without:
        del training["Resources"][id]
        training["Outputs"] = {name: one for name, one in training["Outputs"].items() if one["Value"] != {"Ref": id}}
    ecr = client(aws, "ecr")
    if not ecr.describe_repositories()["repositories"]:
        ecr.create_repository(repositoryName=REPOSITORY)
    cloudformation = client(aws, "cloudformation")
    for name, template in (
        (INSTALLATION.storage_stack, storage_template()), (INSTALLATION.training_stack, training),
    ):  # fmt: skip
        cloudformation.create_stack(
            StackName=name, TemplateBody=json.dumps(template), Tags=tags(), Capabilities=["CAPABILITY_IAM"]
        )
    return Deployed(aws)
