"""What the guard remembers of a run from one minute to the next: `runs/<run_id>/guard.json`. `status` reads it, too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace

from infra.run.values import check_number, check_object, check_text, check_texts


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the guard remembers of a run. Times are Unix seconds; 0 means never."""

    at: float = 0.0  # the last tick
    deadline: float = 0.0  # identifies the launch that this memory is about: each launch sets another one
    active: float = 0.0  # the last tick that found machines, or a group that wanted some
    is_over: bool = False  # the group has wanted no machine and had none for REST_SECONDS
    stopped: float = 0.0  # when the guard decided that this run must stop
    reason: str = ""  # why it must
    is_schedule_deleted: bool = False
    hang_kills: int = 0  # how often hung machines were replaced without a checkpoint newer than `checkpoint`
    checkpoint: str = ""  # the newest checkpoint at the last such replacement
    suspected: float = 0.0  # since when the run seems hung
    mark: str = ""  # the progress in the last heartbeat
    marked: float = 0.0  # the time of the first heartbeat with this mark
    without_machine: float = 0.0  # since when the group wants machines and has none
    unwanted: dict[str, float] = field(default_factory=dict)  # machine that must go: since when
    told: tuple[str, ...] = ()  # events that SNS was told of
    untold: dict[str, str] = field(default_factory=dict)  # event that SNS refused: its message

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    def for_launch(self, deadline: float) -> Memory:
        """The memory for a new launch: empty, but it keeps the mark of the last heartbeat and what SNS was told."""
        if deadline in (0.0, self.deadline):
            return self
        return Memory(deadline=deadline, mark=self.mark, marked=self.marked, told=self.told, untold=self.untold)

    def changed(self, before: Memory) -> bool:
        """Whether anything but the times of the ticks differs."""
        return replace(self, at=before.at, active=before.active) != before

    @classmethod
    def from_json(cls, body: bytes) -> Memory:
        """Raises ValueError or TypeError if `to_json` did not write it."""
        value = check_object("the file", json.loads(body))
        known = {f.name for f in fields(cls)}
        memory = cls(**{name: content for name, content in value.items() if name in known})
        for name in ("at", "deadline", "active", "stopped", "hang_kills", "suspected", "marked", "without_machine"):
            check_number(name, getattr(memory, name))
        for name in ("reason", "checkpoint", "mark"):
            check_text(name, getattr(memory, name))
        if not isinstance(memory.is_over, bool) or not isinstance(memory.is_schedule_deleted, bool):
            raise ValueError("is_over and is_schedule_deleted must be true or false")
        for id, since in check_object("unwanted", memory.unwanted).items():
            check_number(id, since)
        for event, message in check_object("untold", memory.untold).items():
            check_text(event, message)
        object.__setattr__(memory, "told", check_texts("told", memory.told))
        return memory
