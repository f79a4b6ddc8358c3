"""One thing of an installation that is still there, and how EC2 is asked for such things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infra.config import Installation, Tag


@dataclass(frozen=True)
class LeftOver:
    """One thing that is still there."""

    service: str
    id: str
    command: str  # what removes it
    delete: Callable[[], object] | None = field(default=None, compare=False, repr=False)  # None: only by hand
    is_foreign: bool = False  # others have put it into our VPC, which cannot go before it


def tagged(installation: Installation) -> list[dict[str, Any]]:
    """EC2's filter for the things that carry the installation's tag."""
    return [{"Name": f"tag:{Tag.INSTALLATION}", "Values": [installation.name]}]


def stacks_of(installation: Installation) -> tuple[str, ...]:
    """The stacks that `destroy` deletes, in this order."""
    return installation.training_stack, installation.builder_stack
