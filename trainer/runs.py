"""The command that lists the runs of a store: `python -m trainer.runs --store out`, or `make runs STORE=out`.

The newest first: state, step, best top-1, dollars, age. Of each run it reads a few small objects.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.text import forgive_output, show_duration, show_share, tell, tell_json

if TYPE_CHECKING:
    from trainer.live.condition import Condition
    from trainer.live.facts import RunFacts
    from trainer.store import ObjectStore

AT_ONCE = 32  # runs; an S3 store has as many connections
HEADINGS = ("run", "state", "step", "top-1", "dollars", "age")


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the runs of a store, the newest first: state, step, best top-1, dollars, age."""

    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    json: bool = False
    """Print one JSON document for programs."""


@dataclass(frozen=True)
class ListedRun:
    """A run, and how it is. Without facts it could not be read, for a reason that `problem` tells."""

    run_id: str
    facts: RunFacts | None
    condition: Condition | None
    problem: str = ""

    @property
    def started(self) -> float:
        """Unix seconds; 0 where nothing tells."""
        return (self.facts.started or 0.0) if self.facts else 0.0

    @property
    def word(self) -> str:
        return self.condition.word if self.condition else "unreadable"


def list_runs(store: ObjectStore, now: float) -> list[ListedRun]:
    """All runs, the newest first. Raises UserError if there is no such store, StoreError."""
    from trainer.live.condition import condition_of
    from trainer.live.facts import known_runs, read_facts
    from trainer.store import StoreError

    def look(run_id: str) -> ListedRun:
        try:
            facts = read_facts(store, run_id)
        except StoreError as error:  # one run that nobody may read does not hide the others
            return ListedRun(run_id, None, None, str(error))
        return ListedRun(run_id, facts, condition_of(facts, now))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(look, known_runs(store)))
    return sorted(found, key=lambda run: (-run.started, run.run_id))


def cells_of(run: ListedRun, now: float) -> tuple[str, ...]:
    """What the table shows of a run, in the order of HEADINGS."""
    facts = run.facts
    if facts is None:
        return (run.run_id, run.word, "", "", "", "")
    is_running = run.condition is not None and run.condition.word == "running"
    phase = facts.pulse.phase if is_running and facts.pulse else ""
    return (
        run.run_id,
        phase or run.word,
        f"{facts.step:,}" if facts.step else "",
        "" if facts.top1 is None else show_share(facts.top1),
        "" if facts.money.spent is None else f"${facts.money.spent:,.2f}",
        show_duration(max(0.0, now - run.started)) if run.started else "",
    )


def document_of(run: ListedRun, now: float) -> dict[str, Any]:
    """What --json prints of a run. Fields are added, never renamed; None: not known. Those of `make runs` on AWS."""
    facts, condition = run.facts, run.condition
    known: dict[str, Any] = {"run": run.run_id, "state": run.word, "message": run.problem}
    if facts is None or condition is None:
        return known
    return known | {
        "message": condition.text, "kind": facts.spec["kind"] if facts.spec else None, "recipe": facts.recipe or None,
        "phase": facts.pulse.phase if facts.pulse else None, "step": facts.step,
        "total_steps": facts.total_steps, "top1": facts.top1,
        "usd": facts.money.spent, "budget_usd": facts.money.budget, "attempts": facts.attempts,
        "launched": run.started or None, "age_seconds": now - run.started if run.started else None,
        "skipped": list(facts.skipped),
    }  # fmt: skip


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def show_runs(store: ObjectStore, *, as_json: bool) -> None:
    now = time.time()
    found = list_runs(store, now)
    if as_json:
        tell_json({"store": store.uri, "runs": [document_of(run, now) for run in found]})
        return
    if not found:
        tell(f"there is no run in {store.uri} yet: start one with `make train`")
        return
    tell(table_text([HEADINGS, *(cells_of(run, now) for run in found)]))
    for run in found:
        for problem in ((run.problem,) if run.problem else ()) + (run.facts.skipped if run.facts else ()):
            tell(f"{run.run_id}: {problem}", sys.stderr)
    tell(f"\nmake watch STORE={shlex.quote(store.uri)} RUN={found[0].run_id}   shows one of them as it runs")


def main(arguments: list[str] | None = None) -> int:
    default = Options(store=os.environ.get(RunEnv.variable("store")) or tyro.MISSING)
    try:
        options = tyro.cli(Options, default=default, prog="python -m trainer.runs", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError, naming_the_fix, open_store

    try:
        store = open_store(options.store)
        with naming_the_fix(f"the store {store.uri}"):
            show_runs(store, as_json=options.json)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except StoreError as error:  # a fault of the store, not of the user
        tell(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    gc.set_threshold(100_000)  # boto3's models are many objects: to look through them again and again takes .1 s
    sys.exit(main())
