"""A permission of the operator, the resources that it names, and the policies that are made of such permissions.

`table` has the permissions. Nothing here asks AWS.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.config import Installation, Tag
from infra.operate.installation.leftovers import stack_beginning

EVERYTHING = ("*",)
LOGICAL_ID_LETTERS = 21  # of the longest role that is passed on: SchedulerRole and eight letters of CDK
MANAGED_LETTERS = 6144  # of a managed policy, without white space: IAM's user guide, "IAM and AWS STS quotas"


@dataclass(frozen=True, kw_only=True)
class Right:
    """What some commands may do. `why` is the reason for each `*` in `on`, and for a resource that looks too wide."""

    by: Sequence[str]  # the commands that need it
    actions: Sequence[str]
    on: Sequence[str]
    condition: Mapping[str, Any] | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Names:
    """The installation's resources as ARNs. What AWS makes up is a `*`."""

    installation: Installation
    account: str
    region: str

    def of(self, service: str, resource: str) -> str:
        """A resource in this account and region."""
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"

    def stacks(self, *names: str) -> list[str]:
        return [self.of("cloudformation", f"stack/{name}/*") for name in names]

    def groups(self, *names: str) -> list[str]:
        return [self.of("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{name}") for name in names]

    def made_by_stack(self, service: str, kind: str) -> list[str]:
        """What the training stack names by itself."""
        return [self.of(service, f"{kind}{self.installation.training_stack}-*")]

    @property
    def bucket(self) -> str:
        return f"arn:aws:s3:::{self.installation.bucket_name or f'{self.installation.storage_stack}-*'}"

    def objects(self, *keys: str) -> list[str]:
        return [f"{self.bucket}/{key}" for key in keys]

    @property
    def secret(self) -> list[str]:
        """AWS adds six letters to the name. A secret that is not there has none."""
        name = self.of("secretsmanager", f"secret:{self.installation.secret_name}")
        return [name, f"{name}-??????"]

    @property
    def schedules(self) -> list[str]:
        return [self.of("scheduler", f"schedule/{self.installation.schedule_group}/*")]

    @property
    def roles(self) -> list[str]:
        """CloudFormation makes a role's name of the stack's, the logical id and 12 letters, and cuts it to 64."""
        stack = self.installation.training_stack
        is_cut = len(stack) + 1 + LOGICAL_ID_LETTERS + 13 > 64
        return [f"arn:aws:iam::{self.account}:role/{stack_beginning(self.installation) if is_cut else f'{stack}-'}*"]

    def cdk_roles(self, *names: str) -> list[str]:
        place = f"{self.account}-{self.region}"
        return [f"arn:aws:iam::{self.account}:role/cdk-hnb659fds-{name}-role-{place}" for name in names]

    @property
    def images(self) -> list[str]:
        return [self.of("ecr", f"repository/cdk-hnb659fds-container-assets-{self.account}-{self.region}")]

    @property
    def project(self) -> list[str]:
        """CodeBuild's, which builds the image. Its builds have no ARN in a policy."""
        return [self.of("codebuild", f"project/{self.installation.build_project}")]

    @property
    def cdk_bucket(self) -> str:
        return f"arn:aws:s3:::cdk-hnb659fds-assets-{self.account}-{self.region}"

    @property
    def ours(self) -> Mapping[str, Any]:
        """The condition that a resource has the installation's tag."""
        return {"StringEquals": {f"aws:ResourceTag/{Tag.INSTALLATION}": self.installation.name}}


def iam_policy(rights: Iterable[Right]) -> dict[str, Any]:
    """The IAM policy, however long. Rights on the same resources under the same condition are one statement."""
    merged: dict[str, tuple[Right, set[str]]] = {}
    for one in rights:
        key = json.dumps([sorted(one.on), one.condition], sort_keys=True)
        merged.setdefault(key, (one, set()))[1].update(one.actions)
    statements = [
        {"Effect": "Allow", "Action": sorted(actions), "Resource": [*one.on]}
        | ({"Condition": one.condition} if one.condition else {})
        for one, actions in merged.values()
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def managed_policies(rights: Iterable[Right]) -> list[dict[str, Any]]:
    """The same statements in as many policies as IAM's limit of a managed one asks for, most often one."""
    whole, parts = iam_policy(rights), list[dict[str, Any]]()
    for statement in whole["Statement"]:
        longer = [part | {"Statement": [*part["Statement"], statement]} for part in parts]
        room = next((number for number, one in enumerate(longer) if letters(one) <= MANAGED_LETTERS), None)
        if room is None:
            parts.append(whole | {"Statement": [statement]})
        else:
            parts[room] = longer[room]
    return parts


def letters(policy: Mapping[str, Any]) -> int:
    """As IAM counts them against its limit."""
    return len(json.dumps(policy, separators=(",", ":")))
