"""What AWS still has of an installation. Each service is asked by tag and by name; our own state does not count.

Each left-over has the command that removes it, and a function that does. `destroy` decides whether and when.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from infra.config import Installation, Tag
from infra.operate.installation.left_builds import left_builds, projects, sources
from infra.operate.installation.left_network import strangers, vpc_parts
from infra.operate.installation.left_over import LeftOver, stacks_of, tagged
from infra.operate.installation.stack_states import stack_status
from infra.operate.session import Aws, explained
from infra.run import fleet

SWEPT_SERVICES = (
    "autoscaling",
    "ec2",
    "scheduler",
    "codebuild",
    "s3",
    "events",
    "lambda",
    "logs",
    "ecr",
    "cloudformation",
    "cloudwatch",
    "sns",
    "iam",
)
ASSET_HASH = "[0-9a-f]{64}"  # without it, the prefix of `mine` would hold for the images of `mine-too`
IMAGE = "ECR image"
SHORTENED_LETTERS = 58  # at least, of a name that had to be cut to 64
LEAST_STACK_LETTERS = 16  # of the stack's name survive in any that was seen


def find(aws: Aws, installation: Installation) -> list[LeftOver]:
    """Everything that is left of the training stack and its runs, in the order in which it can be removed."""
    for service in SWEPT_SERVICES:
        aws.client(service)  # made here, since making one is not safe in threads
    _ = aws.account
    questions = (
        groups, left_machines, left_builds, left_schedules, rules, functions, images, left_stacks, launch_templates,
        placement_groups, volumes, strangers, vpc_parts, projects, sources, log_groups, topics, alarms, roles,
    )  # fmt: skip

    def ask(question: Callable[[Aws, Installation], Iterator[LeftOver]]) -> list[LeftOver]:
        with explained(f"what is left: {question.__name__.removeprefix('left_').replace('_', ' ')}"):
            return list(question(aws, installation))

    with ThreadPoolExecutor(len(questions)) as pool:
        return [left for found in pool.map(ask, questions) for left in found]


def is_named_by_stack(installation: Installation, name: str) -> bool:
    """Whether CloudFormation made up this name. Its names are the stack, a logical id, and some letters."""
    stacks = "|".join(stacks_of(installation))
    return bool(re.fullmatch(f"({stacks})-[A-Za-z0-9]+-[A-Za-z0-9]+", name))


def may_be_shortened(installation: Installation, name: str) -> bool:
    """Whether CloudFormation may have made up this name for what takes 64 letters: then only the tag tells.

    It cuts stack and logical id so that all fits: `content-author-apps-production-content-sy-Function-U6NI8XUG1KBU`
    comes from a stack of 44 letters (convox/rack issue 2698). How it divides the room, AWS does not say.
    """
    beginnings = tuple(stack[:LEAST_STACK_LETTERS] for stack in stacks_of(installation))
    return len(name) >= SHORTENED_LETTERS and name.startswith(beginnings)


def stack_beginning(installation: Installation) -> str:
    """What every name that CloudFormation makes up for the training stack begins with."""
    return installation.training_stack[:LEAST_STACK_LETTERS]


def has_our_tag(installation: Installation, tags: Iterable[Mapping[str, str]]) -> bool:
    return {"Key": Tag.INSTALLATION, "Value": installation.name} in [dict(tag) for tag in tags]


def groups(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    autoscaling = aws.client("autoscaling")
    for page in autoscaling.get_paginator("describe_auto_scaling_groups").paginate():
        for group in page["AutoScalingGroups"]:
            tags = {tag["Key"]: tag["Value"] for tag in group.get("Tags", [])}
            name = group["AutoScalingGroupName"]
            if name in installation.groups or tags.get(Tag.INSTALLATION) == installation.name:
                yield LeftOver(
                    "Auto Scaling group", name,
                    f"aws autoscaling delete-auto-scaling-group --force-delete --auto-scaling-group-name {name}",
                    partial(autoscaling.delete_auto_scaling_group, AutoScalingGroupName=name, ForceDelete=True),
                )  # fmt: skip


def left_machines(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    ec2 = aws.client("ec2")
    for machine in fleet.machines(ec2, installation.name):
        if machine.is_billing:
            yield LeftOver(
                f"EC2 instance, {machine.state}", machine.id,
                f"aws ec2 terminate-instances --instance-ids {machine.id}",
                partial(ec2.terminate_instances, InstanceIds=[machine.id]),
            )  # fmt: skip


def left_schedules(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    scheduler, name = aws.client("scheduler"), installation.schedule_group
    for page in scheduler.get_paginator("list_schedule_groups").paginate(NamePrefix=name):
        for group in page["ScheduleGroups"]:
            if group["Name"] == name and group["State"] != "DELETING":
                yield LeftOver(
                    "schedule group", name, f"aws scheduler delete-schedule-group --name {name}",
                    partial(scheduler.delete_schedule_group, Name=name),
                )  # fmt: skip


def rules(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    events = aws.client("events")

    def delete(name: str) -> None:
        ids = [target["Id"] for target in events.list_targets_by_rule(Rule=name)["Targets"]]
        if ids:
            events.remove_targets(Rule=name, Ids=ids)
        events.delete_rule(Name=name)

    def is_ours(rule: Mapping[str, str]) -> bool:
        if is_named_by_stack(installation, rule["Name"]):
            return True
        if not may_be_shortened(installation, rule["Name"]):
            return False
        return has_our_tag(installation, events.list_tags_for_resource(ResourceARN=rule["Arn"])["Tags"])

    for page in events.get_paginator("list_rules").paginate(NamePrefix=stack_beginning(installation)):
        for rule in page["Rules"]:
            if is_ours(rule):
                name = rule["Name"]
                command = f"aws events delete-rule --name {name} (its targets first)"
                yield LeftOver("EventBridge rule", name, command, partial(delete, name))


def functions(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    client, name = aws.client("lambda"), installation.guard_function
    try:
        client.get_function(FunctionName=name)
    except client.exceptions.ResourceNotFoundException:
        return
    yield LeftOver(
        "Lambda function", name, f"aws lambda delete-function --function-name {name}",
        partial(client.delete_function, FunctionName=name),
    )  # fmt: skip


def images(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """The images that deploys put into CDK's repository, by their tags. A deploy that failed or was stopped counts,
    too.
    """
    ecr = aws.client("ecr")
    pages = ecr.get_paginator("describe_repositories").paginate()
    names = [repository["repositoryName"] for page in pages for repository in page["repositories"]]
    for name in (one for one in names if re.fullmatch(f"cdk-.*container-assets-{aws.account}-{aws.region}", one)):
        pages = ecr.get_paginator("list_images").paginate(repositoryName=name, filter={"tagStatus": "TAGGED"})
        for tag in sorted(image["imageTag"] for page in pages for image in page["imageIds"]):
            if re.fullmatch(installation.image_tag_prefix + ASSET_HASH, tag):
                yield LeftOver(
                    IMAGE, f"{name}:{tag}",
                    f"aws ecr batch-delete-image --repository-name {name} --image-ids imageTag={tag}",
                    partial(ecr.batch_delete_image, repositoryName=name, imageIds=[{"imageTag": tag}]),
                )  # fmt: skip


def left_stacks(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    for name in stacks_of(installation):
        yield from stack(aws, name)


def stack(aws: Aws, name: str) -> list[LeftOver]:
    """The stack, if it exists."""
    if not stack_status(aws, name):
        return []
    delete = partial(aws.client("cloudformation").delete_stack, StackName=name)
    return [LeftOver("CloudFormation stack", name, f"aws cloudformation delete-stack --stack-name {name}", delete)]


def launch_templates(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    ec2 = aws.client("ec2")
    for page in ec2.get_paginator("describe_launch_templates").paginate(Filters=tagged(installation)):
        for template in page["LaunchTemplates"]:
            id = template["LaunchTemplateId"]
            yield LeftOver(
                "launch template", id, f"aws ec2 delete-launch-template --launch-template-id {id}",
                partial(ec2.delete_launch_template, LaunchTemplateId=id),
            )  # fmt: skip


def placement_groups(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    ec2 = aws.client("ec2")
    for group in ec2.describe_placement_groups(Filters=tagged(installation))["PlacementGroups"]:
        if group["State"] not in ("deleting", "deleted"):
            name = group["GroupName"]
            yield LeftOver(
                "placement group", name, f"aws ec2 delete-placement-group --group-name {name}",
                partial(ec2.delete_placement_group, GroupName=name),
            )  # fmt: skip


def volumes(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    ec2 = aws.client("ec2")
    for page in ec2.get_paginator("describe_volumes").paginate(Filters=tagged(installation)):
        for volume in page["Volumes"]:
            if volume["State"] != "deleting":
                id = volume["VolumeId"]
                yield LeftOver(
                    f"EBS volume, {volume['Size']} GiB, {volume['State']}", id,
                    f"aws ec2 delete-volume --volume-id {id}", partial(ec2.delete_volume, VolumeId=id),
                )  # fmt: skip


def log_groups(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """The log groups of the runs, of the builds, and the guard's. Lambda makes the guard's again if a last call ends
    after its deletion.
    """
    logs = aws.client("logs")
    guard = f"/aws/lambda/{installation.guard_function}"
    for name in (installation.log_group, installation.build_log_group, guard):
        for group in logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]:
            if group["logGroupName"] == name:
                yield LeftOver(
                    "log group", name, f"aws logs delete-log-group --log-group-name {name}",
                    partial(logs.delete_log_group, logGroupName=name),
                )  # fmt: skip


def topics(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    sns = aws.client("sns")
    for page in sns.get_paginator("list_topics").paginate():
        for topic in page["Topics"]:
            arn = topic["TopicArn"]
            if is_named_by_stack(installation, arn.rpartition(":")[2]):
                command = f"aws sns delete-topic --topic-arn {arn}"
                yield LeftOver("SNS topic", arn, command, partial(sns.delete_topic, TopicArn=arn))


def alarms(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    cloudwatch = aws.client("cloudwatch")
    for page in cloudwatch.get_paginator("describe_alarms").paginate(AlarmNamePrefix=f"{installation.training_stack}-"):
        for name in (alarm["AlarmName"] for alarm in page["MetricAlarms"]):
            if is_named_by_stack(installation, name):
                command = f"aws cloudwatch delete-alarms --alarm-names {name}"
                yield LeftOver("CloudWatch alarm", name, command, partial(cloudwatch.delete_alarms, AlarmNames=[name]))


def roles(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """Roles cost nothing. One is left if the stack could not delete it."""
    iam = aws.client("iam")

    def is_ours(name: str) -> bool:
        if is_named_by_stack(installation, name):
            return True
        if not may_be_shortened(installation, name):
            return False
        return has_our_tag(installation, iam.list_role_tags(RoleName=name)["Tags"])

    for page in iam.get_paginator("list_roles").paginate():
        for name in (role["RoleName"] for role in page["Roles"]):
            if is_ours(name):
                yield LeftOver("IAM role", name, f"aws iam delete-role --role-name {name} (its policies first)")
