"""How each attempt of a run ended, and why: by what the attempt itself, the guard and EC2 have said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.operate.documents import number_or_zero
from infra.operate.nodes import NodeRecord, read_nodes
from infra.operate.runs import ExplainedBucket, read_attempts, read_spend
from infra.operate.text import weekday_time
from infra.run.spend import Machine, Spend
from infra.run.values import printable
from trainer.contract import Exit, UserError, run_key

DEADLINE_SECONDS = 300.0  # before the deadline its machine stops the run, which may take so long
AFTER_STOP_SECONDS = 600.0  # so long after the guard has stopped a run, its machine may still save
TOLD_BY_NOTICE = "spot notice"  # so the reason of an attempt begins that was told of its machine's reclaim
RECLAIMED = ("Server.Spot",)  # EC2's codes for machines that AWS took back
EC2_ENDS = {  # EC2's other codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
    "Client.UserInitiatedShutdown": "its machine was terminated: by make stop, its group, or somebody",
    "Client.InstanceInitiatedShutdown": "its machine powered off by itself",
}


class EndTeller:
    """Tells how attempts ended, each once. Between two calls it asks for more than a list only if that has changed."""

    def __init__(self, bucket: ExplainedBucket, run_id: str, nodes: int = 1) -> None:
        self.bucket, self.run_id, self.nodes = bucket, run_id, nodes
        self.listed: list[tuple[str, str]] = []
        self.told: set[str] = set()  # the numbers of attempts, and the ids of machines

    def tell(self, *, is_over: bool = False) -> list[str]:
        """A line for each attempt that is newly known to have ended. `is_over`: nothing of the run goes on any more."""
        asked = ("attempts/", "spend.json") if self.nodes > 1 else ("attempts/",)
        listed = [(one.key, one.etag) for file in asked for one in self.bucket.list(run_key(self.run_id, file))]
        if listed == self.listed and not is_over:
            return []
        self.listed = listed
        guard = self.bucket.read_json(run_key(self.run_id, "guard.json"))
        try:
            spend = read_spend(self.bucket, self.run_id)
        except UserError:  # `status` says so; here only less is known
            spend = Spend()
        attempts = read_attempts(self.bucket, self.run_id)
        ends = {str(number): line for number, line in attempt_ends(attempts, guard, spend, is_over=is_over).items()}
        if self.nodes > 1:
            gone = [machine for machine in spend.machines if machine.ended and machine.id not in self.told]
            records, _ = read_nodes(self.bucket, self.run_id, [machine.id for machine in gone])
            ends |= node_ends(gone, records, guard)
        new = [line for number, line in ends.items() if number not in self.told]
        self.told |= ends.keys()
        return new


def attempt_ends(
    attempts: Sequence[Mapping[str, Any]], guard: Mapping[str, Any], spend: Spend, *, is_over: bool
) -> dict[int, str]:
    """A line for each attempt that has ended, by its number, oldest first: machine, time, and why it ended."""
    machines, found = {machine.id: machine for machine in spend.machines}, dict[int, str]()
    for number, attempt in enumerate(attempts):
        machine = machines.get(id := machine_of(attempt))
        later = attempts[number + 1 :]
        at = number_or_zero(attempt.get("ended")) or (machine.ended if machine else 0.0)
        if "exit" in attempt:
            why = why_it_ended(attempt, at, machine, guard)
        elif later or is_over or (machine and machine.ended):
            is_same = bool(later and id and machine_of(later[0]) == id)
            why = why_it_vanished(at, id, machine, guard, is_same_machine=is_same)
        else:
            continue  # it runs
        where, when = f" on {id}" if id else "", f" {weekday_time(at)}" if at else ""
        found[attempt["attempt"]] = printable(f"attempt {attempt['attempt']}{where} ended{when}: {why}", 500)
    return found


def node_ends(gone: Sequence[Machine], records: Mapping[str, NodeRecord], guard: Mapping[str, Any]) -> dict[str, str]:
    """A line for each machine of a run of several that is gone, by its id: its last words, and why it is gone."""
    found = dict[str, str]()
    for machine in gone:
        record, why = records.get(machine.id), why_it_was_stopped(machine.ended, machine.id, machine, guard)
        was = f"{record.role}, attempt {record.attempt}" if record else "it has never written a record"
        words = f"; {record.message}" if record and record.message else ""
        told = f"node {machine.id} ({was}) ended {weekday_time(machine.ended)}: {why or 'nobody told why'}{words}"
        found[machine.id] = printable(told, 500)
    return found


def machine_of(attempt: Mapping[str, Any]) -> str:
    return str((attempt.get("machine") or {}).get("id", ""))


def why_it_ended(attempt: Mapping[str, Any], at: float, machine: Machine | None, guard: Mapping[str, Any]) -> str:
    """Of an attempt that wrote its exit code."""
    code, message, reason = attempt["exit"], str(attempt.get("message", "")), str(attempt.get("reason", ""))
    if code == Exit.INTERRUPTED:
        if reason.startswith(TOLD_BY_NOTICE):
            return f"AWS took its machine back ({reason}); {message}"
        return f"{why_it_was_stopped(at, machine_of(attempt), machine, guard) or 'it was told to stop'}; {message}"
    words = {Exit.FINISHED: "it finished", Exit.HELD: "another trainer had the run", Exit.USER: "it failed"}
    return f"{words.get(code, f'it crashed with exit code {code}')}: {message}"


def why_it_vanished(
    at: float, id: str, machine: Machine | None, guard: Mapping[str, Any], *, is_same_machine: bool
) -> str:
    """Of an attempt that wrote no end. `is_same_machine`: the next attempt was on the same one."""
    if is_same_machine:
        return "its container was killed without a word: boot's next lines in the log have the exit code"
    known = why_it_was_stopped(at, id, machine, guard)
    return f"{known or 'it wrote no end, and nobody told why its machine is gone'}; its last save counts"


def why_it_was_stopped(at: float, id: str, machine: Machine | None, guard: Mapping[str, Any]) -> str:
    """What the guard, EC2 or the deadline did to the attempt's machine; "" if that is not known."""
    ends = guard.get("ends")
    if isinstance(ends, dict) and id in ends:
        return f"the guard ended its machine: {ends[id]}"
    if machine and machine.end.startswith(RECLAIMED):
        return "AWS took its machine back"
    stopped = number_or_zero(guard.get("stopped"))
    if stopped and 0 <= at - stopped <= AFTER_STOP_SECONDS:  # a guard that was deployed earlier names no machine
        return f"the guard stopped the run: {guard.get('reason')}"
    if at and machine and machine.deadline and at >= machine.deadline - DEADLINE_SECONDS:
        return "its deadline had come"
    return EC2_ENDS.get(machine.end, machine.end) if machine else ""
