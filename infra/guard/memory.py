"""What the guard remembers of a run from one minute to the next: `runs/<run_id>/guard.json`. `status` reads it, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from infra.run.values import check_number, check_object, check_text, check_texts, check_whole

MOST_ENDS = 100  # of machines whose end is remembered: the file stays small
WHY_LETTERS = 200  # of why one ended: a machine wrote parts of it


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
    attempt: int = 0  # the newest attempt that was seen at work
    is_interrupted: bool = False  # its machine was found gone
    ends: dict[str, str] = field(default_factory=dict)  # machine that the guard has ended, or stopped: why
    apart: dict[str, float] = field(default_factory=dict)  # machine that does not train with the others: since when
    replaced: tuple[float, ...] = ()  # when such machines were, in the last hours and since all machines trained
    shrunk: float = 0.0  # when the run was left to fewer machines: what died young before counts no more
    worked: float = 0.0  # the last tick of this launch that found an attempt at work
    lost: tuple[float, ...] = ()  # the ticks of the last hour that found machines, and no attempt at work after one was
    lost_told: float = 0.0  # when it was told that these are too many
    kept: float = 0.0  # the failure of which it was told that its machine is kept
    budget_percent: int = 0  # so much of the budget was told to be spent
    alert: str = ""  # the id of the newest alert that the machine told
    mails: tuple[float, ...] = ()  # when news was mailed in the last hour
    unmailed: int = 0  # lines of news that were too many since then
    told: tuple[str, ...] = ()  # events that SNS was told of
    untold: dict[str, str] = field(default_factory=dict)  # event that SNS refused: its message

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    def for_launch(self, deadline: float) -> Memory:
        """The memory for a new launch: empty, but for the marks of the last attempt and what was told."""
        if deadline in (0.0, self.deadline):
            return self
        return Memory(
            deadline=deadline, mark=self.mark, marked=self.marked, told=self.told, untold=self.untold,
            attempt=self.attempt, is_interrupted=True, alert=self.alert, mails=self.mails, unmailed=self.unmailed,
            ends=self.ends,
        )  # fmt: skip

    def with_ends(self, ends: Mapping[str, str]) -> Memory:
        """Remembers why machines end. The first reason for a machine counts, and the newest MOST_ENDS stay."""
        known = self.ends | {id: reason[:WHY_LETTERS] for id, reason in ends.items() if id not in self.ends}
        return replace(self, ends=dict([*known.items()][-MOST_ENDS:]))

    def changed(self, before: Memory) -> bool:
        """Whether anything but the times of the ticks differs."""
        return replace(self, at=before.at, active=before.active) != before

    @classmethod
    def from_json(cls, body: bytes) -> Memory:
        """Raises ValueError or TypeError if `to_json` did not write it."""
        value = check_object("the file", json.loads(body))
        known = {f.name for f in fields(cls)}
        memory = cls(**{name: content for name, content in value.items() if name in known})
        times = ("at", "deadline", "active", "stopped", "suspected", "marked", "without_machine", "kept", "shrunk")
        for name in (*times, "worked", "lost_told", "hang_kills"):
            check_number(name, getattr(memory, name))
        for name in ("reason", "checkpoint", "mark", "alert"):
            check_text(name, getattr(memory, name))
        for name in ("attempt", "budget_percent", "unmailed"):
            check_whole(name, getattr(memory, name))
        if not all(
            isinstance(one, bool) for one in (memory.is_over, memory.is_schedule_deleted, memory.is_interrupted)
        ):
            raise ValueError("is_over, is_schedule_deleted and is_interrupted must be true or false")
        for name in ("unwanted", "apart"):
            for id, since in check_object(name, getattr(memory, name)).items():
                check_number(id, since)
        for name in ("untold", "ends"):
            for key, text in check_object(name, getattr(memory, name)).items():
                check_text(key, text)
        object.__setattr__(memory, "told", check_texts("told", memory.told))
        for name in ("mails", "lost", "replaced"):
            object.__setattr__(memory, name, tuple(check_number(name, at) for at in getattr(memory, name)))
        return memory
