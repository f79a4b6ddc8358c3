"""Whether CloudFormation has a stack, and in which state."""

from __future__ import annotations

from infra.operate.session import Aws

# The first deploy of such a stack failed, or never began. It has never worked, and the next deploy deletes it first.
DEAD = ("ROLLBACK_COMPLETE", "REVIEW_IN_PROGRESS", "CREATE_FAILED")


def stack_status(aws: Aws, name: str) -> str:
    """The status of a stack, or "" if it does not exist."""
    status = str(aws.stack(name).get("StackStatus", ""))
    return "" if status == "DELETE_COMPLETE" else status


def has_stack(aws: Aws, name: str) -> bool:
    """Whether there is a stack that a deploy can go on with."""
    return stack_status(aws, name) not in ("", *DEAD)
