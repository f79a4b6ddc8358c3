"""The command: `python -m trainer.report --store out --run-id digits`. Parses, reports, prints."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.text import forgive_output, tell


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the curves of a run, write its report into the store and print a summary."""

    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run to report on; else $TRAINER_RUN_ID."""


def main(arguments: list[str] | None = None) -> int:
    given = {name: os.environ.get(RunEnv.variable(name)) or tyro.MISSING for name in ("store", "run_id")}
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.report", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED

    # These are heavy to import, and `--help` does not need them.
    from trainer.report import summary_text, write_report
    from trainer.store import StoreError, open_store

    try:
        tell(summary_text(write_report(open_store(options.store), options.run_id)))
    except UserError as error:
        tell(error, sys.stderr)
        return Exit.USER
    except StoreError as error:  # a fault of the store, not of the user
        tell(error, sys.stderr)
        return 1
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
