"""The states of an account in which a command asks AWS something else, by command: tests of `policy` run them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from infra.operate.commands import logs
from infra.operate.ends import EndTeller
from infra.operate.installation import cdk
from infra.operate.runs import need_bucket
from tests.infra import hub
from tests.infra.deployed import INSTALLATION, REPOSITORY, RUN, client, push_image, tags
from tests.infra.operate.builder import PUSHES, forget_images, make_builder_stack, put_source
from tests.infra.operate.desk import Desk
from tests.infra.operate.log_writer import Writer
from tests.infra.operate.removals import (
    destroy,
    destroy_a_stack_that_stays,
    destroy_what_stacks_have_left,
    destroy_while_a_build_runs,
    purge,
)
from tests.infra.operator import GIVEN_IMAGE, prepare_account

IMAGE = ("-c", f"image_uri={GIVEN_IMAGE}")
CAPACITY = "UnfulfillableCapacity - Unable to fulfill capacity"
NO_QUOTA = {"L-3819A6DF": 0.0, "L-34B43A08": 0.0}
SPLIT = {
    "images": 10,
    "sizes": [
        {
            "short_side": 256,
            "quality": 90,
            "shards": [{"file": "a.arrow", "images": 10, "bytes": 2_000_000_000, "crc32": 1}],
        }
    ],
}
INDEX = {"splits": {"train": SPLIT, "val": {"images": 0, "sizes": []}}}
Scenario = Callable[[Desk], None]


def status(desk: Desk) -> None:
    """With nothing there, while no machine comes, while it trains, after its end, and while nothing runs."""
    desk.run("status")
    account = desk.ready()
    desk.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    account.launch()
    desk.run("status")
    desk.aws.set(launch_failures={INSTALLATION.train_group: ""})
    client(desk.aws, "autoscaling").describe_auto_scaling_groups()
    account.train_to(150)
    desk.run("status", "--json")
    account.end("failed", "no room")
    desk.run("status", "--run", RUN)
    push_image(desk.registry)
    desk.empty_groups()
    desk.run("status")


def follow(desk: Desk) -> None:
    account = desk.ready()
    account.launch()
    Writer(desk.aws).write("a line")
    desk.run("logs", "--no-follow")
    account.end("done", "it is done")
    desk.run("logs")
    desk.empty_groups()
    desk.run("logs")


def wait_for_a_machine(desk: Desk) -> None:
    account = desk.ready()
    desk.aws.set(launch_failures={INSTALLATION.train_group: CAPACITY})
    account.launch()
    aws = desk.operator()
    bucket = need_bucket(aws, INSTALLATION)
    assert not logs.find_ending(aws, INSTALLATION, bucket, RUN, logs.Screen(), EndTeller(bucket, RUN))


def runs(desk: Desk) -> None:
    desk.run("runs")
    account = desk.ready()
    account.launch()
    account.train_to(150)
    account.put("runs/other/spec.json", b"{}")
    desk.run("runs")


def cost(desk: Desk) -> None:
    desk.run("cost", "--recipe", "finetune")
    account = desk.ready()
    push_image(desk.registry)
    account.put("datasets/imagenet-1k/v1/index.json", INDEX)
    account.launch()
    account.train_to(150)
    desk.run("cost")
    desk.run("cost", "--run", RUN)


def pull(desk: Desk) -> None:
    account = desk.ready()
    account.launch()
    account.train_to(150)
    desk.run("pull", "--to", str(desk.folder))
    desk.run("pull", "--to", str(desk.folder), "--checkpoints")
    desk.run("pull", "--to", str(desk.folder), "--run", "other", code=2)


def stop(desk: Desk) -> None:
    """With nothing there; a run, a machine outside the groups, and a group whose minimum somebody has raised."""
    desk.run("stop")
    account = desk.ready()
    account.launch()
    stray = [{"ResourceType": "instance", "Tags": tags()}]
    client(desk.aws, "ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=stray)
    desk.raise_minimum()
    desk.run("stop")


def shell(desk: Desk) -> None:
    """Of several machines, one of which has written nothing yet."""
    desk.ready().launch(nodes=2)
    desk.open_shell()


def secret(desk: Desk) -> None:
    desk.ready()
    desk.run("secret", stdin=hub.TOKEN)
    desk.run("secret", "--name", "webhook", stdin="https://example.org/hook")


def secret_before_a_deploy(desk: Desk) -> None:
    desk.bootstrap()
    desk.run(*IMAGE, "secret", stdin=hub.TOKEN)


def preflight(desk: Desk) -> None:
    """Before anything is there, and after a deploy."""
    desk.run(*IMAGE, "preflight", code=3)
    desk.ready()
    desk.run(*IMAGE, "preflight")
    desk.run(*IMAGE, "preflight", "--on-demand-after", "10")


def preflight_of_a_bucket_that_is_there(desk: Desk) -> None:
    prepare_account(desk.aws)
    bucket = f"{INSTALLATION.storage_stack}-old"
    client(desk.aws, "s3").create_bucket(Bucket=bucket)
    desk.run(*IMAGE, "-c", f"bucket_name={bucket}", "preflight", "--recipe", "digits", code=3)


def start_without_a_quota(desk: Desk, command: str, *arguments: str, then: int = 0) -> None:
    """With a network of one's own that AWS blocks, AWS tells the quota and the plan; with the stack's network, the
    default quota, and that the secret is gone. The data is prepared.
    """
    account = desk.ready()
    account.put("datasets/imagenet-1k/v1/index.json", INDEX)
    desk.aws.set(account_plan="FREE", quotas=NO_QUOTA, block_public_access="block-bidirectional")
    desk.run(*IMAGE, *desk.network(), command, *arguments, code=3)
    desk.aws.set(block_public_access="off")
    secrets = client(desk.aws, "secretsmanager")
    secrets.delete_secret(SecretId=INSTALLATION.secret_name, ForceDeleteWithoutRecovery=True)
    desk.aws.fault("service-quotas.GetServiceQuota", "NoSuchResourceException")
    desk.run(*IMAGE, command, *arguments, code=then)


def preflight_without_a_quota(desk: Desk) -> None:
    start_without_a_quota(desk, "preflight")


def launch(desk: Desk) -> None:
    """Anew; once more, whose schedule is changed; while it runs; another one, for which that schedule goes."""
    desk.ready()
    desk.suspend_groups()
    desk.run("launch", "--recipe", "finetune", "--run", "first")
    desk.empty_groups()
    desk.run("launch", "--run", "first", "--budget", "50", "--hours", "90")
    desk.run("launch", "--run", "first")
    desk.empty_groups()
    desk.run("launch", "--recipe", "digits", "--run", "second", "--on-demand-after", "5")
    desk.empty_groups()
    desk.run("launch", "--recipe", "digits", "--run", "second", "--market", "on-demand")
    desk.run("launch", "--recipe", "digits", "--run", "third", code=3)


def launch_without_a_quota(desk: Desk) -> None:
    start_without_a_quota(desk, "launch")


def prepare(desk: Desk) -> None:
    desk.ready()
    desk.suspend_groups()
    desk.run("prepare", "--run", "prepare-x")
    desk.empty_groups()
    desk.run("prepare", "--run", "prepare-x", "--hours", "4")
    desk.empty_groups()
    desk.run("prepare", "--run", "prepare-y")


def prepare_without_a_quota(desk: Desk) -> None:
    start_without_a_quota(desk, "prepare", "--again", then=3)  # it reads from the hub
    desk.run("prepare")


def deploy(desk: Desk) -> None:
    """The real CDK, in an account without anything; what Docker would build and push is not there."""
    desk.bootstrap()
    desk.install("docker")
    desk.run("deploy", "--no-launch", "--recipe", "digits")


def deploy_over_the_dead(desk: Desk) -> None:
    """Both stacks have never come up; the bucket of an older deploy keeps no versions, and an older image is there."""
    prepare_account(desk.aws)
    client(desk.aws, "ecr").create_repository(repositoryName=REPOSITORY)
    push_image(desk.registry, INSTALLATION.image_tag_prefix + "2e" * 32)
    bucket = f"{INSTALLATION.storage_stack}-old"
    client(desk.aws, "s3").create_bucket(Bucket=bucket)
    client(desk.aws, "s3").put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags()})
    dead = (INSTALLATION.storage_stack, INSTALLATION.training_stack, INSTALLATION.builder_stack)
    desk.aws.set(stack_status=dict.fromkeys(dead, "ROLLBACK_COMPLETE"))
    desk.stand_in_for_cdk(deploys=True)
    desk.run(*IMAGE, "-c", f"bucket_name={bucket}", "deploy", "--no-launch", "--recipe", "digits")


def put_into_placement_group(desk: Desk) -> None:
    """The groups of trainings, as a run of several leaves them."""
    client(desk.aws, "ec2").create_placement_group(GroupName="near", Strategy="cluster")
    autoscaling, names = client(desk.aws, "autoscaling"), [*INSTALLATION.groups_of("train")]
    for group in autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=names)["AutoScalingGroups"]:
        autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=group["AutoScalingGroupName"], PlacementGroup="near",
            VPCZoneIdentifier=group["VPCZoneIdentifier"].partition(",")[0],
        )  # fmt: skip


def deploy_without_an_engine(desk: Desk) -> None:
    """CodeBuild builds, after a run of several; then somebody presses Ctrl-C in the middle of a build."""
    desk.ready()
    put_into_placement_group(desk)
    put_source(desk.aws)
    desk.monkeypatch.setattr(cdk, "deploy", lambda *_: None)
    make_builder_stack(desk.aws, *PUSHES)
    arguments = ("deploy", "--no-launch", "--recipe", "digits", "--build", "aws")
    desk.run(*arguments)
    client(desk.aws, "cloudformation").delete_stack(StackName=INSTALLATION.builder_stack)
    forget_images(desk.aws)
    make_builder_stack(desk.aws, "sleep 300")
    desk.press_ctrl_c()
    desk.run(*arguments, code=130)


def deploy_without_a_quota(desk: Desk) -> None:
    desk.stand_in_for_cdk(deploys=False)
    start_without_a_quota(desk, "deploy", "--no-launch")


def deploy_that_rolls_back(desk: Desk) -> None:
    """CDK fails, and CloudFormation is asked whether it met a name that is not free yet."""
    desk.ready()
    desk.monkeypatch.setattr(cdk, "run", desk.roll_back)
    desk.run(*IMAGE, "deploy", "--no-launch", "--recipe", "digits", code=4)


SCENARIOS: Mapping[str, Sequence[Scenario]] = MappingProxyType(
    {
        "preflight": (
            preflight,
            preflight_of_a_bucket_that_is_there,
            preflight_without_a_quota,
        ),
        "deploy": (
            deploy,
            deploy_over_the_dead,
            deploy_that_rolls_back,
            deploy_without_an_engine,
            deploy_without_a_quota,
        ),
        "secret": (secret, secret_before_a_deploy),
        "launch": (launch, launch_without_a_quota),
        "prepare": (prepare, prepare_without_a_quota),
        "status": (status,),
        "logs": (follow, wait_for_a_machine),
        "runs": (runs,),
        "cost": (cost,),
        "pull": (pull,),
        "shell": (shell,),
        "stop": (stop,),
        "destroy": (destroy, destroy_a_stack_that_stays, destroy_while_a_build_runs, destroy_what_stacks_have_left),
        "purge": (purge,),
    }
)
