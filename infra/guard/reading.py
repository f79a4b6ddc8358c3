"""What the guard reads: a run's files in the bucket. What cannot be read is unknown, never absent.

`rules` decides what follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from infra.guard.facts import Heartbeat, NodeSign, Signs
from infra.guard.memory import Memory
from infra.guard.observed import observed_alerts
from infra.run.spec import Spec
from infra.run.spend import Spend
from infra.run.values import MOST_BYTES, printable
from trainer.contract import HEAD_FILE, Lease, UserError, attempt_key, checkpoint_key, run_key

T = TypeVar("T")

MESSAGE_LETTERS = 1_000  # of what a machine says: the guard keeps it, and must be able to read that again


class UnreadableError(Exception):
    """The bucket did not answer, or the file is not what it must be."""


@dataclass(frozen=True)
class ReadObject:
    body: bytes
    at: float  # when it was written, in S3's time

    def json(self) -> dict[str, Any]:
        """The JSON object in the body. {} if the body is not a JSON object."""
        with suppress(ValueError, RecursionError):
            value = json.loads(self.body)
            if isinstance(value, dict):
                return value
        return {}


@dataclass(frozen=True, kw_only=True)
class KnownRun:
    """What this process knows of a run. At each tick, what can be read from the bucket replaces it."""

    id: str
    spec: Spec | None = None
    spec_problem: str = ""
    spend: Spend | None = None  # None: it was never read, so it must not be written
    is_spend_new: bool = False  # the tally must be stored
    memory: Memory | None = None  # None: as for spend
    problems: tuple[str, ...] = field(default=())  # what could not be read at the last tick


class CautiousBucket:
    """The bucket during one tick. After a request without an answer, it is not asked again: a tick has a minute."""

    def __init__(self, s3: Any, name: str):
        self.s3, self.name, self.silence = s3, name, ""

    def read(self, key: str) -> ReadObject | None:
        """The object's bytes. None if there is no such object; UnreadableError if that is unknown."""
        if self.silence:
            raise UnreadableError(f"s3://{self.name}/{key} was not asked for: {self.silence}")
        try:
            found = self.s3.get_object(Bucket=self.name, Key=key)
            body = found["Body"].read(MOST_BYTES + 1)
            if len(body) <= MOST_BYTES:
                found["Body"].read()  # at the end, this compares length and checksum: a body that was cut raises
        except self.s3.exceptions.NoSuchKey:
            return None
        except Exception as error:
            if not hasattr(error, "response"):  # S3 did not answer
                self.silence = str(error)
            raise UnreadableError(f"s3://{self.name}/{key} cannot be read: {error}") from error
        if len(body) > MOST_BYTES:  # a larger one would not fit into the function's memory
            found["Body"].close()
            raise UnreadableError(f"s3://{self.name}/{key} is larger than {MOST_BYTES:,} bytes: no run writes that")
        return ReadObject(body, found["LastModified"].timestamp())

    def list(self, prefix: str) -> dict[str, float]:
        """When each object below the prefix was written, by the rest of its key. UnreadableError if that is unknown."""
        if self.silence:
            raise UnreadableError(f"s3://{self.name}/{prefix} was not listed: {self.silence}")
        found: dict[str, float] = {}
        asked: dict[str, str] = {"Bucket": self.name, "Prefix": prefix}
        while True:
            try:
                page = self.s3.list_objects_v2(**asked)
            except Exception as error:
                if not hasattr(error, "response"):
                    self.silence = str(error)
                raise UnreadableError(f"s3://{self.name}/{prefix} cannot be listed: {error}") from error
            for one in page.get("Contents", []):
                found[one["Key"].removeprefix(prefix)] = one["LastModified"].timestamp()
            if not page.get("NextContinuationToken"):
                return found
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def write(self, key: str, body: bytes) -> None:
        if self.silence:
            raise UnreadableError(f"s3://{self.name}/{key} was not written: {self.silence}")
        self.s3.put_object(Bucket=self.name, Key=key, Body=body, ContentType="application/json")


def read_run(bucket: CautiousBucket, known: KnownRun) -> KnownRun:
    """Reads the run's spec, its tally and the guard's memory."""
    problems: list[str] = []

    def parsed(file: str, parse: Callable[[bytes], T], missing: T, otherwise: T) -> T:
        try:
            found = bucket.read(run_key(known.id, file))
            return parse(found.body) if found else missing
        except UnreadableError as error:
            problems.append(str(error))
        except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problems.append(f"runs/{known.id}/{file} is not valid: {error}")
        return otherwise

    spec, spec_problem = parsed("spec.json", _parse_spec, (None, "it is missing"), (known.spec, known.spec_problem))
    spend = parsed("spend.json", Spend.from_json, Spend(), known.spend)
    if spend and known.spend and known.is_spend_new and known.spend.at > spend.at:
        spend = known.spend  # the last tick could not write it
    memory = parsed("guard.json", Memory.from_json, Memory(), known.memory)
    if memory and known.memory and known.memory.at > memory.at:
        memory = known.memory
    return replace(known, spec=spec, spec_problem=spec_problem, spend=spend, memory=memory, problems=tuple(problems))


def read_signs(
    bucket: CautiousBucket, run_id: str, now: float, *, is_wanted: bool, is_suspect: bool,
    team: Collection[str] | None = None,
) -> tuple[Signs, list[str]]:  # fmt: skip
    """Reads what the run's machines wrote, as far as it matters now. Also returns what could not be read.

    `team`: of a run of several machines, those that bill.
    """
    problems: list[str] = []

    def get(key: str) -> ReadObject | None:
        try:
            return bucket.read(key)
        except UnreadableError as error:
            problems.append(str(error))
            return None

    if done := get(run_key(run_id, "done.json")):
        return Signs(done=done.at), problems
    if failed := get(run_key(run_id, "failed.json")):
        body, readable = failed.json(), len(problems)
        later = get(attempt_key(run_id, _int(body.get("attempt")) + 1))  # attempts are numbered without a gap
        if later is None and len(problems) == readable:
            return Signs(failed=failed.at, failure=printable(str(body.get("message", "")), MESSAGE_LETTERS)), problems
    if not is_wanted:
        return Signs(), problems
    readable = len(problems)
    beat = get(run_key(run_id, "heartbeat.json"))
    if beat is None:
        nodes = None if team is None else _read_nodes(bucket, run_id, (), problems)
        return Signs(heartbeat=Heartbeat(at=0.0) if len(problems) == readable else None, nodes=nodes), problems
    body = beat.json()
    attempt = _int(body.get("attempt"))
    phase, step, progress = (printable(str(body.get(name, "")), 100) for name in ("phase", "step", "progress"))
    mark = f"attempt {attempt}, {phase}, step {step or 0}, {progress or 0}"
    ended = get(attempt_key(run_id, attempt)) if now - beat.at > 60 else None
    members = max(1, _int(body.get("nodes")))
    nodes = None if team is None else _read_nodes(bucket, run_id, team if members < len(team) else (), problems)
    return Signs(
        heartbeat=Heartbeat(
            at=beat.at, mark=mark, attempt=attempt, phase=phase, step=_int(body.get("step")),
            nodes=members, alerts=observed_alerts(body),
        ),
        nodes=nodes,
        paused=ended.at if ended and "exit" in ended.json() else 0.0,
        checkpoint=_newest(get(checkpoint_key(run_id, HEAD_FILE))) if is_suspect else "",
    ), problems  # fmt: skip


def _read_nodes(
    bucket: CautiousBucket, run_id: str, team: Collection[str], problems: list[str]
) -> dict[str, NodeSign] | None:
    """The record of each machine that has ever written one; what is in it only of those in `team`. None: unknown."""
    found: dict[str, NodeSign] = {}
    try:
        for name, at in bucket.list(run_key(run_id, "nodes/")).items():
            id = name.removesuffix(".json")
            record = bucket.read(run_key(run_id, f"nodes/{id}.json")) if id in team else None
            body = record.json() if record else {}
            phase = printable(str(body.get("phase") or ""), 100)  # null until its processes have met the others
            found[id] = NodeSign(at=record.at if record else at, attempt=_int(body.get("attempt")), phase=phase)
    except UnreadableError as error:
        problems.append(str(error))
        return None
    return found


def _parse_spec(body: bytes) -> tuple[Spec | None, str]:
    """The spec, or what is wrong with it: a spec that was edited by hand may be JSON and still have no budget."""
    try:
        spec = Spec.from_json(body)
    except UserError as error:
        return None, str(error)
    try:
        amounts = [spec.budget_usd, spec.deadline, *spec.prices.values(), 1 + spec.on_demand_after_minutes]
        has_extras = 0 <= spec.extras_usd_per_hour < math.inf
        if spec.prices and has_extras and all(0 < amount < math.inf for amount in amounts):
            return spec, ""
    except (AttributeError, TypeError):
        pass
    rule = "budget_usd, deadline and prices must be numbers above 0, extras_usd_per_hour at least 0"
    return None, f"{rule}: `make launch` writes them"


def _newest(found: ReadObject | None) -> str:
    """The newest checkpoint that HEAD.json names; "" if it names none or is not valid."""
    with suppress(ValueError):
        return Lease.from_json(found.body).newest if found else ""
    return ""


def _int(value: object) -> int:
    return value if type(value) is int else 0  # True is an int, too, and the guard could not read its memory again
