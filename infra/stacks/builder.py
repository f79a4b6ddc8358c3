"""The builder stack: CodeBuild builds the image where no Docker engine can. It is there before the image is.

The project builds one content, that of the checkout: its source and its tag are those of the image of the training
stack. So a deploy of the same content finds the tag in the registry, and CDK builds nothing. Nothing here bills while
nothing builds.
"""

from __future__ import annotations

import json

import aws_cdk as cdk
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3_assets as s3_assets
from constructs import Construct

from infra.config import MOST_BUILD_MINUTES, ROOT, Installation, Output, Tag
from infra.stacks import permissions
from infra.stacks.acknowledge import acknowledge
from infra.stacks.image import Image, commit
from infra.stacks.roles import role

MOST_QUEUED_MINUTES = 30  # AWS takes 5 to 480
# It has Docker 28, buildx and the AWS command line: github.com/aws/aws-codebuild-docker-images, al/x86_64/standard/5.0.
SYSTEM = "aws/codebuild/amazonlinux-x86_64-standard:5.0"
SMALL = "BUILD_GENERAL1_SMALL"  # 2 vCPUs, 64 GB of disk; more accounts may use it than any larger one
BUILD_COMMANDS = (  # all in one phase: CodeBuild would run a later one after a failure, too
    'aws ecr get-login-password | docker login --username AWS --password-stdin "${IMAGE%%/*}"',
    # Docker Hub refuses addresses that many share, as CodeBuild's are. The digest names the same base in both places.
    "base=$(sed -n 's/^ARG BASE=//p' Dockerfile); mirror=public.ecr.aws/docker/library/$base",
    'if docker manifest inspect "$mirror" > /dev/null 2>&1; then base=$mirror; fi',
    'docker build --platform linux/amd64 --build-arg "BASE=$base" --build-arg "COMMIT=$COMMIT"'
    ' --build-arg "EFA=$EFA" --tag "$IMAGE" .',
    'docker push "$IMAGE"',
)
SPECIFICATION = {"version": "0.2", "env": {"shell": "bash"}, "phases": {"build": {"commands": [*BUILD_COMMANDS]}}}


class BuilderStack(cdk.Stack):
    def __init__(self, scope: Construct, installation: Installation, image: Image) -> None:
        super().__init__(
            scope,
            installation.builder_stack,
            description="resnet-spot: builds the image where no Docker engine can; costs nothing while nothing builds",
            synthesizer=cdk.DefaultStackSynthesizer(bucket_prefix=installation.source_prefix),
        )
        source = s3_assets.Asset(
            self, "Source", path=str(ROOT), exclude=context_rules(), ignore_mode=cdk.IgnoreMode.DOCKER
        )
        log = logs.LogGroup(
            self,
            "Logs",
            log_group_name=installation.build_log_group,
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        bucket = f"arn:{self.partition}:s3:::{source.s3_bucket_name}"
        builder = role(
            self,
            "Role",
            iam.ServicePrincipal("codebuild.amazonaws.com"),
            permissions.building(
                bucket=bucket,
                source=f"{bucket}/{source.s3_object_key}",
                repository=image.repository_arn,
                logs=log.log_group_arn,
            ),
        )
        self._add_project(installation, image, source, log, builder)
        cdk.Tags.of(self).add(Tag.INSTALLATION, installation.name)
        cdk.CfnOutput(self, Output.IMAGE, value=image.uri, description="what the project builds and pushes")

    def _add_project(
        self,
        installation: Installation,
        image: Image,
        source: s3_assets.Asset,
        log: logs.LogGroup,
        builder: iam.Role,
    ) -> None:
        variable = codebuild.CfnProject.EnvironmentVariableProperty
        project = codebuild.CfnProject(
            self,
            "Project",
            name=installation.build_project,
            description="resnet-spot: builds the trainer's image; `make deploy` starts it",
            service_role=builder.role_arn,
            artifacts=codebuild.CfnProject.ArtifactsProperty(type="NO_ARTIFACTS"),
            source=codebuild.CfnProject.SourceProperty(
                type="S3",
                location=f"{source.s3_bucket_name}/{source.s3_object_key}",
                build_spec=json.dumps(SPECIFICATION),
            ),
            environment=codebuild.CfnProject.EnvironmentProperty(
                type="LINUX_CONTAINER",
                compute_type=SMALL,
                image=SYSTEM,
                privileged_mode=True,  # the Docker engine runs inside the build's container
                environment_variables=[
                    variable(name="IMAGE", value=image.uri),
                    variable(name="COMMIT", value=commit()),
                    variable(name="EFA", value=installation.efa if installation.has_efa else ""),
                    variable(name="BUILDX_NO_DEFAULT_ATTESTATIONS", value="1"),  # else two manifests for one image
                ],
            ),
            logs_config=codebuild.CfnProject.LogsConfigProperty(
                cloud_watch_logs=codebuild.CfnProject.CloudWatchLogsConfigProperty(
                    status="ENABLED", group_name=log.log_group_name
                )
            ),
            timeout_in_minutes=MOST_BUILD_MINUTES,
            queued_timeout_in_minutes=MOST_QUEUED_MINUTES,
        )
        acknowledge(project, "CB4", "The project has no artifacts, which are what the key would encrypt.")


def context_rules() -> list[str]:
    """What the source holds: the image's context, as .dockerignore says, and the files that tell how to build it."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    return [*filter(None, rules), "!Dockerfile", "!.dockerignore"]
