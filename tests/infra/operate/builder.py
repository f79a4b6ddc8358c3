"""The builder stack, small, whose builds run short commands; the builds are the emulator's."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from typing import Any

from infra.stacks import permissions
from tests.emulator.aws import Aws
from tests.emulator.aws_images import MANIFEST
from tests.emulator.principals import as_json
from tests.infra.deployed import IMAGE_TAG, INSTALLATION, REPOSITORY, client, tags

IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/{REPOSITORY}:{IMAGE_TAG}"
BUCKET = "cdk-hnb659fds-assets-123456789012-us-east-1"
SOURCE = f"{INSTALLATION.source_prefix}source.zip"
MANIFEST_TEXT = json.dumps(
    {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": "sha256:" + 64 * "0"}, "layers": []}
)
PUSHES = (
    "cat hello",
    f'{sys.executable} -c \'import boto3, sys; boto3.client("ecr").put_image('
    f'repositoryName="{REPOSITORY}", imageTag="{IMAGE_TAG}", imageManifest=sys.argv[1])\' \'{MANIFEST_TEXT}\'',
)


def template(commands: tuple[str, ...]) -> str:
    arn = "arn:aws:{}:us-east-1:123456789012:{}".format
    statements = permissions.building(
        bucket=f"arn:aws:s3:::{BUCKET}", source=f"arn:aws:s3:::{BUCKET}/{SOURCE}",
        repository=arn("ecr", f"repository/{REPOSITORY}"),
        logs=arn("logs", f"log-group:{INSTALLATION.build_log_group}:*"),
    )  # fmt: skip
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "codebuild.amazonaws.com"}}
    policy = {"PolicyName": "Role", "PolicyDocument": {"Version": "2012-10-17", "Statement": as_json(statements)}}
    resources: dict[str, Any] = {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": {"Statement": [trust]}, "Policies": [policy]},
        },
        "Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": INSTALLATION.build_log_group}},
        "Project": {
            "Type": "AWS::CodeBuild::Project",
            "Properties": {
                "Name": INSTALLATION.build_project, "ServiceRole": {"Fn::GetAtt": ["Role", "Arn"]},
                "Artifacts": {"Type": "NO_ARTIFACTS"}, "TimeoutInMinutes": 45,
                "Source": {
                    "Type": "S3", "Location": f"{BUCKET}/{SOURCE}",
                    "BuildSpec": json.dumps({"phases": {"build": {"commands": commands}}}),
                },
                "Environment": {"EnvironmentVariables": [{"Name": "IMAGE", "Value": IMAGE}]},
                "LogsConfig": {"CloudWatchLogs": {"GroupName": {"Ref": "Logs"}, "Status": "ENABLED"}},
            },
        },
    }  # fmt: skip
    return json.dumps({"Resources": resources, "Outputs": {"ImageUri": {"Value": IMAGE}}})


def put_source(aws: Aws) -> None:
    """What a build reads, in the bucket of CDK's bootstrap, and the repository that it pushes to."""
    if not client(aws, "ecr").describe_repositories()["repositories"]:
        client(aws, "ecr").create_repository(repositoryName=REPOSITORY)
    client(aws, "s3").create_bucket(Bucket=BUCKET)
    client(aws, "s3").put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as source:
        source.writestr("hello", "the source is here\n")
    client(aws, "s3").put_object(Bucket=BUCKET, Key=SOURCE, Body=body.getvalue())


def make_builder_stack(aws: Aws, *commands: str) -> None:
    client(aws, "cloudformation").create_stack(
        StackName=INSTALLATION.builder_stack, TemplateBody=template(commands), Tags=tags(),
        Capabilities=["CAPABILITY_IAM"],
    )  # fmt: skip


def forget_images(aws: Aws) -> None:
    ecr = client(aws, "ecr")
    ecr.batch_delete_image(repositoryName=REPOSITORY, imageIds=ecr.list_images(repositoryName=REPOSITORY)["imageIds"])
