"""CloudFormation in the emulator: a first creation that fails and is rolled back, and what the policies keep of it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from moto.cloudformation import models as cfn
from moto.cloudformation import parsing
from moto.core.exceptions import ServiceException

from tests.emulator.aws_control import SETTINGS

UNDOING = ContextVar("UNDOING", default=False)  # whether the operation that made the resources is rolled back


def patch() -> dict[str, Callable[[], None]]:
    policies_keep_resources()
    creations_are_rolled_back()
    return {}


def policies_keep_resources() -> None:
    """moto knows no RetainExceptOnCreate."""
    delete = parsing.ResourceMap.delete

    def deleted(self: parsing.ResourceMap) -> None:
        kept, as_written = {"Retain"} if UNDOING.get() else {"Retain", "RetainExceptOnCreate"}, self._resource_json_map
        self._resource_json_map = {
            name: {**one, "DeletionPolicy": "Retain" if one.get("DeletionPolicy") in kept else "Delete"}
            for name, one in as_written.items()
        }
        try:
            delete(self)
        finally:
            self._resource_json_map = as_written

    parsing.ResourceMap.delete = deleted


def creations_are_rolled_back() -> None:
    """In moto a creation that fails leaves the stack half made, and its caller gets the resource's error."""
    create = cfn.Stack.create_resources

    def created(self: cfn.Stack) -> None:
        try:
            create(self)
            reason = SETTINGS.create_failures.get(self.name, "")
        except ServiceException as error:  # what one of its resources says
            reason = str(error)
        if not reason:
            return
        self._add_stack_event("ROLLBACK_IN_PROGRESS", resource_status_reason=reason)
        undoing = UNDOING.set(True)
        try:
            self.resource_map.delete()
        finally:
            UNDOING.reset(undoing)
        self._add_stack_event("ROLLBACK_COMPLETE")
        self.status, self.status_reason = "ROLLBACK_COMPLETE", reason

    cfn.Stack.create_resources = created
