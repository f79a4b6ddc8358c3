"""The trainer's image: one that CDK builds from this repository, or the one that the context names."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_ecr_assets as ecr_assets
from constructs import Construct

from infra.config import ROOT, Installation
from trainer.contract import UserError

CONTENT = ("Dockerfile", ".dockerignore", "requirements/trainer.txt", "trainer")
ECR_URI = r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<repository>[^:@]+)[:@].+"


@dataclass(frozen=True)
class Image:
    uri: str
    repository_arn: str = ""  # "": the image is not in ECR, so a pull needs no permission


def image(scope: Construct, installation: Installation) -> Image:
    """CDK pushes what it builds into its own assets repository. `deploy` and `destroy` find the image by its tag."""
    if not installation.image_uri:
        asset = ecr_assets.DockerImageAsset(
            scope,
            "Image",
            directory=str(ROOT),
            platform=ecr_assets.Platform.LINUX_AMD64,
            build_args=build_arguments(installation),
        )
        return Image(asset.image_uri, asset.repository.repository_arn)
    if why := installation.image_by_tag():
        raise UserError(why)
    if not (found := re.fullmatch(ECR_URI, installation.image_uri)):
        return Image(installation.image_uri)
    arn = f"arn:{cdk.Aws.PARTITION}:ecr:{found['region']}:{found['account']}:repository/{found['repository']}"
    return Image(installation.image_uri, arn)


def build_arguments(installation: Installation) -> dict[str, str]:
    return {"COMMIT": commit()} | ({"EFA": installation.efa} if installation.has_efa else {})


def commit() -> str:
    """The last commit that changed the image's content: other commits do not cause a new build."""
    git = ("git", "-C", str(ROOT))
    try:
        last = subprocess.run([*git, "log", "-1", "--format=%H", "--", *CONTENT], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--", *CONTENT], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (last.stdout.strip() or "unknown") + ("-dirty" if changed.stdout else "")
