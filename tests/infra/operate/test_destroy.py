"""`destroy`: nothing is left by AWS's own word, whatever state it begins in; the data stays unless purged."""

from __future__ import annotations

import signal
import sys
import time

import botocore.exceptions
import pytest

from infra.config import Installation
from infra.operate.commands import destroy, stop
from infra.operate.installation import leftovers
from infra.operate.installation.standing import Kept, print_kept
from infra.operate.session import AwsError, ExitCode
from infra.run.spend import Spend
from tests.emulator.aws import Aws
from tests.emulator.registry import Registry
from tests.infra.deployed import INSTALLATION, RUN, Commands, Deployed, client, deploy, operate, operator, push_image
from trainer.contract import UserError, run_key

ZERO = ExitCode.DONE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps in less time."""
    for module in (destroy, stop):
        monkeypatch.setattr(module, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(destroy, "SETTLE_SECONDS", 0.5)


@pytest.fixture
def deployed(aws: Aws) -> Deployed:
    return deploy(aws)


def stacks(aws: Aws) -> set[str]:
    return {stack["StackName"] for stack in client(aws, "cloudformation").describe_stacks()["Stacks"]}


def left(installation: Installation = INSTALLATION) -> list[str]:
    return [one.service for one in leftovers.find(operator(), installation)]


def test_a_running_installation_is_gone_and_its_data_kept_with_its_price(
    deployed: Deployed, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.aws.set(registry=registry.host)
    push_image(registry)
    deployed.launch(nodes=2)
    deployed.train_to(150)
    kept = deployed.keys()
    assert left()[:4] == ["Auto Scaling group", "Auto Scaling group", "EC2 instance, running", "EC2 instance, running"]
    assert operate("destroy") == ZERO
    assert left() == []
    assert deployed.machines() == []
    assert deployed.images() == 0
    assert stacks(deployed.aws) == {INSTALLATION.storage_stack}
    assert deployed.keys() == kept | {run_key(RUN, "spend.json")}
    text = capsys.readouterr().out
    assert f"run {RUN} is active: its machine saves and stops; checkpoints are kept" in text
    assert "nothing is left by the word of EC2, EBS" in text
    assert f"data   s3://{deployed.bucket}  5.0 MB in {len(kept) + 1} objects  $0.00 a month" in text
    assert "make destroy PURGE=1" in text


def test_the_tally_of_the_run_gets_its_end(deployed: Deployed) -> None:
    deployed.launch()
    deployed.spend(hours=2, usd_per_hour=0.5)
    assert operate("destroy") == ZERO
    tally = client(deployed.aws, "s3").get_object(Bucket=deployed.bucket, Key=run_key(RUN, "spend.json"))
    (machine,) = Spend.from_json(tally["Body"].read()).machines
    assert machine.launched < machine.ended <= time.time()


def test_a_second_time_and_with_nothing_deployed_it_is_done(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operate("destroy") == ZERO
    capsys.readouterr()
    assert operate("destroy") == ZERO
    assert "no resnet-spot-training is deployed here" in capsys.readouterr().out
    deployed.aws.reset()
    assert operate("destroy") == ZERO
    text = capsys.readouterr().out
    assert "no resnet-spot-training is deployed here" in text
    assert "no data is kept either" in text


def test_money_stops_first(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.clear_calls()
    operate("destroy")
    calls = [call for call in deployed.aws.calls() if call.split(".")[1].startswith(("Set", "Terminate", "Delete"))]
    assert calls[0] == "autoscaling.SetDesiredCapacity"
    assert calls.index("scheduler.DeleteSchedule") < calls.index("cloudformation.DeleteStack")


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "UPDATE_ROLLBACK_FAILED", "DELETE_FAILED"])
def test_a_stack_in_a_bad_state_is_deleted(deployed: Deployed, status: str) -> None:
    deployed.aws.set(stack_status={INSTALLATION.training_stack: status})
    assert operate("destroy") == ZERO
    assert left() == []


def test_what_the_stack_cannot_delete_ends_with_5_and_a_command_for_each(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: "the VPC has dependencies"})
    assert operate("destroy") == ExitCode.LEFT_OVERS
    text = capsys.readouterr().out
    assert "left over:" in text
    assert f"aws cloudformation delete-stack --stack-name {INSTALLATION.training_stack}" in text
    assert "aws ec2 delete-vpc --vpc-id vpc-" in text
    assert "`make destroy` again" in text
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: ""})
    assert operate("destroy") == ZERO


def test_resources_without_a_stack_are_found_by_tag_and_by_name_and_removed(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    aws, tags = deployed.aws, [{"Key": "resnet-spot", "Value": INSTALLATION.name}]
    subnet = client(aws, "ec2").describe_subnets(Filters=leftovers.tagged(INSTALLATION))["Subnets"][0]["SubnetId"]
    operate("destroy")
    assert left() == []

    ec2, stray = client(aws, "ec2"), {"ResourceType": "", "Tags": tags}
    ec2.create_volume(AvailabilityZone="us-east-1a", Size=8, TagSpecifications=[stray | {"ResourceType": "volume"}])
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=[stray | {"ResourceType": "network-interface"}])
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16", TagSpecifications=[stray | {"ResourceType": "vpc"}])["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24", TagSpecifications=[stray | {"ResourceType": "subnet"}])
    gateway = ec2.create_internet_gateway(TagSpecifications=[stray | {"ResourceType": "internet-gateway"}])
    ec2.attach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway["InternetGateway"]["InternetGatewayId"])
    ec2.create_launch_template(
        LaunchTemplateName="old", LaunchTemplateData={"ImageId": "ami-12345678"},
        TagSpecifications=[stray | {"ResourceType": "launch-template"}],
    )  # fmt: skip
    ec2.run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=[stray | {"ResourceType": "instance"}]
    )
    logs = client(aws, "logs")
    logs.create_log_group(logGroupName=INSTALLATION.log_group)
    logs.create_log_group(logGroupName=f"/aws/lambda/{INSTALLATION.guard_function}")
    logs.create_log_group(logGroupName=f"{INSTALLATION.log_group}-of-somebody-else")
    client(aws, "scheduler").create_schedule_group(Name=INSTALLATION.schedule_group)
    client(aws, "sns").create_topic(Name=f"{INSTALLATION.training_stack}-Topic-A1B2")
    events = client(aws, "events")
    events.put_rule(Name=f"{INSTALLATION.training_stack}-Rule-A1B2", ScheduleExpression="rate(1 minute)")
    events.put_targets(
        Rule=f"{INSTALLATION.training_stack}-Rule-A1B2",
        Targets=[{"Id": "1", "Arn": "arn:aws:lambda:us-east-1:123456789012:function:x"}],
    )  # fmt: skip
    client(aws, "cloudwatch").put_metric_alarm(
        AlarmName=f"{INSTALLATION.training_stack}-Silent-A1B2", MetricName="Errors", Namespace="AWS/Lambda", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanThreshold", Statistic="Sum",
    )  # fmt: skip
    kinds = {
        "EBS volume, 8 GiB, available", "network interface", "VPC", "subnet", "internet gateway", "launch template",
        "EC2 instance, running", "log group", "schedule group", "SNS topic", "EventBridge rule", "CloudWatch alarm",
    }  # fmt: skip
    assert kinds <= set(left())
    capsys.readouterr()
    assert operate("destroy") == ZERO
    assert left() == []
    assert [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]] == [
        f"{INSTALLATION.log_group}-of-somebody-else"
    ]
    assert len(ec2.describe_vpcs()["Vpcs"]) == 1  # the account's own


def test_what_only_hands_can_remove_is_in_the_table(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    role = f"{INSTALLATION.training_stack}-TrainRole-A1B2"
    client(deployed.aws, "iam").create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    assert operate("destroy") == ExitCode.LEFT_OVERS
    assert f"IAM role  {role}  aws iam delete-role --role-name {role}" in capsys.readouterr().out


def test_an_image_whose_stack_is_gone_already_is_found_by_its_tag(deployed: Deployed, registry: Registry) -> None:
    deployed.aws.set(registry=registry.host)
    operate("destroy")
    push_image(registry)
    assert left() == ["ECR image"]
    assert operate("destroy") == ZERO
    assert deployed.images() == 0


def test_another_installations_things_are_not_touched(deployed: Deployed) -> None:
    other = Installation(name="other")
    ec2 = client(deployed.aws, "ec2")
    ec2.run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "resnet-spot", "Value": "other"}]}],
    )  # fmt: skip
    client(deployed.aws, "logs").create_log_group(logGroupName=other.log_group)
    sequel = Installation(name="resnet-spot-training-2")  # its names begin as ours do
    client(deployed.aws, "sns").create_topic(Name=f"{sequel.training_stack}-Topic-A1B2")
    client(deployed.aws, "s3").create_bucket(Bucket="resnet-spot-storage-of-mine")
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert left(other) == ["EC2 instance, running", "log group"]
    assert left(sequel) == ["SNS topic"]
    assert [b["Name"] for b in client(deployed.aws, "s3").list_buckets()["Buckets"]] == ["resnet-spot-storage-of-mine"]


def test_a_service_that_cannot_be_asked_is_not_taken_for_empty(deployed: Deployed) -> None:
    deployed.aws.fault("lambda.GetFunction", "AccessDeniedException", status=403)
    with pytest.raises(AwsError, match=r"what is left: functions: AWS refused .*administrator"):
        operate("destroy")


def test_purge_empties_the_bucket_with_versions_and_uploads_and_deletes_the_token(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    s3, bucket = client(deployed.aws, "s3"), deployed.bucket
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for number in range(3):
        deployed.put("datasets/a", str(number).encode())
    s3.delete_object(Bucket=bucket, Key="datasets/a")
    s3.create_multipart_upload(Bucket=bucket, Key="checkpoints/big")
    client(deployed.aws, "secretsmanager").put_secret_value(SecretId=INSTALLATION.secret_name, SecretString="hf_x")
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert s3.list_buckets()["Buckets"] == []
    assert client(deployed.aws, "secretsmanager").list_secrets()["SecretList"] == []
    assert stacks(deployed.aws) == set()
    text = capsys.readouterr().out
    assert f"deleted: s3://{bucket}" in text
    assert "no data is kept either" in text
    assert "stays, with the templates and the guard's code of past deploys in its bucket" in text
    assert operate("destroy", "--purge", "--yes") == ZERO


def test_purge_finds_a_bucket_that_an_earlier_storage_stack_left(deployed: Deployed) -> None:
    deployed.put("datasets/a", b"1")
    client(deployed.aws, "cloudformation").delete_stack(StackName=INSTALLATION.storage_stack)
    assert deployed.keys() == {"datasets/a"}
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert client(deployed.aws, "s3").list_buckets()["Buckets"] == []


def test_purge_asks_on_a_terminal_and_refuses_without_one(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    with pytest.raises(UserError, match=r"--yes"):
        operate("destroy", "--purge")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    with pytest.raises(UserError, match="not confirmed: nothing was deleted"):
        operate("destroy", "--purge")
    assert deployed.desired() == 1
    assert "for ever" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda prompt: INSTALLATION.name)
    assert operate("destroy", "--purge") == ZERO


def test_an_interrupted_destroy_is_finished_by_the_next(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.launch()
    for step in ("wait_until_gone", "delete_schedules", "delete_stack", "sweep"):
        with monkeypatch.context() as patch:
            patch.setattr(destroy, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                operate("destroy")
    assert operate("destroy") == ZERO
    assert left() == []


def test_the_command_itself_survives_ctrl_c_and_ends_with_the_exit_codes_of_the_table(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: "a dependency"})
    with Commands(deployed.aws) as commands:
        command = commands.start("destroy")
        command.wait_for(lambda: any("deleting the stack" in line for line in command.lines))
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 130
        assert any("goes on from here" in note for note in command.notes)
        assert deployed.machines() == []
        deployed.aws.fault("cloudformation.DeleteStack", "AccessDenied")
        command = commands.start("destroy")
        assert command.end() == ExitCode.REFUSED
        assert any("administrator" in note for note in command.notes)
        deployed.aws.heal()
        deployed.aws.set(delete_failures={INSTALLATION.training_stack: ""})
        command = commands.start("destroy")
        assert command.end() == ExitCode.DONE


def test_keeping_imagenet_has_the_price_of_s3(capsys: pytest.CaptureFixture[str]) -> None:
    print_kept([Kept("data", "s3://b", "50.0 GB", 50 * 0.023), Kept("token", "secret t", "", 0.4)])
    assert "together $1.55 a month, $0.05 a day" in capsys.readouterr().out


def test_there_is_nothing_that_the_stack_makes_and_nobody_asks_for(deployed: Deployed) -> None:
    """Each resource of the small stack is one that `find` lists, but the schedules' group's schedules."""
    operator_groups = left()
    resources = client(deployed.aws, "cloudformation").list_stack_resources(StackName=INSTALLATION.training_stack)
    kinds = {resource["ResourceType"] for resource in resources["StackResourceSummaries"]}
    named = {
        "AWS::EC2::VPC": "VPC", "AWS::EC2::Subnet": "subnet", "AWS::EC2::LaunchTemplate": "launch template",
        "AWS::AutoScaling::AutoScalingGroup": "Auto Scaling group", "AWS::Logs::LogGroup": "log group",
        "AWS::Scheduler::ScheduleGroup": "schedule group", "AWS::SNS::Topic": "SNS topic",
    }  # fmt: skip
    assert {named[kind] for kind in kinds} <= set(operator_groups)


def test_no_network_is_an_error_with_a_fix(deployed: Deployed) -> None:
    deployed.aws.fault("cloudformation.*", "network")
    with pytest.raises(AwsError, match=r"AWS cannot be reached: .*check the network") as error:
        operate("destroy")
    assert isinstance(error.value.__cause__, botocore.exceptions.BotoCoreError)
