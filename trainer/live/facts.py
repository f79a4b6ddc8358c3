"""Reads what is known of a run: whether it has ended, its heartbeat, its newest attempt and checkpoint, its dollars."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from trainer.checkpoint.line import read_lease
from trainer.contract import RUN_ID_RULE, Exit, UserError, run_key
from trainer.live.documents import (
    AttemptRecord,
    Finish,
    Money,
    Pulse,
    Saved,
    parse_attempt,
    parse_done,
    parse_finish,
    parse_pulse,
    parse_saved,
)
from trainer.store import NotFoundError, ObjectStore, StoreError
from trainer.values import as_number, as_text, as_time, as_whole, check_known, parse_object

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All that is read of a run. None or "": it is not there. Times are Unix seconds."""

    run_id: str
    spec: Mapping[str, Any] | None = None
    finish: Finish | None = None
    done: AttemptRecord | None = None
    failed: AttemptRecord | None = None  # only if no later attempt was started
    pulse: Pulse | None = None
    attempts: int = 0  # the number of the newest, unless another one still has the run
    first: AttemptRecord | None = None
    newest: AttemptRecord | None = None  # the one of that number
    saved: Saved | None = None  # the newest checkpoint
    money: Money = field(default_factory=Money)
    skipped: tuple[str, ...] = ()  # what no machine of ours writes, and why

    @property
    def exists(self) -> bool:
        found = (self.spec, self.finish, self.done, self.failed, self.pulse, self.newest, self.saved)
        return any(one is not None for one in found) or bool(self.skipped)

    @property
    def recipe(self) -> str:
        """ "" where nothing tells."""
        told = self.spec.get("recipe", "") if self.spec else ""
        return (self.finish and self.finish.recipe) or (self.saved and self.saved.recipe) or told

    @property
    def team(self) -> int:
        """The most machines that the run was started for; of a run of several that nobody launched, those of now."""
        return max(self.spec.get("nodes", 1) if self.spec else 1, self.pulse.nodes if self.pulse else 1)

    @property
    def started(self) -> float | None:
        """When its first attempt began, else when it was launched; None where nothing tells."""
        launched = self.spec.get("created", 0.0) if self.spec else 0.0
        return (self.first.started if self.first else 0.0) or launched or None

    @property
    def step(self) -> int:
        """Where the run is. A checkpoint of a later attempt than the heartbeat's may lie before it: after a rewind."""
        if self.finish:
            return self.finish.steps
        if self.saved is None or self.pulse is None:
            return self.saved.step if self.saved else self.pulse.step if self.pulse else 0
        is_later = self.saved.attempt > self.pulse.attempt
        return self.saved.step if is_later else max(self.pulse.step, self.saved.step)

    @property
    def total_steps(self) -> int | None:
        """Of all epochs, as the result or the newest checkpoint tells."""
        return self.finish.total_steps if self.finish else self.saved.total_steps if self.saved else None

    @property
    def top1(self) -> float | None:
        """The best accuracy in validation, as a fraction."""
        best = self.finish.top1 if self.finish else self.saved.top1 if self.saved else None
        return best if best is not None or self.saved is None else self.saved.last_top1


class RunDocuments:
    """Reads the objects of one run, and collects in `skipped` what no machine of ours writes."""

    def __init__(self, store: ObjectStore, run_id: str):
        self.store, self.run_id, self.skipped = store, run_id, list[str]()

    def read(self, file: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """A file of the run; None where it is missing or damaged. Raises StoreError."""
        return self.read_key(run_key(self.run_id, file), parse)

    def read_key(self, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        try:
            return parse(parse_object(self.store.get(key)))
        except NotFoundError:
            return None
        except ValueError as error:
            self.skipped.append(f"{key} is not what a run writes: {error}")
            return None


def read_facts(store: ObjectStore, run_id: str) -> RunFacts:
    """What is known of a run. Of a finished one it reads `done.json`, and what that lacks. Raises StoreError."""
    documents = RunDocuments(store, run_id)
    done = documents.read("done.json", parse_done)
    if finish := (done and done.finish) or documents.read("result.json", parse_finish):
        first = (done and done.first) or documents.read("attempts/1.json", parse_attempt)
        facts = RunFacts(run_id=run_id, finish=finish, attempts=finish.attempts, first=first, newest=first)
        money = _read_money(documents, None) if first is None or first.machine else Money()
        return replace(facts, money=money, skipped=tuple(documents.skipped))
    pulse = documents.read("heartbeat.json", parse_pulse)
    attempts, newest = _read_newest(documents, pulse)
    first = newest if attempts == 1 else documents.read("attempts/1.json", parse_attempt) if attempts else None
    failed_at, failed = -1, None
    if newest is None or newest.code not in (Exit.FINISHED, Exit.INTERRUPTED):
        failed_at, failed = documents.read("failed.json", _parse_failed) or (-1, None)
    spec = documents.read("spec.json", _parse_launch)
    is_counted = spec is None or spec["budget_usd"] is not None  # by the guard on AWS
    return RunFacts(
        run_id=run_id, spec=spec, pulse=pulse, attempts=attempts, first=first, newest=newest,
        done=done.record if done else None,
        failed=failed if failed_at >= attempts else None,
        saved=_read_saved(documents), money=_read_money(documents, spec) if is_counted else Money(),
        skipped=tuple(documents.skipped),
    )  # fmt: skip


def _read_newest(documents: RunDocuments, pulse: Pulse | None) -> tuple[int, AttemptRecord | None]:
    """The number and the record of the newest attempt; 0 without one.

    It may be a second start, which waits for the run or was refused, while the attempt of the heartbeat works on. Then
    that one counts.
    """
    number = _newest_attempt(documents.store, documents.run_id)
    newest = documents.read(f"attempts/{number}.json", parse_attempt) if number else None
    if newest is None or pulse is None or not 0 < pulse.attempt < number:
        return number, newest
    is_refused = newest.code == Exit.HELD
    if is_refused or (newest.code is None and pulse.time > newest.started):
        holder = documents.read(f"attempts/{pulse.attempt}.json", parse_attempt)
        if holder is not None and (is_refused or holder.code is None):
            return pulse.attempt, holder
    return number, newest


def _newest_attempt(store: ObjectStore, run_id: str) -> int:
    folder = run_key(run_id, "attempts/")
    names = (re.fullmatch(r"([0-9]{1,15})\.json", info.key.removeprefix(folder)) for info in store.list(folder))
    return max((int(name[1]) for name in names if name), default=0)


def _parse_failed(value: dict[str, Any]) -> tuple[int, AttemptRecord]:
    return as_whole("attempt", value.get("attempt", 0)), parse_attempt(value)


def _parse_launch(value: dict[str, Any]) -> dict[str, Any]:
    """What is used of `spec.json`. A local run writes a shorter one, without dollars and times."""
    return {
        "recipe": as_text("recipe", value.get("recipe", "")),
        "kind": as_text("kind", value.get("kind", "train")),
        "nodes": as_whole("nodes", value.get("nodes", 1)),
        "created": as_time("created", value.get("created", 0)),
        "budget_usd": float(as_number("budget_usd", value["budget_usd"])) if "budget_usd" in value else None,
    }


def _read_saved(documents: RunDocuments) -> Saved | None:
    """Of the newest checkpoint that HEAD.json names."""
    lease = read_lease(documents.store, documents.run_id)
    return documents.read_key(lease.newest, parse_saved) if lease is not None and lease.newest else None


def _read_money(documents: RunDocuments, spec: Mapping[str, Any] | None) -> Money:
    """As the guard counts them on AWS; elsewhere nobody does."""
    spent = documents.read("spend.json", lambda value: float(as_number("usd", check_known(value, "usd"))))
    return Money(spent=spent, budget=spec["budget_usd"] if spec else None)


def known_runs(store: ObjectStore) -> list[str]:
    """The names of all runs, sorted. What is not named like a run is none.

    Raises UserError if there is no such store, StoreError.
    """
    try:
        return [name for name in store.folders("runs/") if re.fullmatch(RUN_ID_RULE, name)]
    except StoreError as error:
        if error.code in ("ENOENT", "ENOTDIR", "NoSuchBucket"):
            raise UserError(f"there is no store {store.uri}: name another with STORE=, or start a run") from error
        raise
