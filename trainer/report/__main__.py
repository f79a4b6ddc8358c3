"""The command: `python -m trainer.report --store out --run-id digits`. Parses, reports, prints.

With `--into FOLDER` it writes the files there, and nothing into the store: so a run that goes on is drawn beside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.text import forgive_output, tell

if TYPE_CHECKING:
    from trainer.report import Draw


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the curves of a run, write its report into the store and print a summary."""

    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run to report on; else $TRAINER_RUN_ID."""
    into: str = ""
    """Write the files of the report into this folder, not into the store."""
    keep: str = ""
    """Keep the metrics that are read in this folder, so that the next report reads only new ones."""


def main(arguments: list[str] | None = None) -> int:
    given = {name: os.environ.get(RunEnv.variable(name)) or tyro.MISSING for name in ("store", "run_id")}
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.report", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED

    # These are heavy to import, and `--help` does not need them.
    from trainer.report.drawing import Drawer
    from trainer.store import StoreError

    try:
        with Drawer() as drawer:
            report_on(options, drawer.draw)
    except UserError as error:
        tell(error, sys.stderr)
        return Exit.USER
    except StoreError as error:  # a fault of the store, not of the user
        tell(error, sys.stderr)
        return 1
    return Exit.FINISHED


def report_on(options: Options, draw: Draw) -> None:
    from trainer.report import build_report, summary_text, write_report
    from trainer.store import open_store

    store = open_store(options.store)
    kept = Path(options.keep) if options.keep else None
    if options.into:
        write_files(build_report(store, options.run_id, kept, draw).files, Path(options.into))
    else:
        tell(summary_text(write_report(store, options.run_id, kept, draw)))


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write each file whole: who reads the folder meanwhile sees the old one or the new one. UserError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            written = folder / f".{name}.tmp"
            written.write_bytes(body)
            written.replace(folder / name)
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error.strerror}; name another with --into") from error


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
