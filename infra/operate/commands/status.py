"""`status`: what a run does, how far it is, what it costs, and which machines it has, or why it has none.

It reads EC2, the Auto Scaling group and small objects in the bucket. It changes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.facts import gpu_sample, problems, status_rows
from infra.operate.installation.standing import kept_data, kept_image, print_kept
from infra.operate.progress import KeptTails
from infra.operate.runs import ExplainedBucket, active_run, choose_run, open_bucket
from infra.operate.screen import curve_width, page_command, screen, title
from infra.operate.session import Aws, AwsError, ExitCode
from infra.operate.state import RunState, read_state
from infra.operate.terminal import (
    Group,
    RenderableType,
    display,
    display_json,
    next_commands,
    room,
    show_line,
    show_screen,
    styled,
    table,
)
from trainer.contract import UserError

HELP = "step, images/s, accuracy, ETA, dollars, checkpoint age, interruptions, and machines, or why there is none"
WATCH_SECONDS = 5.0


def shown(state: RunState) -> RenderableType:
    columns, _ = room() or (None, 0)
    return Group(title(state), table(status_rows(state, curve_width(columns)), indent=2))


def show_standing(aws: Aws, installation: Installation, bucket: ExplainedBucket) -> None:
    """Show what is deployed and costs money while nothing runs."""
    show_line("\nno machine runs; these things bill by the month:")
    print_kept([*kept_image(aws, installation), *kept_data(bucket, installation)])


def show_next(state: RunState, bucket: ExplainedBucket) -> None:
    run_id = state.run_id
    page = (page_command(bucket.name, run_id), "the curves, on a page that updates itself")
    if state.kept_until:
        next_commands(("make shell", "look at the machine"), ("make logs", "what it printed, and each end"),
                      ("make stop", "end it now"), page)  # fmt: skip
    elif state.machines or state.is_wanted:
        next_commands(("make logs", "follow what it prints"), ("make stop", "save and stop it"), page)
    elif state.ending and state.ending.how == "done":
        next_commands(("make pull", "copy results here"), page, ("make destroy", "remove what bills; the data stays"))
    else:
        next_commands(("make logs", "its last lines"), (f"make launch RUN={run_id}", "continue it"), page,
                      ("make destroy", "remove what bills; the data stays"))  # fmt: skip


def status_document(state: RunState) -> dict[str, Any]:
    """What `--json` prints. Fields are added, never renamed. None means that the value is not known yet."""
    word, said = state.summary()
    progress, spec, checkpoint = state.progress, state.spec, state.progress.checkpoint
    gpu, measured = gpu_sample(state)
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
             "launched": one.launched,
             "record": asdict(record) | {"age_seconds": state.now - record.at}
             if (record := state.nodes.get(one.id)) else None}
            for one in state.machines
        ],
        "nodes": progress.heartbeat.nodes if progress.heartbeat else None,
        "nodes_wanted": state.team,
        "refusals": [str(refusal) for refusal in state.refusals],
        "problems": [problem.plain for problem in problems(state)],
        "alerts": [asdict(alert) for alert in progress.heartbeat.observed.alerts] if progress.heartbeat else [],
        "gpu": gpu | {"age_seconds": state.now - measured} if gpu else None,
        "data_wait": progress.recent.data_wait_mean,
        "train_loss": progress.recent.loss[-1][1] if progress.recent.loss else None,
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
        kept = KeptTails()
        with suppress(KeyboardInterrupt):
            watch(lambda: read_state(aws, installation, bucket, run_id, kept), bucket.name)
    else:
        state = read_state(aws, installation, bucket, run_id)
        if options.json:
            display_json(status_document(state))
            return ExitCode.DONE
        display(shown(state))
        if not active and not state.machines:
            show_standing(aws, installation, bucket)
        show_next(state, bucket)
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


def watch(read: Callable[[], RunState], bucket: str) -> None:
    """Show one screen again and again. If AWS does not answer, it shows the last state, and tries again."""
    state: RunState | None = None
    while True:
        trouble = ""
        try:
            state = read()
        except AwsError as error:
            trouble = f"{error}; trying again"
        show_screen(screen(state, bucket, trouble) if state else [styled(trouble, "red")])
        time.sleep(WATCH_SECONDS)
