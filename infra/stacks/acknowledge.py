"""Exceptions to cdk-nag's AwsSolutions rules, each with its reason. The tests refuse one that has no finding."""

from __future__ import annotations

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct | None, rule: str, reason: str) -> None:
    """`rule` is cdk-nag's name without the pack: `EC26`, `IAM5[Resource::*]`."""
    assert construct is not None  # CDK types `node.default_child` so; a bucket and a role always have one
    acknowledgment = cdk.Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason)
    cdk.Validations.of(construct).acknowledge(acknowledgment)
