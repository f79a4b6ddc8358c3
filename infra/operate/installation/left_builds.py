"""What AWS still has of the image's builds in the account: builds, their project, and the sources that they read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from infra.config import Installation
from infra.operate.installation.left_over import LeftOver
from infra.operate.session import Aws

BUILD = "CodeBuild build"


def left_builds(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """Builds of the image that run. They would go on without their project."""
    codebuild = aws.client("codebuild")
    for name in (one.id for one in projects(aws, installation)):
        ids = codebuild.list_builds_for_project(projectName=name)["ids"]
        for build in codebuild.batch_get_builds(ids=ids)["builds"] if ids else []:
            if build["buildStatus"] == "IN_PROGRESS":
                id = build["id"]
                command = f"aws codebuild stop-build --id {id}"
                yield LeftOver(BUILD, id, command, partial(codebuild.stop_build, id=id))


def projects(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    codebuild, name = aws.client("codebuild"), installation.build_project
    if codebuild.batch_get_projects(names=[name])["projects"]:
        yield LeftOver(
            "CodeBuild project", name, f"aws codebuild delete-project --name {name}",
            partial(codebuild.delete_project, name=name),
        )  # fmt: skip


def sources(aws: Aws, installation: Installation) -> Iterator[LeftOver]:
    """What deploys put into the bucket of CDK's assets for builds, with its old versions."""
    s3, prefix = aws.client("s3"), installation.source_prefix
    name = f"cdk-hnb659fds-assets-{aws.account}-{aws.region}"

    def delete(key: str, version: str) -> None:
        s3.delete_object(Bucket=name, Key=key, VersionId=version)

    try:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=name, Prefix=prefix):
            for found in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                key, version = found["Key"], found["VersionId"]
                yield LeftOver(
                    "source of a build", f"s3://{name}/{key}",
                    f"aws s3api delete-object --bucket {name} --key {key} --version-id {version}",
                    partial(delete, key, version),
                )  # fmt: skip
    except s3.exceptions.NoSuchBucket:  # the account is not prepared for CDK
        return
