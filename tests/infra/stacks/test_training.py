"""The training stack: its template as CloudFormation gets it. Permissions and walls are in test_security."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from infra.config import Installation, Output, Tag
from infra.operate.commands.cost import ALARMS
from infra.stacks.guards import GUARD_CODE
from infra.stacks.user_data import USER_DATA_BYTES, travelling, user_data
from tests import ROOT
from tests.infra.synthesized import VARIANTS, flat, stacks
from trainer.contract import UserError

pytestmark = pytest.mark.slow  # CDK runs in Node.js
INSTALLATION = Installation()


def cloud_config(machine: str) -> dict[str, Any]:
    text = flat(stacks().training.one("EC2::LaunchTemplate", machine)["LaunchTemplateData"]["UserData"])
    first, rest = text.split("\n", 1)
    assert first == "#cloud-config"
    found: dict[str, Any] = json.loads(rest)
    return found


def environment(machine: str) -> dict[str, str]:
    (file,) = [file for file in cloud_config(machine)["write_files"] if file["path"] == "/etc/resnet-spot.env"]
    return dict(line.split("=", 1) for line in file["content"].splitlines())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deploy_starts_no_machine_and_waits_for_none(variant: str) -> None:
    training = stacks(variant).training
    assert len(training.all("AutoScaling::AutoScalingGroup")) == 3
    for group in training.all("AutoScaling::AutoScalingGroup").values():
        assert group["MinSize"] == "0"
        assert "DesiredCapacity" not in group
    for resource in training.template["Resources"].values():
        assert not resource.keys() & {"CreationPolicy", "UpdatePolicy"}
    assert not training.all("EC2::Instance")


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_that_bills_by_the_hour_is_deployed(variant: str) -> None:
    allowed = {
        "EC2::VPC", "EC2::InternetGateway", "EC2::VPCGatewayAttachment", "EC2::RouteTable", "EC2::Route",
        "EC2::Subnet", "EC2::SubnetRouteTableAssociation", "EC2::VPCEndpoint", "EC2::SecurityGroup",
        "EC2::SecurityGroupIngress", "EC2::SecurityGroupEgress", "EC2::PlacementGroup", "EC2::LaunchTemplate",
        "AutoScaling::AutoScalingGroup", "IAM::Role",
        "IAM::Policy", "IAM::InstanceProfile", "Logs::LogGroup", "SNS::Topic", "SNS::TopicPolicy", "SNS::Subscription",
        "Lambda::Function", "Lambda::EventInvokeConfig", "Lambda::Permission", "Events::Rule", "CloudWatch::Alarm",
        "Scheduler::ScheduleGroup",
    }  # fmt: skip
    training = stacks(variant).training
    assert {found["Type"].removeprefix("AWS::") for found in training.template["Resources"].values()} <= allowed
    assert all(endpoint["VpcEndpointType"] == "Gateway" for endpoint in training.all("EC2::VPCEndpoint").values())
    assert len(training.all("CloudWatch::Alarm")) == ALARMS == 5  # 10 cents a month each


def test_three_public_subnets_reach_s3_without_the_internet() -> None:
    training = stacks().training
    zones = [subnet["AvailabilityZone"] for subnet in training.all("EC2::Subnet").values()]
    assert zones == [{"Fn::Select": [index, {"Fn::GetAZs": ""}]} for index in range(3)]
    (routes,) = training.all("EC2::RouteTable")
    assert all(
        one["RouteTableId"] == {"Ref": routes} for one in training.all("EC2::SubnetRouteTableAssociation").values()
    )
    assert len(training.all("EC2::SubnetRouteTableAssociation")) == 3
    endpoint = training.one("EC2::VPCEndpoint")
    assert endpoint["RouteTableIds"] == [{"Ref": routes}]
    assert flat(endpoint["ServiceName"]) == "com.amazonaws.<AWS::Region>.s3"
    assert training.one("EC2::Route")["DestinationCidrBlock"] == "0.0.0.0/0"


def test_the_subnets_are_in_the_zones_that_the_context_names() -> None:
    training = stacks("changed").training
    subnets = training.all("EC2::Subnet")
    assert [subnet["AvailabilityZone"] for subnet in subnets.values()] == ["us-east-1b", "us-east-1f"]
    for group in training.all("AutoScaling::AutoScalingGroup").values():
        assert group["VPCZoneIdentifier"] == [{"Ref": name} for name in subnets]


def test_in_a_given_vpc_nothing_but_the_security_group_is_made() -> None:
    training = stacks("given").training
    made = {found["Type"] for found in training.template["Resources"].values() if found["Type"].startswith("AWS::EC2")}
    assert made == {"AWS::EC2::SecurityGroup", "AWS::EC2::LaunchTemplate"}  # with max_nodes=1
    assert training.one("EC2::SecurityGroup")["VpcId"] == "vpc-0a"
    for group in training.all("AutoScaling::AutoScalingGroup").values():
        assert group["VPCZoneIdentifier"] == ["subnet-0a", "subnet-0b"]


def test_the_on_demand_machines_are_those_of_the_trainings_in_all_but_group_and_market() -> None:
    """A run goes on there with the same image, roles, disk and boot."""
    training = stacks().training
    spot, other = (training.one("EC2::LaunchTemplate", id)["LaunchTemplateData"] for id in ("Train", "OnDemand"))
    differs = {name for name in spot if spot[name] != other[name]}
    assert differs == {"IamInstanceProfile", "TagSpecifications", "UserData"}
    profiles = [training.one("IAM::InstanceProfile", id)["Roles"] for id in ("Train", "OnDemand")]
    assert profiles[0] == profiles[1]
    told = environment("OnDemand")
    assert told.pop("GROUP") == INSTALLATION.on_demand_group
    assert told.items() <= environment("Train").items()


@pytest.mark.parametrize("machine", ["Train", "OnDemand", "Prepare"])
def test_a_machine_that_powers_off_is_terminated_and_never_replaced_early(machine: str) -> None:
    training = stacks().training
    data = training.one("EC2::LaunchTemplate", machine)["LaunchTemplateData"]
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    group = training.one("AutoScaling::AutoScalingGroup", machine)
    assert group["CapacityRebalance"] is False
    assert group["NewInstancesProtectedFromScaleIn"] is False
    assert group["HealthCheckType"] == "EC2"


@pytest.mark.parametrize(("machine", "gib"), [("Train", 120), ("OnDemand", 120), ("Prepare", 450)])
def test_the_disk_is_gp3_and_as_large_as_the_machine_needs(machine: str, gib: int) -> None:
    (disk,) = stacks().training.one("EC2::LaunchTemplate", machine)["LaunchTemplateData"]["BlockDeviceMappings"]
    assert (disk["DeviceName"], disk["Ebs"]["VolumeType"], disk["Ebs"]["VolumeSize"]) == ("/dev/sda1", "gp3", gib)


def test_the_ami_is_the_newest_deep_learning_one_at_the_deploy() -> None:
    training = stacks().training
    (name,) = {
        template["LaunchTemplateData"]["ImageId"]["Ref"] for template in training.all("EC2::LaunchTemplate").values()
    }
    assert training.template["Parameters"][name] == {
        "Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
        "Default": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
    }


def test_what_runs_and_what_it_leaves_behind_bears_the_tag_of_the_installation() -> None:
    own = {"Key": Tag.INSTALLATION, "Value": "resnet-spot"}
    training = stacks().training
    for template in training.all("EC2::LaunchTemplate").values():
        tagged = {spec["ResourceType"]: spec["Tags"] for spec in template["LaunchTemplateData"]["TagSpecifications"]}
        assert tagged.keys() == {"instance", "volume", "network-interface"}
        assert all(own in tags for tags in tagged.values())
        assert own in template["TagSpecifications"][0]["Tags"]
    for group in training.all("AutoScaling::AutoScalingGroup").values():
        assert {**own, "PropagateAtLaunch": True} in group["Tags"]
    for stack in (stacks().storage, training):
        for id, resource in stack.template["Resources"].items():
            tags = resource.get("Properties", {}).get("Tags")
            assert tags is None or any(own.items() <= tag.items() for tag in tags), id
    untaggable = {"VPCGatewayAttachment", "Route", "SubnetRouteTableAssociation", "InstanceProfile", "TopicPolicy",
                  "EventInvokeConfig", "Permission", "LaunchTemplate", "Policy", "SecurityGroupEgress",
                  "SecurityGroupIngress"}  # fmt: skip
    without = {
        r["Type"].split("::")[2] for r in training.template["Resources"].values() if "Tags" not in r["Properties"]
    }
    assert without <= untaggable


def test_every_resource_machine_and_volume_bears_the_tags_of_the_organisation() -> None:
    ours = {"team": "vision research", "cost:center": "4/2=2", Tag.INSTALLATION: "resnet-spot"}
    for stack in (stacks("changed").storage, stacks("changed").training):
        for id, resource in stack.template["Resources"].items():
            if tags := resource.get("Properties", {}).get("Tags"):
                assert ours.items() <= {tag["Key"]: tag["Value"] for tag in tags}.items(), id
                assert all(tag.get("PropagateAtLaunch", True) for tag in tags), id
    for template in stacks("changed").training.all("EC2::LaunchTemplate").values():
        for spec in (*template["TagSpecifications"], *template["LaunchTemplateData"]["TagSpecifications"]):
            assert ours.items() <= {tag["Key"]: tag["Value"] for tag in spec["Tags"]}.items()


@pytest.mark.parametrize("machine", ["Train", "OnDemand", "Prepare"])
def test_the_user_data_carries_every_file_of_the_boot_and_installs_it(machine: str) -> None:
    config = cloud_config(machine)
    packed = config["write_files"][0]
    assert packed["encoding"] == "b64"
    unpack, install = config["runcmd"]
    assert unpack == ["python3", "-m", "tarfile", "--extract", packed["path"], "/opt/resnet-spot"]
    assert install == ["/opt/resnet-spot/install"]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed["content"]))) as tar:
        carried = {one.name: (one.mode, tar.extractfile(one)) for one in tar}
        found = {name: (mode, file.read()) for name, (mode, file) in carried.items() if file}
    assert found == {name: (0o755, content) for name, content in travelling().items()}
    assert found.keys() == {file.name for file in (ROOT / "infra/boot").iterdir() if file.is_file()}
    assert config.keys() == {"write_files", "runcmd"}


def test_the_machines_are_told_what_the_boot_reads() -> None:
    image = "${AWS::AccountId}.dkr.ecr.${AWS::Region}.${AWS::URLSuffix}/cdk-hnb659fds-container-assets-"
    train, prepare = environment("Train"), environment("Prepare")
    assert re.fullmatch(f"{INSTALLATION.image_tag_prefix}[0-9a-f]{{64}}", train["IMAGE"].rpartition(":")[2])
    assert train.pop("IMAGE").startswith(image)
    assert prepare.pop("IMAGE").startswith(image)
    shared = {
        "STORE": "s3://bucket-name",
        "LOG_GROUP": "/resnet-spot/runs",
        "SECRET": "SECRET",
        "REGION": "<AWS::Region>",
    }
    assert train == {
        **shared,
        "GROUP": INSTALLATION.train_group,
        "KIND": "train",
        "GPU": "--gpus all",
        "RUN_ROLE": "<TrainRunRole.Arn>",
    }
    assert prepare == {
        **shared,
        "GROUP": INSTALLATION.prepare_group,
        "KIND": "prepare",
        "GPU": "",
        "RUN_ROLE": "<PrepareRunRole.Arn>",
    }


def test_user_data_that_ec2_would_refuse_is_refused_at_synthesis(tmp_path: Path) -> None:
    assert len(user_data({}, tmp_path)) < USER_DATA_BYTES
    (tmp_path / "large").write_bytes(os.urandom(USER_DATA_BYTES))
    with pytest.raises(UserError, match=r"make \d+ bytes of user data, and EC2 takes 16384: shorten them"):
        user_data({}, tmp_path)


def test_the_guard_runs_every_minute_and_never_twice_at_a_time() -> None:
    training = stacks().training
    guard = training.one("Lambda::Function")
    assert (guard["FunctionName"], guard["Handler"]) == (INSTALLATION.guard_function, "infra.guard.handler")
    rule = training.one("Events::Rule")
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 minute)", "ENABLED")
    (target,) = rule["Targets"]
    assert flat(target["Arn"]) == "<GuardFunction.Arn>"
    assert guard["Timeout"] < 60
    assert target["RetryPolicy"] == {"MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 0}
    invoke = training.one("Lambda::EventInvokeConfig")
    assert (invoke["MaximumEventAgeInSeconds"], invoke["MaximumRetryAttempts"]) == (60, 0)
    assert "ReservedConcurrentExecutions" not in guard


def test_the_guard_is_told_what_to_watch() -> None:
    assert flat(stacks().training.one("Lambda::Function")["Environment"]["Variables"]) == {
        "INSTALLATION": "resnet-spot",
        "BUCKET": "bucket-name",
        "TOPIC": "<Topic>",
        "GROUPS": "resnet-spot-train,resnet-spot-on-demand,resnet-spot-prepare",
    }


def test_logs_go_after_thirty_days_and_with_the_stack() -> None:
    training = stacks().training
    groups = training.all("Logs::LogGroup")
    names = {group["LogGroupName"] for group in groups.values()}
    assert names == {INSTALLATION.log_group, "/aws/lambda/resnet-spot-guard"}
    for id, group in groups.items():
        assert group["RetentionInDays"] == 30
        assert training.template["Resources"][id]["DeletionPolicy"] == "Delete"


def test_the_stack_tells_what_the_operator_needs() -> None:
    outputs = stacks().training.template["Outputs"]
    assert outputs.keys() == {
        Output.IMAGE, Output.TOPIC, Output.SCHEDULER_ROLE, Output.SUBNETS, Output.PLACEMENT_GROUP
    }  # fmt: skip
    assert flat(outputs[Output.SCHEDULER_ROLE]["Value"]) == "<StopSchedulesRole.Arn>"
    assert stacks().training.one("Scheduler::ScheduleGroup")["Name"] == INSTALLATION.schedule_group
    given = stacks("given").training.template["Outputs"]
    assert given[Output.IMAGE]["Value"] == VARIANTS["given"]["image_uri"]


def test_the_guards_code_is_all_that_it_imports(tmp_path: Path) -> None:
    for path in GUARD_CODE:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, target)
    done = subprocess.run(
        [sys.executable, "-c", "import infra.guard; infra.guard.handler"],
        cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
