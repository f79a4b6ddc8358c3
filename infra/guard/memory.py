"""What the guard knows from one minute to the next: `runs/<run_id>/guard.json`; `make status` shows it, too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Times are Unix seconds, 0 for never."""

    at: float = 0.0  # of the last look
    deadline: float = 0.0  # that of the launch which all of this is about: each sets another one
    active: float = 0.0  # of the last look that found machines, or found them wanted
    is_over: bool = False  # nothing wanted, nothing running, and that is no news any more
    stopped: float = 0.0  # when the guard found that this run must not go on
    reason: str = ""  # why
    is_schedule_deleted: bool = False
    hang_kills: int = 0  # machines replaced as hung since `checkpoint`
    checkpoint: str = ""  # the newest one at the last of them
    suspected: float = 0.0  # since when the run looks hung
    mark: str = ""  # what the last heartbeat said of its progress
    marked: float = 0.0  # the time of the first heartbeat that said so
    without_machine: float = 0.0  # since when machines are wanted and there is none
    unwanted: dict[str, float] = field(default_factory=dict)  # machines that should not be, since when
    told: tuple[str, ...] = ()  # the events that SNS was told of
    untold: dict[str, str] = field(default_factory=dict)  # and those that it refused, with their messages

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    def for_launch(self, deadline: float) -> Memory:
        """A run that was launched again starts anew, but for what SNS was told."""
        if deadline in (0.0, self.deadline):
            return self
        return Memory(deadline=deadline, mark=self.mark, marked=self.marked, told=self.told, untold=self.untold)

    def changed(self, before: Memory) -> bool:
        """In more than the time."""
        return replace(self, at=before.at, active=before.active) != before

    @classmethod
    def from_json(cls, body: bytes) -> Memory:
        """Raises ValueError or TypeError where it is not what `to_json` wrote."""
        value = json.loads(body)
        known = {f.name for f in fields(cls)}
        memory = cls(**{name: content for name, content in value.items() if name in known})
        object.__setattr__(memory, "told", tuple(memory.told))
        return memory
