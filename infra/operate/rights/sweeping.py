"""What `destroy` may do beyond `stop`: delete the stack, what a stack has left, and with PURGE=1 the data."""

from __future__ import annotations

from infra.operate.installation.left_over import stacks_of
from infra.operate.installation.leftovers import stack_beginning
from infra.operate.rights.right import EVERYTHING, Names, Right

DESTROYING, PURGING = ("destroy", "rehearse"), ("purge", "rehearse")
ONLY_LISTS = "AWS knows no resource for an action that lists or describes."
BY_STACK = "CloudFormation makes up the end of the name."
SIX_LETTERS = "AWS adds six letters to the name."
CUT = "CloudFormation makes up the name, and cuts a long one anywhere after these letters."
RULE_ACTIONS = ("events:DeleteRule", "events:ListTagsForResource", "events:ListTargetsByRule", "events:RemoveTargets")
DELETED_EC2 = (
    "ec2:DeleteInternetGateway", "ec2:DeleteLaunchTemplate", "ec2:DeleteNetworkInterface", "ec2:DeletePlacementGroup",
    "ec2:DeleteRouteTable", "ec2:DeleteSecurityGroup", "ec2:DeleteSubnet", "ec2:DeleteVolume", "ec2:DeleteVpc",
    "ec2:DeleteVpcEndpoints",
    "ec2:DetachInternetGateway",
)  # fmt: skip


def sweeping(names: Names) -> list[Right]:
    return [*looking_for_what_is_left(names), *deleting(names), *closing_the_tally(names), *purging(names)]


def looking_for_what_is_left(names: Names) -> list[Right]:
    """Each service is asked for all that it has: destroy says that nothing is left only if AWS does."""
    return [
        Right(
            by=DESTROYING,
            actions=["ec2:DescribeInternetGateways", "ec2:DescribeLaunchTemplates", "ec2:DescribeNetworkInterfaces",
                     "ec2:DescribePlacementGroups", "ec2:DescribeRouteTables", "ec2:DescribeSecurityGroups",
                     "ec2:DescribeSubnets",
                     "ec2:DescribeVolumes", "ec2:DescribeVpcEndpoints", "ec2:DescribeVpcs", "events:ListRules",
                     "iam:ListRoles", "logs:DescribeLogGroups", "s3:ListAllMyBuckets", "scheduler:ListScheduleGroups",
                     "sns:ListTopics"],
            on=EVERYTHING, why=ONLY_LISTS,
        ),
        Right(by=DESTROYING, actions=["cloudwatch:DescribeAlarms"], on=[names.of("cloudwatch", "alarm:*")],
              why="AWS lists alarms to those who may see all of them."),
        Right(by=DESTROYING, actions=["cloudformation:ListStackResources"],
              on=names.stacks(*stacks_of(names.installation)), why=BY_STACK),
        Right(by=DESTROYING, actions=["codebuild:BatchGetProjects"], on=names.project),
        Right(by=DESTROYING, actions=["s3:ListBucketVersions"], on=[names.cdk_bucket],
              condition={"StringLike": {"s3:prefix": f"{names.installation.source_prefix}*"}}),
        Right(by=DESTROYING, actions=["s3:GetBucketTagging"], on=[names.bucket], why=BY_STACK),
    ]  # fmt: skip


def deleting(names: Names) -> list[Right]:
    """CloudFormation deletes the stack with CDK's role, and needs no other permission of ours for its resources: its
    API reference, `RoleARN` of DeleteStack. The rest is for what the stack could not delete, or has let go of.
    """
    installation = names.installation
    log_groups = (installation.log_group, installation.build_log_group, f"/aws/lambda/{installation.guard_function}")
    groups = names.groups(*installation.groups)
    beginning = f"{stack_beginning(installation)}*"
    return [
        Right(by=DESTROYING, actions=["cloudformation:DeleteStack"], on=names.stacks(*stacks_of(installation)),
              why=BY_STACK),
        Right(by=DESTROYING, actions=["codebuild:DeleteProject"], on=names.project),
        Right(by=DESTROYING, actions=["s3:DeleteObjectVersion"],
              on=[f"{names.cdk_bucket}/{installation.source_prefix}*"], why="CDK names a source by its content."),
        Right(by=DESTROYING, actions=["autoscaling:DeleteAutoScalingGroup"], on=groups,
              why="AWS makes up the group's id; its name is given."),
        Right(by=DESTROYING, actions=DELETED_EC2, on=[names.of("ec2", "*/*")], condition=names.ours,
              why="Each action deletes one kind of thing. AWS makes up the ids, and the tag says which are ours."),
        Right(by=DESTROYING, actions=["scheduler:DeleteScheduleGroup"],
              on=[names.of("scheduler", f"schedule-group/{installation.schedule_group}")]),
        Right(by=DESTROYING, actions=RULE_ACTIONS, on=[names.of("events", f"rule/{beginning}")], why=CUT),
        Right(by=DESTROYING, actions=["iam:ListRoleTags"], on=[f"arn:aws:iam::{names.account}:role/{beginning}"],
              why=CUT),
        Right(by=DESTROYING, actions=["lambda:DeleteFunction", "lambda:GetFunction"],
              on=[names.of("lambda", f"function:{installation.guard_function}")]),
        Right(by=DESTROYING, actions=["logs:DeleteLogGroup"],
              on=[names.of("logs", f"log-group:{name}:*") for name in log_groups],
              why="AWS asks for a group and its streams."),
        Right(by=DESTROYING, actions=["sns:DeleteTopic"], on=names.made_by_stack("sns", ""), why=BY_STACK),
        Right(by=DESTROYING, actions=["cloudwatch:DeleteAlarms"], on=names.made_by_stack("cloudwatch", "alarm:"),
              why=BY_STACK),
    ]  # fmt: skip


def closing_the_tally(names: Names) -> list[Right]:
    """The guard's function goes with the stack, so destroy counts the last machines itself, as the guard does."""
    return [
        Right(by=DESTROYING, actions=["s3:PutObject"], on=names.objects("runs/*/spend.json", "runs/*/guard.json"),
              why="The names of runs are the users'."),
        Right(by=DESTROYING, actions=["sns:Publish"], on=names.made_by_stack("sns", ""), why=BY_STACK),
    ]  # fmt: skip


def purging(names: Names) -> list[Right]:
    return [
        Right(by=PURGING, actions=["s3:DeleteBucket", "s3:ListBucketMultipartUploads"], on=[names.bucket],
              why=BY_STACK),
        Right(by=PURGING, actions=["s3:AbortMultipartUpload", "s3:DeleteObjectVersion"], on=names.objects("*"),
              why="All of the bucket goes."),
        Right(by=PURGING, actions=["secretsmanager:DescribeSecret"], on=names.secret, why=SIX_LETTERS),
        Right(by=PURGING, actions=["secretsmanager:DeleteSecret"], on=names.secret[1:], why=SIX_LETTERS),
        Right(by=PURGING, actions=["cloudformation:DeleteStack"], on=names.stacks(names.installation.storage_stack),
              why=BY_STACK),
    ]  # fmt: skip
