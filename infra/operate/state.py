"""What a run does now, by its files in the bucket, EC2, and its Auto Scaling group. Reads only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from infra.config import Installation
from infra.guard.rules import SILENCE_SECONDS
from infra.operate.nodes import NodeRecord, read_nodes
from infra.operate.progress import NO_PROGRESS, KeptTails, Progress, read_finished, read_headline, read_progress
from infra.operate.runs import (
    Ending,
    ExplainedBucket,
    launched_at,
    machine_stays_until,
    read_ending,
    read_spec,
    read_spend,
)
from infra.operate.session import MOST_CONNECTIONS, Aws, explained
from infra.operate.text import duration, weekday_time
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from infra.run.values import printable
from trainer.contract import UserError, run_key


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that is known of a run, as read at `now`."""

    now: float
    run_id: str
    spec: Spec | None
    group: fleet.Group | None
    machines: tuple[fleet.FleetMachine, ...]  # that bill
    refusals: tuple[fleet.Refusal, ...]
    spend: Spend
    guard: dict[str, Any]  # guard.json
    ending: Ending | None
    progress: Progress
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)  # of a run of several, by machine; where one wrote it
    launched: float = 0.0  # Unix seconds of the last launch; 0: it was not asked for
    problem: str = (
        ""  # why the run's files cannot be read; what comes from them is then empty, and no dollars are known
    )

    @property
    def usd(self) -> float | None:
        """What it has cost so far; None where nobody can tell."""
        return None if self.problem else self.spend.usd(self.now)

    @property
    def team(self) -> int:
        """How many machines the run was launched with; 1 if nobody tells."""
        return int(self.spec.nodes) if self.spec else 1

    @property
    def is_wanted(self) -> bool:
        """Whether the group is asked for machines for this run."""
        return bool(self.group and self.group.desired and self.group.run_id == self.run_id)

    @property
    def projected_usd(self) -> float | None:
        """What the run will have cost at its end, at the present speed and price. None if that is not known."""
        left = self.progress.seconds_left
        if left is None or not self.machines:
            return None
        return self.spend.usd(self.now) + left / 3600 * self.spend.usd_per_hour()

    @property
    def deadline(self) -> float:
        """The deadline in the group's tag, else the spec's. 0 if it is not known."""
        tagged = self.group.deadline if self.group and self.is_wanted else 0.0
        return tagged or (self.spec.deadline if self.spec else 0.0)

    @property
    def kept_until(self) -> float:
        """Until when the machine on which the run failed stays on for the user. 0: there is none."""
        return machine_stays_until(self.ending, self.spec, self.deadline) if self.machines else 0.0

    @property
    def phase(self) -> str:
        """The phase in the newest heartbeat."""
        return printable(self.progress.phase or "unknown", 40)

    def summary(self) -> tuple[str, str]:
        """The state in one word, and a text that says what the run does, or why it does nothing."""
        if self.problem:
            bills = f"; machines that bill: {', '.join(one.id for one in self.machines)}" if self.machines else ""
            return "unreadable", f"{printable(self.problem)}{bills}"
        if ending := self.ending:
            until = self.kept_until
            kept = f"; its machine is kept until {weekday_time(until)} for make shell, and bills" if until else ""
            return ending.how, f"{ending.how}: {ending.message}{kept}"
        if not self.is_wanted:
            return "stopped", f"stopped: {printable(str(self.guard.get('reason') or '')) or 'its group is at 0'}"
        if not self.machines:
            return "waiting", "waiting for a machine"
        if self.progress.heartbeat_at < min(machine.launched for machine in self.machines):
            return "booting", "a machine boots (image and data take some minutes)"
        silent = self.now - self.progress.heartbeat_at
        if silent > SILENCE_SECONDS:
            last = f"silent for {duration(silent)} (last: {self.phase})"
            return "silent", f"{last}; the guard replaces a hung machine"
        beat = self.progress.heartbeat
        together = f", nodes {beat.nodes} of {self.team}" if beat and self.team > 1 else ""
        return "running", f"{self.phase}{together}, heard {duration(silent)} ago"


def read_state(
    aws: Aws, installation: Installation, bucket: ExplainedBucket, run_id: str, kept: KeptTails | None = None
) -> RunState:
    """The state of one run. Whoever reads it again and again passes `kept`."""
    with ThreadPoolExecutor(4) as pool:
        progress = pool.submit(read_progress, bucket, run_id, kept)
        ending = pool.submit(read_ending, bucket, run_id)
        spend = pool.submit(read_spend, bucket, run_id)
        guard = pool.submit(bucket.read_json, run_key(run_id, "guard.json"))
        spec = read_spec(bucket, run_id)
        with explained("the machines of the run"):
            autoscaling = aws.client("autoscaling")
            group = fleet.wanted_group(fleet.read_groups(autoscaling, installation.groups), run_id)
            seen = fleet.machines(aws.client("ec2"), installation.name, run_id)
            refusals: tuple[fleet.Refusal, ...] = ()
            if group and len(billing(seen)) < group.desired:
                refusals = tuple(fleet.why_no_machine(autoscaling, group, launched_at(bucket, run_id)))
        of_several = billing(seen) if spec and spec.nodes > 1 else ()
        nodes, odd = read_nodes(bucket, run_id, [machine.id for machine in of_several])
        known = progress.result()
    return RunState(
        now=time.time(), run_id=run_id, spec=spec, group=group, machines=billing(seen), refusals=refusals,
        spend=settle(spend.result(), seen), guard=guard.result(), ending=ending.result(),
        progress=replace(known, skipped=(*known.skipped, *odd)), nodes=nodes,
    )  # fmt: skip


def read_states(
    aws: Aws, installation: Installation, bucket: ExplainedBucket, run_ids: Iterable[str]
) -> list[RunState]:
    """The states of several runs, without those that were never launched.

    EC2 is asked once for all, while the bucket answers. Why a run has no machine, its attempts and its curves are left
    out.
    """
    with ThreadPoolExecutor(MOST_CONNECTIONS) as pool:
        stored = pool.map(partial(read_stored, bucket), run_ids)
        with explained("the machines of the runs"):
            groups = fleet.read_groups(aws.client("autoscaling"), installation.groups)
            seen = fleet.machines(aws.client("ec2"), installation.name)

        def placed(state: RunState) -> RunState:
            mine = [machine for machine in seen if machine.run_id == state.run_id]
            group = fleet.wanted_group(groups, state.run_id)
            return replace(state, group=group, machines=billing(mine), spend=settle(state.spend, mine))

        return [placed(state) for state in stored if state]


def read_stored(bucket: ExplainedBucket, run_id: str) -> RunState | None:
    """What the bucket tells of one run of many, with few requests; None if it was never launched."""
    stored = bucket.get(run_key(run_id, "spec.json"))
    if stored is None:
        return None
    try:
        spec = Spec.from_json(stored.body)
    except UserError:  # begun by a local `make train`
        spec = None
    known = RunState(
        now=time.time(), run_id=run_id, spec=spec, group=None, machines=(), refusals=(), spend=Spend(), guard={},
        ending=None, progress=NO_PROGRESS, launched=stored.modified.timestamp(),
    )  # fmt: skip
    try:
        ending = read_ending(bucket, run_id)
        return replace(
            known,
            spend=read_spend(bucket, run_id), ending=ending,
            progress=read_finished(bucket, run_id, ending.result)
            if ending and ending.how == "done" else read_headline(bucket, run_id),
            guard={} if ending else bucket.read_json(run_key(run_id, "guard.json")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # one damaged run does not hide the others
        return replace(known, problem=str(error))


def billing(seen: Sequence[fleet.FleetMachine]) -> tuple[fleet.FleetMachine, ...]:
    return tuple(machine for machine in seen if machine.is_billing)


def settle(spend: Spend, seen: Sequence[fleet.FleetMachine]) -> Spend:
    """The guard's tally, but a machine that has ended since the guard's last tick costs nothing after its end."""
    state = {machine.id: machine for machine in seen}

    def ended(machine: Machine) -> float:
        now = state.get(machine.id)
        return machine.ended or (0.0 if now and now.is_billing else (now and now.ended) or spend.at)

    return replace(spend, machines=tuple(replace(machine, ended=ended(machine)) for machine in spend.machines))
