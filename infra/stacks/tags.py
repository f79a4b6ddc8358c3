"""The tags that every resource of a stack has."""

from __future__ import annotations

import aws_cdk as cdk
from constructs import IConstruct

from infra.config import Installation


def tag_all(scope: IConstruct, installation: Installation) -> None:
    """Tag a stack and all that CloudFormation can tag in it. Launch templates name the tags of their machines."""
    for key, value in installation.all_tags.items():
        cdk.Tags.of(scope).add(key, value)


def listed_tags(installation: Installation, name: str) -> list[cdk.CfnTag]:
    """The tags for a launch template: those of every resource, and the machine's name."""
    return [cdk.CfnTag(key=key, value=value) for key, value in ({"Name": name} | installation.all_tags).items()]
