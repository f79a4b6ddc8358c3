"""`runs`: every run in the bucket, the newest first: state, step, best accuracy in validation, dollars, age.

`trainer.runs` lists a store without AWS; a figure means the same in both."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.runs import open_bucket
from infra.operate.session import Aws, ExitCode
from infra.operate.state import RunState, read_states
from infra.operate.terminal import display_json, next_commands, plain_table, show_line
from infra.operate.text import duration, usd

HELP = "list every run, the newest first: state, step, best accuracy, dollars, age"
HEADER = ("run", "state", "step", "top-1", "dollars", "age")


def configure(parser: CommandLine) -> None:
    parser.json_option()


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    bucket = open_bucket(aws, installation)
    names = bucket.run_names() if bucket else []
    states = read_states(aws, installation, bucket, names) if bucket and names else []
    states.sort(key=lambda state: (state.launched, state.run_id), reverse=True)
    launched = {state.run_id: datetime.fromtimestamp(state.launched, UTC) for state in states}
    if options.json:
        display_json({"runs": [run_document(state, launched) for state in states]})
        return ExitCode.DONE
    if not states:
        show_line(f"there is no run in {f's3://{bucket.name}' if bucket else aws.region} yet")
        next_commands(("make launch", "start one") if bucket else ("make deploy", "start"))
        return ExitCode.DONE
    show_line(plain_table([row(state, launched) for state in states], HEADER))
    newest = states[0].run_id
    next_commands((f"make status RUN={newest}", "more of one run"), (f"make cost RUN={newest}", "what it has cost"))
    return ExitCode.DONE


def row(state: RunState, launched: Mapping[str, datetime]) -> tuple[str, ...]:
    word, _ = state.summary()
    progress, top1 = state.progress, state.progress.best_top1
    step = f"{progress.step:,}" + (f" of {progress.total_steps:,}" if progress.total_steps else "")
    together = f", {state.team} nodes" if state.team > 1 else ""
    return (
        state.run_id, (state.phase if word == "running" else word) + together, step,
        f"{100 * top1:.2f} %" if top1 else "",
        "unknown" if state.usd is None else usd(state.usd), duration(state.now - launched[state.run_id].timestamp()),
    )  # fmt: skip


def run_document(state: RunState, launched: Mapping[str, datetime]) -> dict[str, Any]:
    """What `--json` prints of a run. Fields are added, never renamed. A field means the same as in `status --json`."""
    word, said = state.summary()
    at = launched[state.run_id].timestamp()
    return {
        "run": state.run_id, "kind": state.spec.kind if state.spec else None,
        "recipe": state.spec.recipe if state.spec else None, "state": word, "message": said,
        "phase": state.progress.phase, "step": state.progress.step,
        "total_steps": state.progress.total_steps or None, "top1": state.progress.best_top1,
        "nodes": state.team, "usd": state.usd, "budget_usd": state.spec.budget_usd if state.spec else None,
        "launched": at, "age_seconds": state.now - at,
    }  # fmt: skip
