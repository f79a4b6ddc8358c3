"""Trackio: rows go into its local database. `trackio show` draws them, `trackio sync` copies them to a Space.

Trackio's own `log` hands rows to a thread, which drops a batch that it cannot write. So they are written by the call
that the thread would make. Each has an id of its run and step, which the database holds at most once.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from trainer.telemetry.metrics import Row
from trainer.text import say
from trainer.trackers.tracker import PROJECT, Position, TrackedRun, TrackerError, numbers, program

ROWS_OF_A_TRANSACTION = 500


class LocalRun:
    """The run in Trackio's database. It stays on this machine, also where a Space is named."""

    def __init__(self, run: TrackedRun) -> None:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(name):
                say(f"{name} is set: rows go into the local database; `{program('trackio')} sync` sends them")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before it is imported
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        self.storage, self.run = SQLiteStorage, run
        self.where = f"Trackio's project {PROJECT} in {TRACKIO_DIR}"

    @staticmethod
    def target() -> str:
        return os.environ.get("TRACKIO_DIR", "")

    def position(self) -> Position | None:
        path = self.storage.get_project_db_path(PROJECT)
        if not path.exists():
            return None
        with database_errors():
            self.storage.init_db(PROJECT)  # it may be one of an older version
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                found = connection.execute(
                    "SELECT step, timestamp FROM metrics WHERE run_id = ? ORDER BY step DESC LIMIT 1", (self.run.key,)
                ).fetchone()
        return Position(found[0], datetime.fromisoformat(found[1]).timestamp()) if found else None

    def feed(self, rows: Sequence[Row]) -> None:
        began = datetime.fromtimestamp(self.run.began, UTC).isoformat()
        config = {"_Created": began, "_Username": None, "_Group": None, **self.run.config}
        with database_errors():
            for first in range(0, len(rows), ROWS_OF_A_TRANSACTION):
                some = rows[first : first + ROWS_OF_A_TRANSACTION]
                self.storage.bulk_log(
                    PROJECT, self.run.run_id, [numbers(row) for row in some], [row["step"] for row in some],
                    timestamps=[datetime.fromtimestamp(row["time"], UTC).isoformat() for row in some],
                    log_ids=[f"{self.run.key}-{row['step']}" for row in some], run_id=self.run.key, config=config,
                )  # fmt: skip

    def close(self, ended: str) -> None:
        say(f"`{program('trackio')} show --project {PROJECT}` draws them")


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise TrackerError(f"Trackio: {error}") from error
