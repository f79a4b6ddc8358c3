"""The guard function. AWS Lambda calls `handler` every minute, and the guard stops what must no longer run and bill.

Each minute is one tick: read the facts, decide by `rules`, act, remember, notify.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from infra.config import schedule_names
from infra.guard import acting, notices, prices, reading, rules
from infra.guard.acting import noted
from infra.guard.facts import Facts
from infra.guard.memory import Memory
from infra.guard.prices import SpotHistory
from infra.guard.reading import CautiousBucket, KnownRun
from infra.guard.rules import Decision
from infra.run import fleet
from infra.run.fleet import Clients, FleetMachine, Group
from infra.run.spend import Spend
from infra.run.values import printable
from trainer.contract import run_key

MAIL_LETTERS = 1_000  # of a mail: a machine wrote parts of it, and it comes from AWS's own address
NEWS_EVENT = "news"  # the one event that comes again and again
STORE_SECONDS = 300.0  # while a machine bills, the tally is stored so often: its time shows that the guard runs


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """The function's environment variables, one for each field."""

    installation: str
    bucket: str
    topic: str
    groups: tuple[str, ...]  # the names of all Auto Scaling groups, by ','

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> GuardSettings:
        return cls(
            installation=environ["INSTALLATION"], bucket=environ["BUCKET"], topic=environ["TOPIC"],
            groups=tuple(environ["GROUPS"].split(",")),
        )  # fmt: skip


class Guard:
    """Lives as long as Lambda's process. What it remembers saves reads, and helps while the store fails."""

    def __init__(self, client: Clients, settings: GuardSettings, without: Collection[str] = ()):
        self.settings, self.without = settings, without
        self.ec2, self.autoscaling, self.s3 = client("ec2"), client("autoscaling"), client("s3")
        self.scheduler, self.sns = client("scheduler"), client("sns")
        self.bucket, self.history = CautiousBucket(self.s3, settings.bucket), SpotHistory(self.ec2)
        self.runs: dict[str, KnownRun] = {}
        self.settled: set[tuple[str, float]] = set()  # launches that are over, by run and deadline

    def tick(self, now: float) -> list[str]:
        """Do one minute's work. Returns what could not be read or done; that does not stop the rest."""
        problems: list[str] = []
        self.bucket, self.history = CautiousBucket(self.s3, self.settings.bucket), SpotHistory(self.ec2)
        machines: list[FleetMachine] | None = None
        with noted(problems, "the machines"):
            machines = fleet.machines(self.ec2, self.settings.installation)
        groups = self.read_groups(machines or [], problems)
        for of_run in acting.together(groups):
            names = {group.name for group in of_run}
            mine = None if machines is None else tuple(m for m in machines if m.group in names)
            is_tended = False
            with noted(problems, f"the run {of_run[0].run_id!r}"):
                self.tend(of_run, mine, now, problems)
                is_tended = True
            if not is_tended:  # apply the rules that need no file of the run: its deadline above all
                with noted(problems, f"the groups {', '.join(sorted(names))}"):
                    facts = Facts(now=now, groups=of_run, machines=mine, unknown_budget=problems[-1])
                    self.act(facts, rules.decide(facts, self.without), problems)
        if machines:
            for run_id in {m.run_id for m in machines} - {group.run_id for group in groups} - {""}:
                with noted(problems, f"the tally of {run_id}"):
                    self.settle(run_id, [m for m in machines if m.run_id == run_id], now)
            if "outside" not in self.without and (lost := rules.outside(machines, self.settings.groups, now)):
                self.terminate(lost, problems)
                with noted(problems, "a notice"):
                    self.tell("terminated", "\n".join(f"{id}: {reason}" for id, reason in lost.items()))
        return problems

    def read_groups(self, machines: list[FleetMachine], problems: list[str]) -> list[Group]:
        """The groups that exist. If AWS does not answer, the tags of their machines describe them."""
        with noted(problems, "the groups"):
            return fleet.read_groups(self.autoscaling, self.settings.groups)
        return [group for name in self.settings.groups if (group := presume(name, machines))]

    def tend(
        self, groups: tuple[Group, ...], machines: tuple[FleetMachine, ...] | None, now: float, problems: list[str]
    ) -> None:
        """Reads, decides and acts for one run and its groups."""
        facts = Facts(now=now, groups=groups, machines=machines)
        run_id, launch = facts.run_id, (facts.run_id, facts.deadline)
        self.settled.discard((run_id, 0.0))
        if not facts.is_at_rest:
            self.settled.discard(launch)  # a tick in the middle of `launch` finds the groups at rest, too
        elif not run_id or launch in self.settled:
            return
        run = self.runs.get(run_id, KnownRun(id=run_id))
        if run_id:
            run = reading.read_run(self.bucket, run)
            problems += run.problems
            run = self.tallied(run, None if machines is None else [m for m in machines if m.run_id == run.id], now)
        is_known = run.spend is not None and bool(run.spec or run.spec_problem)
        facts = Facts(
            now=now, groups=groups, machines=machines, spec=run.spec, spec_problem=run.spec_problem,
            unknown_budget="" if is_known else "; ".join(run.problems), spend=run.spend or Spend(),
            memory=run.memory or Memory(),
        )  # fmt: skip
        if run_id and facts.is_active:
            signs, unread = reading.read_signs(
                self.bucket, run.id, now, is_wanted=bool(facts.billing or facts.desired),
                is_suspect=bool(facts.memory.suspected), team=facts.team,
            )  # fmt: skip
            problems += unread
            facts = replace(facts, signs=signs)
        decision = rules.decide(facts, self.without)
        memory = self.act(facts, decision, problems, has_news=run.memory is not None)
        if run_id:
            self.remember(run, memory, problems)
            if not facts.is_active and run.spend and not run.spend.open:
                self.settled.add(launch)
        else:
            self.runs[""] = replace(run, memory=memory)

    def act(self, facts: Facts, decision: Decision, problems: list[str], *, has_news: bool = False) -> Memory:
        """Does what was decided and returns the new memory. What fails is tried again at the next tick.

        News comes last. Only a memory that will be stored may have news, or it would be mailed every minute.
        """
        memory = decision.memory
        messages = dict(memory.untold)  # event: the message to SNS
        if decision.stop and acting.stop_run(self.autoscaling, facts, problems):
            memory = memory.with_ends({machine.id: decision.stop for machine in facts.billing})
            if facts.desired:
                memory = replace(memory, unwanted={machine.id: facts.now for machine in facts.billing})
            if not memory.stopped:
                memory = replace(memory, stopped=facts.now, reason=decision.stop)
                messages[f"stopped {facts.deadline:.0f}"] = f"{decision.stop}. {_told_spend(facts)}"
        if decision.terminate:
            done = self.terminate(decision.terminate, problems)
            if decision.is_hang and not done:
                memory = replace(memory, hang_kills=facts.memory.hang_kills, checkpoint=facts.memory.checkpoint)
            memory = memory.with_ends({id: decision.terminate[id] for id in done})
            for id in done:
                messages[f"terminated {id}"] = f"machine {id} was terminated: {decision.terminate[id]}"
        if decision.nodes:
            with noted(problems, f"shrinking the groups to {decision.nodes}"):
                message, memory = self.shrink(facts, decision, memory, problems)
                messages[f"shrunk {facts.deadline:.0f} to {decision.nodes}"] = message
        if decision.is_market_due:
            with noted(problems, "changing to on-demand machines"):
                nodes = decision.nodes or facts.desired
                message = acting.change_market(self.autoscaling, facts, nodes, problems)
                messages[f"market {facts.deadline:.0f}"] = message
        is_this_launch = bool(facts.run_id) and memory.deadline == facts.deadline  # a newer launch keeps its schedules
        if facts.is_at_rest and is_this_launch and memory.stopped and not memory.is_schedule_deleted:
            with noted(problems, "deleting the schedules"):
                for name in schedule_names(facts.run_id):
                    with suppress(self.scheduler.exceptions.ResourceNotFoundException):
                        self.scheduler.delete_schedule(GroupName=self.settings.installation, Name=name)
                memory = replace(memory, is_schedule_deleted=True)
        if has_news:
            with noted(problems, NEWS_EVENT):  # whatever is wrong with it, what was done above is remembered
                news, memory = notices.due(facts, memory)
                if news:
                    messages[NEWS_EVENT] = "\n".join(filter(None, (messages.get(NEWS_EVENT), news)))[:MAIL_LETTERS]
        return self.notify(facts.run_id, messages, memory, problems)

    def shrink(self, facts: Facts, decision: Decision, memory: Memory, problems: list[str]) -> tuple[str, Memory]:
        """Leaves the run with fewer machines. Returns the message, and the memory that follows."""
        if not (why := decision.why_fewer):
            return acting.take_back(self.autoscaling, facts, decision.nodes, problems), memory
        message = acting.leave_out(self.autoscaling, facts, decision.leaving, decision.nodes, why, problems)
        memory = memory.with_ends(dict.fromkeys(decision.leaving, why))
        return message, replace(memory, shrunk=facts.now, replaced=())

    def notify(self, run_id: str, messages: Mapping[str, str], memory: Memory, problems: list[str]) -> Memory:
        """Tells SNS of each event once, and of news. What SNS refuses is told again at the next tick."""
        told = list(memory.told)
        for event, message in messages.items():
            with noted(problems, "a notice"):
                if event not in told:
                    self.tell(f"run {run_id or '(none)'}", message)
                    told.append(event)
        untold = {event: message for event, message in messages.items() if event not in told}
        return replace(memory, told=tuple(event for event in told if event != NEWS_EVENT), untold=untold)

    def terminate(self, machines: Mapping[str, str], problems: list[str]) -> list[str]:
        """Terminates machines one by one, since one refusal would spare them all. Returns those that EC2 accepted."""
        done = []
        for id, reason in machines.items():
            with noted(problems, f"terminating {id}"):
                print(f"terminating {id}: {printable(reason)}")
                self.ec2.terminate_instances(InstanceIds=[id])
                done.append(id)
        return done

    def tell(self, about: str, message: str) -> None:
        about, message = printable(about, 100), printable(message, MAIL_LETTERS)
        print(f"{about}: {message}")
        subject = f"{self.settings.installation}: {about}"[:100]
        self.sns.publish(TopicArn=self.settings.topic, Subject=subject, Message=message)

    def tallied(self, run: KnownRun, machines: list[FleetMachine] | None, now: float) -> KnownRun:
        """The run with its tally of now. Without EC2's answer, or without spec or tally, the run as it was."""
        if machines is None or run.spec is None or run.spend is None:
            return run
        known = run.spend
        spend = prices.tally(known, machines, prices.price(self.history, run.spec, known, machines), now)
        is_due = bool(spend.open) and now - known.at >= STORE_SECONDS
        return replace(run, spend=spend, is_spend_new=run.is_spend_new or is_due or spend.machines != known.machines)

    def remember(self, run: KnownRun, memory: Memory, problems: list[str]) -> None:
        """Stores memory and tally in the bucket and in this process. A file that was never read is not written."""
        before = run.memory
        if before is not None:
            run = replace(run, memory=memory)
        self.runs[run.id] = run
        with noted(problems, "spend.json"):
            self.save_spend(run)
        with noted(problems, "guard.json"):
            if before is not None and memory.changed(before):
                self.bucket.write(run_key(run.id, "guard.json"), memory.to_json())

    def save_spend(self, run: KnownRun) -> None:
        if run.spend is not None and run.is_spend_new:
            self.bucket.write(run_key(run.id, "spend.json"), run.spend.to_json())
            self.runs[run.id] = replace(run, is_spend_new=False)

    def settle(self, run_id: str, machines: list[FleetMachine], now: float) -> None:
        """Updates the tally of a run that no group has any more, until its last machine has ended."""
        if (run_id, 0.0) in self.settled:
            return
        run = reading.read_run(self.bucket, self.runs.get(run_id, KnownRun(id=run_id)))
        run = self.tallied(run, machines, now)
        self.save_spend(run)
        if run.spend and not run.spend.open:
            self.settled.add((run_id, 0.0))


def presume(name: str, machines: Collection[FleetMachine]) -> Group | None:
    """A group that cannot be read, as the tags of its newest machine describe it. None if it has no machine."""
    mine = [machine for machine in machines if machine.group == name and machine.is_billing]
    if not mine:
        return None
    newest = max(mine, key=lambda machine: machine.launched)
    return Group(
        name=name, desired=len(mine), maximum=len(mine), run_id=newest.run_id, deadline=newest.deadline,
        market=newest.market, instance_ids=tuple(machine.id for machine in mine),
    )  # fmt: skip


def _told_spend(facts: Facts) -> str:
    if not facts.spec:
        return ""
    return f"It has cost ${facts.spend.usd_at_most(facts.now):.2f} of ${facts.spec.budget_usd:.2f} so far."


@cache
def _guard() -> Guard:
    import boto3  # here, since the simulation does not need it
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=4, retries={"mode": "standard", "max_attempts": 2})
    connect: Any = boto3.client
    return Guard(lambda service: connect(service, config=config), GuardSettings.from_environ(os.environ))


def handler(event: object, context: object) -> None:
    """Run one tick. Raises if something could not be read or done, so that the alarm on failures sends a mail."""
    if problems := _guard().tick(time.time()):
        raise RuntimeError("; ".join(map(printable, problems)))
