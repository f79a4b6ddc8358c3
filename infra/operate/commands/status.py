"""`status`: what a run does, how far it is, what it costs, which machines there are and why there is none.

What is shown comes from EC2, the Auto Scaling group and small objects in the bucket; nothing is changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation.standing import kept_data, kept_image, print_kept
from infra.operate.progress import Progress, read_progress
from infra.operate.runs import (
    Bucket,
    Ending,
    active_run,
    choose_run,
    group_of,
    launched_at,
    open_bucket,
    read_ending,
    read_spec,
    read_spend,
)
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import Cell, Group, RenderableType, Text, clear, next_commands, say, styled, table
from infra.operate.text import duration, usd, weekday_time
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from trainer.contract import Exit, UserError, run_key

HELP = "step, images/s, accuracy, ETA, dollars, checkpoint age, interruptions, machines, and why there is none"
WATCH_SECONDS = 5.0
SILENCE_SECONDS = 180.0  # without a heartbeat the guard takes a run for hung
LATE_CHECKPOINT_SECONDS = 120.0  # twice what the promise allows
Row = tuple[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Status:
    """All that is shown of a run, as read at `now`."""

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

    @property
    def is_wanted(self) -> bool:
        """Whether the group is asked for machines for this run."""
        return bool(self.group and self.group.desired and self.group.run_id == self.run_id)

    @property
    def projected_usd(self) -> float | None:
        """What it will have cost at the end, at the present speed and price."""
        left = self.progress.seconds_left
        if left is None or not self.machines:
            return None
        return self.spend.usd(self.now) + left / 3600 * self.spend.usd_per_hour()


def read_status(aws: Aws, installation: Installation, bucket: Bucket, run_id: str) -> Status:
    spec = read_spec(bucket, run_id)
    name = group_of(installation, spec)
    with explained("the machines of the run"):
        autoscaling = aws.client("autoscaling")
        group = fleet.group_state(autoscaling, name)
        seen = fleet.machines(aws.client("ec2"), installation.name, run_id)
        machines = tuple(machine for machine in seen if machine.is_billing)
        is_waiting = bool(group and group.desired and group.run_id == run_id and not machines)
        since = launched_at(bucket, run_id) if is_waiting else 0.0
        refusals = tuple(fleet.why_no_machine(autoscaling, name, since)) if is_waiting else ()
    return Status(
        now=time.time(), run_id=run_id, spec=spec, group=group, machines=machines, refusals=refusals,
        spend=settle(read_spend(bucket, run_id), seen), guard=bucket.read_json(run_key(run_id, "guard.json")),
        ending=read_ending(bucket, run_id), progress=read_progress(bucket, run_id),
    )  # fmt: skip


def settle(spend: Spend, seen: Sequence[fleet.FleetMachine]) -> Spend:
    """The guard's tally, without counting on a machine that ended since its last look."""
    state = {machine.id: machine for machine in seen}

    def ended(machine: Machine) -> float:
        now = state.get(machine.id)
        return machine.ended or (0.0 if now and now.is_billing else (now and now.ended) or spend.at)

    return replace(spend, machines=tuple(replace(machine, ended=ended(machine)) for machine in spend.machines))


def state(status: Status) -> Cell:
    """One line: what it does, or why it does nothing."""
    if ending := status.ending:
        return styled(f"{ending.how}: {ending.message}", "green" if ending.how == "done" else "red")
    heartbeat, silent = status.progress.heartbeat, status.now - status.progress.heartbeat_at
    if not status.is_wanted:
        reason = status.guard.get("reason") or "its group is at 0"
        return styled(f"stopped: {reason}", "yellow")
    if not status.machines:
        return styled("waiting for a machine", "yellow")
    if status.progress.heartbeat_at < min(machine.launched for machine in status.machines):
        return "a machine boots (image and data take some minutes)"
    phase = str(heartbeat.get("phase", "unknown"))
    if silent > SILENCE_SECONDS:
        return styled(f"silent for {duration(silent)} (last: {phase}); the guard replaces a hung machine", "red")
    return f"{phase}, heard {duration(silent)} ago"


def rows(status: Status) -> list[Row]:
    """Labels and texts, in the order in which they are shown."""
    spec, found = status.spec, list[Row]([("state", state(status))])
    if status.refusals:
        found += [("no machine", str(refusal)) for refusal in status.refusals]
    found += training_rows(status)
    found.append(("cost", cost(status)))
    found += machine_rows(status)
    if spec and not status.ending:
        deadline = (status.group.deadline if status.group and status.is_wanted else 0.0) or spec.deadline
        left = deadline - status.now
        found.append(("deadline", f"{weekday_time(deadline)}, {f'in {duration(left)}' if left > 0 else 'passed'}"))
    return found


def training_rows(status: Status) -> list[Row]:
    progress, found = status.progress, list[Row]()
    if progress.total_steps:
        share = 100 * progress.step / progress.total_steps
        found.append(("step", f"{progress.step:,} of {progress.total_steps:,} ({share:.1f} %)"))
    elif progress.heartbeat:
        found.append(("progress", f"{progress.heartbeat.get('progress', 0):,} in this phase"))
    if progress.images_per_second:
        found.append(("speed", f"{progress.images_per_second:,.0f} images/s"))
    if top1 := accuracy(progress):
        found.append(("top-1", top1))
    if progress.seconds_left is not None and status.machines and not status.ending:
        eta = status.now + progress.seconds_left
        found.append(("ETA", f"{duration(progress.seconds_left)}, {weekday_time(eta)}, at the present speed"))
    if checkpoint := progress.checkpoint:
        age = status.now - checkpoint.time
        text = f"step {checkpoint.step:,}, {duration(age)} old"
        is_late = age > LATE_CHECKPOINT_SECONDS and progress.heartbeat.get("phase") == "training" and status.machines
        found.append(("checkpoint", styled(text, "red") if is_late else text))
    if progress.attempts:
        found.append(("interruptions", interruptions(progress, is_over=bool(status.ending))))
    return found


def accuracy(progress: Progress) -> str:
    parts = []
    if progress.val_top1 is not None:
        parts.append(f"{100 * progress.val_top1:.2f} % in validation")
    if progress.checkpoint and progress.checkpoint.best_top1:
        parts.append(f"best {100 * progress.checkpoint.best_top1:.2f} % at step {progress.checkpoint.best_step:,}")
    if not parts and progress.train_top1 is not None:
        parts.append(f"{100 * progress.train_top1:.1f} % on training images")
    return ", ".join(parts)


def interruptions(progress: Progress, *, is_over: bool) -> str:
    """From the ledger: all attempts but the one that runs, or that was the last."""
    *before, last = progress.attempts
    saved = sum(attempt.get("exit") == Exit.INTERRUPTED for attempt in before)
    text = f"{len(before)} ({saved} with a last save, {len(before) - saved} without)" if before else "none"
    types = sorted({type for attempt in progress.attempts if (type := (attempt.get("machine") or {}).get("type"))})
    if len(types) > 1:
        text += f"; ran on {', '.join(types)}: not bit for bit what one type would give"
    return text + ("" if is_over else f"; attempt {last['attempt']} is the newest")


def cost(status: Status) -> Text:
    spent, hourly = status.spend.usd(status.now), status.spend.usd_per_hour()
    text = Text(f"{usd(spent)} spent")
    if hourly and not status.ending:
        text.append(f", {usd(hourly)} an hour")
    projected, budget = status.projected_usd, status.spec.budget_usd if status.spec else 0.0
    if projected is not None and not status.ending:
        over = budget and projected > budget
        text.append(", ").append(f"{usd(projected)} projected", "red" if over else "green")
    if budget:
        text.append(f", of a budget of {usd(budget)}")
    return text.append("" if status.spend.at else " (the guard has not counted yet)")


def machine_rows(status: Status) -> list[Row]:
    found: list[Row] = [
        (
            "machine",
            f"{machine.id}, {machine.type} in {machine.zone}, {machine.market}, {machine.state}, "
            f"{duration(status.now - machine.launched)} old",
        )
        for machine in status.machines
    ]
    if found:
        found.append(("", "a resume is bit for bit the same within one machine type, on another one to rounding"))
    return found


def shown(status: Status) -> RenderableType:
    kind = status.spec.kind if status.spec else "train"
    recipe = f", recipe {status.spec.recipe}" if status.spec and status.spec.recipe else ""
    title = Text.assemble((f"run {status.run_id}", "bold"), f" ({kind}{recipe})")
    return Group(title, table(rows(status), indent=2))


def show_standing(aws: Aws, installation: Installation, bucket: Bucket) -> None:
    """What there is and costs while nothing runs."""
    print("\nno machine runs; what stays bills by the month:")
    print_kept([*kept_image(aws, installation), *kept_data(bucket, installation)])


def show_next(status: Status) -> None:
    run_id = status.run_id
    if status.machines or status.is_wanted:
        next_commands(("make logs", "follow what it prints"), ("make stop", "save and stop it"))
    elif status.ending and status.ending.how == "done":
        next_commands(("make pull", "copy results here"), ("make destroy", "remove what bills; the data stays"))
    else:
        next_commands(("make logs", "its last lines"), (f"make launch RUN={run_id}", "continue it"),
                      ("make destroy", "remove what bills; the data stays"))  # fmt: skip


def configure(parser: CommandLine) -> None:
    parser.option("run", "another run than the newest", dest="run_id", default="", metavar="RUN")
    parser.option("watch", "show it again every few seconds, until Ctrl-C", action="store_true")


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    bucket = open_bucket(aws, installation)
    if bucket is None:
        print(f"nothing is deployed in {aws.region}: no {installation.storage_stack} stack, and nothing that costs")
        next_commands(("make preflight", "what is missing for a deploy"), ("make deploy", "start"))
        return ExitCode.DONE
    active = active_run(aws, installation)
    try:
        run_id = choose_run(bucket, options.run_id, active)
    except UserError as error:
        if options.run_id:
            raise
        print(error)
        show_standing(aws, installation, bucket)
        return ExitCode.DONE
    if options.watch:
        with suppress(KeyboardInterrupt):
            watch(lambda: read_status(aws, installation, bucket, run_id))
        return ExitCode.DONE
    status = read_status(aws, installation, bucket, run_id)
    say(shown(status))
    if not active and not status.machines:
        show_standing(aws, installation, bucket)
    show_next(status)
    return ExitCode.DONE


def watch(read: Callable[[], Status]) -> None:
    """For ever; on a terminal each time in the same place. While AWS does not answer it is asked again."""
    while True:
        try:
            text = shown(read())
        except AwsError as error:
            text = f"{error}; trying again"
        clear()
        say(text, "")
        time.sleep(WATCH_SECONDS)
