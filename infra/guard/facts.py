"""What the guards decide by: a run and its groups, as AWS and the bucket have just told. There is no I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from infra.guard.memory import Memory
from infra.guard.observed import ObservedAlert
from infra.run.fleet import FleetMachine, Group
from infra.run.spec import Spec
from infra.run.spend import Spend


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """heartbeat.json. Its time is S3's, not the machine's, whose clock may be wrong."""

    at: float
    mark: str = ""  # attempt, phase, step and progress counter: they change while the run proceeds
    attempt: int = 0
    phase: str = ""
    step: int = 0
    nodes: int = 1  # machines of the attempt
    alerts: tuple[ObservedAlert, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeSign:
    """The newest record of one machine of a run of several. Its time is S3's."""

    at: float
    attempt: int = 0  # 0: it was not read, or names none
    phase: str = ""


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What the run's machines wrote to the bucket. Times are S3's; 0 means never, or unknown."""

    heartbeat: Heartbeat | None = None  # None: unknown
    nodes: Mapping[str, NodeSign] | None = None  # by machine, also of those that are gone; None: unknown, or only one
    paused: float = 0.0  # when the heartbeat's attempt ended: boot will start the next one
    done: float = 0.0  # when done.json was written
    failed: float = 0.0  # when failed.json was written; it counts while no later attempt has started
    failure: str = ""  # the message of failed.json
    checkpoint: str = ""  # the newest checkpoint; "" for none, or unknown


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run and its groups, as AWS has just described them. Times are Unix seconds; 0 means never, or unknown."""

    now: float
    groups: tuple[Group, ...]  # with the tags of the run; or one group without a run
    machines: tuple[FleetMachine, ...] | None = ()  # that the groups launched; None: EC2 did not answer
    spec: Spec | None = None
    spec_problem: str = ""  # what is wrong with spec.json
    unknown_budget: str = ""  # why spec or spend are unknown: this process has never been able to read them
    spend: Spend = field(default_factory=Spend)
    signs: Signs = field(default_factory=Signs)
    memory: Memory = field(default_factory=Memory)

    @property
    def run_id(self) -> str:
        return self.groups[0].run_id

    @property
    def desired(self) -> int:
        """How many machines the groups are asked for, together."""
        return sum(group.desired for group in self.groups)

    @property
    def deadline(self) -> float:
        """The latest deadline in the groups' tags, which is of the last launch; without a valid tag, the spec's."""
        return max(group.deadline for group in self.groups) or (self.spec.deadline if self.spec else 0.0)

    @cached_property
    def billing(self) -> tuple[FleetMachine, ...]:
        return tuple(machine for machine in self.machines or () if machine.is_billing)

    @property
    def team(self) -> tuple[str, ...] | None:
        """The machines that bill, of a run of several; None for a run of one."""
        is_team = self.spec and self.spec.nodes > 1
        return (*(machine.id for machine in self.billing), *self.overlooked) if is_team else None

    @property
    def overlooked(self) -> tuple[str, ...]:
        """The machines that bill by the tally, and that EC2 has left out of its answer."""
        shown = {machine.id for machine in self.machines or ()}
        return tuple(machine.id for machine in self.spend.open if machine.id not in shown)

    @property
    def is_at_rest(self) -> bool:
        """The groups want no machine and have none. Unknown machines do not count: the guard could not stop them."""
        return self.desired == 0 and not self.billing

    @property
    def is_active(self) -> bool:
        """Not at rest, or at rest for less than REST_SECONDS after it was active."""
        return not self.is_at_rest or bool(self.memory.active and not self.memory.is_over)
