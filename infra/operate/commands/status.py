"""`status`: what a run does, how far it is, what it costs, and which machines it has, or why it has none.

It reads EC2, the Auto Scaling group and small objects in the bucket. It changes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation.standing import kept_data, kept_image, print_kept
from infra.operate.progress import Progress
from infra.operate.runs import ExplainedBucket, active_run, choose_run, open_bucket
from infra.operate.session import Aws, AwsError, ExitCode
from infra.operate.state import RunState, read_state
from infra.operate.terminal import (
    Cell,
    Group,
    RenderableType,
    Text,
    clear,
    display,
    display_json,
    next_commands,
    show_line,
    styled,
    table,
)  # fmt: skip
from infra.operate.text import duration, usd, weekday_time
from infra.run.values import printable
from trainer.contract import Exit, UserError

HELP = "step, images/s, accuracy, ETA, dollars, checkpoint age, interruptions, and machines, or why there is none"
WATCH_SECONDS = 5.0
LATE_CHECKPOINT_SECONDS = 120.0  # twice what the promise allows
StatusRow = tuple[str, Cell]


STATE_STYLES = MappingProxyType(
    {"done": "green", "failed": "red", "silent": "red", "stopped": "yellow", "waiting": "yellow"}
)


def state_line(state: RunState) -> Cell:
    """What the run does, or why it does nothing."""
    word, said = state.summary()
    return styled(said, STATE_STYLES.get(word, ""))


def rows(state: RunState) -> list[StatusRow]:
    """The labels and texts of the table, in order."""
    spec, found = state.spec, list[StatusRow]([("state", state_line(state))])
    if state.refusals:
        found += [("no machine", str(refusal)) for refusal in state.refusals]
    found += training_rows(state)
    found += [("skipped", printable(problem)) for problem in state.progress.skipped]
    found.append(("cost", cost(state)))
    found += machine_rows(state)
    if spec and not state.ending:
        left = state.deadline - state.now
        found.append(
            ("deadline", f"{weekday_time(state.deadline)}, {f'in {duration(left)}' if left > 0 else 'passed'}")
        )
    return found


def training_rows(state: RunState) -> list[StatusRow]:
    progress, found = state.progress, list[StatusRow]()
    if progress.total_steps:
        share = 100 * progress.step / progress.total_steps
        found.append(("step", f"{progress.step:,} of {progress.total_steps:,} ({share:.1f} %)"))
    elif progress.heartbeat:
        found.append(("progress", f"{progress.heartbeat.progress:,} in this phase"))
    if progress.images_per_second:
        found.append(("speed", f"{progress.images_per_second:,.0f} images/s"))
    if top1 := accuracy(progress):
        found.append(("top-1", top1))
    if progress.seconds_left is not None and state.machines and not state.ending:
        eta = state.now + progress.seconds_left
        found.append(("ETA", f"{duration(progress.seconds_left)}, {weekday_time(eta)}, at the present speed"))
    if checkpoint := progress.checkpoint:
        age = state.now - checkpoint.time
        text = f"step {checkpoint.step:,}, {duration(age)} old"
        is_late = age > LATE_CHECKPOINT_SECONDS and progress.phase == "training" and state.machines
        found.append(("checkpoint", styled(text, "red") if is_late else text))
    if progress.attempts:
        found.append(("interruptions", interruptions(progress, is_over=bool(state.ending))))
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
    """How many attempts were interrupted. The last attempt does not count: it runs, or it ended the run.

    A rewind does not count either. It is an attempt that ends with 0, and later ones follow it.
    """
    *before, last = progress.attempts
    before = [attempt for attempt in before if attempt.get("exit") != Exit.FINISHED]
    saved = sum(attempt.get("exit") == Exit.INTERRUPTED for attempt in before)
    text = f"{len(before)} ({saved} with a last save, {len(before) - saved} without)" if before else "none"
    types = sorted({type for attempt in progress.attempts if (type := (attempt.get("machine") or {}).get("type"))})
    if len(types) > 1:
        text += f"; ran on {', '.join(types)}: not bit for bit the same as on one type"
    return text + ("" if is_over else f"; attempt {last['attempt']} is the newest")


def cost(state: RunState) -> Text:
    spent, hourly = state.spend.usd(state.now), state.spend.usd_per_hour()
    text = Text(f"{usd(spent)} spent")
    if hourly and not state.ending:
        text.append(f", {usd(hourly)} an hour")
    projected, budget = state.projected_usd, state.spec.budget_usd if state.spec else 0.0
    if projected is not None and not state.ending:
        over = budget and projected > budget
        text.append(", ").append(f"{usd(projected)} projected", "red" if over else "green")
    if budget:
        text.append(f", of a budget of {usd(budget)}")
    return text.append("" if state.spend.at else " (the guard has not counted yet)")


def machine_rows(state: RunState) -> list[StatusRow]:
    found: list[StatusRow] = [
        (
            "machine",
            f"{machine.id}, {machine.type} in {machine.zone}, {machine.market}, {machine.state}, "
            f"{duration(state.now - machine.launched)} old",
        )
        for machine in state.machines
    ]
    if found:
        found.append(
            ("", "a resume gives the same bits on the same machine type; on another type it differs by rounding")
        )
    return found


def shown(state: RunState) -> RenderableType:
    kind = state.spec.kind if state.spec else "train"
    recipe = f", recipe {state.spec.recipe}" if state.spec and state.spec.recipe else ""
    title = Text.assemble((f"run {state.run_id}", "bold"), f" ({kind}{recipe})")
    return Group(title, table(rows(state), indent=2))


def show_standing(aws: Aws, installation: Installation, bucket: ExplainedBucket) -> None:
    """Show what is deployed and costs money while nothing runs."""
    show_line("\nno machine runs; these things bill by the month:")
    print_kept([*kept_image(aws, installation), *kept_data(bucket, installation)])


def show_next(state: RunState) -> None:
    run_id = state.run_id
    if state.machines or state.is_wanted:
        next_commands(("make logs", "follow what it prints"), ("make stop", "save and stop it"))
    elif state.ending and state.ending.how == "done":
        next_commands(("make pull", "copy results here"), ("make destroy", "remove what bills; the data stays"))
    else:
        next_commands(("make logs", "its last lines"), (f"make launch RUN={run_id}", "continue it"),
                      ("make destroy", "remove what bills; the data stays"))  # fmt: skip


def status_document(state: RunState) -> dict[str, Any]:
    """What `--json` prints. Fields are added, never renamed. None means that the value is not known yet."""
    word, said = state.summary()
    progress, spec, checkpoint = state.progress, state.spec, state.progress.checkpoint
    return {
        "run": state.run_id,
        "kind": spec.kind if spec else None,
        "recipe": spec.recipe if spec else None,
        "state": word,
        "message": said,
        "phase": progress.phase,
        "heartbeat_age_seconds": state.now - progress.heartbeat_at if progress.heartbeat else None,
        "step": progress.step,
        "total_steps": progress.total_steps or None,
        "images_per_second": progress.images_per_second or None,
        "val_top1": progress.val_top1,
        "best_top1": checkpoint.best_top1 if checkpoint else None,
        "train_top1": progress.train_top1,
        "seconds_left": progress.seconds_left,
        "checkpoint_step": checkpoint.step if checkpoint else None,
        "checkpoint_age_seconds": state.now - checkpoint.time if checkpoint else None,
        "attempts": len(progress.attempts),
        "usd": state.spend.usd(state.now),
        "usd_per_hour": state.spend.usd_per_hour(),
        "projected_usd": state.projected_usd,
        "budget_usd": spec.budget_usd if spec else None,
        "deadline": state.deadline or None,
        "machines": [
            {"id": one.id, "type": one.type, "zone": one.zone, "market": one.market, "state": one.state,
             "launched": one.launched}
            for one in state.machines
        ],
        "refusals": [str(refusal) for refusal in state.refusals],
    }  # fmt: skip


def configure(parser: CommandLine) -> None:
    parser.option(
        "run", "which run (default: the active one, else the newest)", dest="run_id", default="", metavar="RUN"
    )
    parser.option("watch", "show it again every few seconds, until Ctrl-C", action="store_true")
    parser.json_option()


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    if options.watch and options.json:
        raise UserError("WATCH=1 and --json do not go together: --json prints one document; leave WATCH=1 out")
    bucket = open_bucket(aws, installation)
    active = active_run(aws, installation) if bucket else ""
    try:
        run_id = choose_run(bucket, options.run_id, active) if bucket else ""
    except UserError as error:
        if options.run_id:
            raise
        run_id, why = "", str(error)
    else:
        why = f"nothing is deployed in {aws.region}: no {installation.storage_stack} stack, and nothing that costs"
    if not bucket or not run_id:
        show_nothing(aws, installation, bucket, why, as_json=options.json)
    elif options.watch:
        with suppress(KeyboardInterrupt):
            watch(lambda: read_state(aws, installation, bucket, run_id))
    else:
        state = read_state(aws, installation, bucket, run_id)
        if options.json:
            display_json(status_document(state))
            return ExitCode.DONE
        display(shown(state))
        if not active and not state.machines:
            show_standing(aws, installation, bucket)
        show_next(state)
    return ExitCode.DONE


def show_nothing(
    aws: Aws, installation: Installation, bucket: ExplainedBucket | None, why: str, *, as_json: bool
) -> None:
    """Say that there is no run, and why."""
    if as_json:
        display_json({"run": None, "state": "none", "message": why})
        return
    show_line(why)
    if bucket:
        show_standing(aws, installation, bucket)
    else:
        next_commands(("make preflight", "what is missing for a deploy"), ("make deploy", "start"))


def watch(read: Callable[[], RunState]) -> None:
    """Show the status again and again, in the same place on a terminal. If AWS does not answer, it tries again."""
    while True:
        try:
            text = shown(read())
        except AwsError as error:
            text = f"{error}; trying again"
        clear()
        display(text, "")
        time.sleep(WATCH_SECONDS)
