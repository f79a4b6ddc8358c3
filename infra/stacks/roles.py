"""The roles as CDK makes them. `permissions` says what each one may do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.stacks import permissions
from infra.stacks.acknowledge import acknowledge
from infra.stacks.permissions import Statement


class MachineRoles(Construct):
    """The role of the machines of one kind, and that of their runs, which no other role may take on.

    A role cannot name another that names it back. So what lets the machine take on the run's role is a policy of its
    own, made after both.
    """

    def __init__(
        self, scope: Construct, kind: str, of_machine: Sequence[Statement], of_run: Sequence[Statement]
    ) -> None:
        super().__init__(scope, f"{kind.capitalize()}Run")
        ec2 = iam.ServicePrincipal("ec2.amazonaws.com")
        self.machine = role(scope, f"{kind.capitalize()}Role", ec2, of_machine)  # its logical id is older than this one
        self.run = role(self, "Role", iam.ArnPrincipal(self.machine.role_arn), of_run)
        self.assume = iam.Policy(
            self, "Assume", roles=[self.machine], statements=[as_cdk(permissions.taking_on(self.run.role_arn))]
        )


def role(scope: Construct, id: str, principal: iam.IPrincipal, statements: Sequence[Statement]) -> iam.Role:
    made = iam.Role(
        scope,
        id,
        assumed_by=principal,
        inline_policies={id: iam.PolicyDocument(statements=[as_cdk(statement) for statement in statements])},
    )
    for statement in statements:
        if statement.why:
            for resource in cdk.Stack.of(made).resolve([*statement.on]):
                if "*" in (text := _as_cdk_nag_writes(resource)):
                    acknowledge(made.node.default_child, f"IAM5[Resource::{text}]", statement.why)
    return made


def as_cdk(statement: Statement) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        effect=iam.Effect[statement.effect.upper()],
        actions=[*statement.actions],
        resources=[*statement.on],
        conditions=statement.condition,
    )


def _as_cdk_nag_writes(value: Any) -> str:
    match value:
        case {"Fn::Join": [delimiter, parts]}:
            return str(delimiter).join(map(_as_cdk_nag_writes, parts))
        case {"Fn::ImportValue": name}:
            return str(name)
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
    return str(value)
