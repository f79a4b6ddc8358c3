"""Weights & Biases: its own variables and files say where to (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, `wandb login`).

Online, the server tells which step it has. Offline (WANDB_MODE=offline), the files that earlier commands left in the
folder `wandb` do: they are read back. Each command writes a file of its own, with the steps that those lack.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.contract import UserError
from trainer.telemetry.metrics import Row
from trainer.text import say
from trainer.trackers.committed import FAILED
from trainer.trackers.tracker import PROJECT, Position, TrackedRun, TrackerError, numbers, program, without_secrets

BLOCK = 32 << 10  # of LevelDB's log format, in which W&B writes its files, after 7 bytes of its own
FILE_HEADER, PART_HEADER = 7, struct.Struct("<IHB")  # checksum, length, kind
ENDS_RECORD = (1, 4)  # kinds of a part: the whole of a record, or its last; others are followed by more
WRITERS_SECONDS = 120.0


class HostedRun:
    """The run at W&B, or in a file that `wandb sync` takes there."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # before it is imported
        import wandb
        from pydantic import ValidationError

        os.environ.setdefault("WANDB_PROJECT", PROJECT)
        self.run, self.folder = run, Path(os.environ.get("WANDB_DIR") or ".").absolute() / "wandb"
        before = self.files()
        wait_for_writers(before)
        own = wandb.Settings(
            silent=True, console="off", save_code=False, disable_code=True, disable_git=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        try:
            settings = wandb.setup(own).settings  # with those of variables and files
        except ValidationError as error:  # its text may have a key
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise UserError(f"W&B does not take a setting: {wrong}; correct its WANDB_… variable") from None
        self.offline = settings._offline
        check_mode(settings.mode, [] if self.offline else before)
        self.written = newest_written(before) if self.offline else None
        with wandb_errors():
            self.hosted = wandb.init(id=run.key, name=run.run_id, config=dict(run.config), resume="allow", settings=own)
        self.where = f"W&B's run {run.key} {f'in {self.folder}' if self.offline else f'at {self.hosted.url}'}"

    def files(self) -> list[Path]:
        """What earlier commands wrote of the run, and this one."""
        return sorted(self.folder.glob(f"*run-*/run-{self.run.key}.wandb"))

    @staticmethod
    def target() -> str:
        """The same for all folders: online, W&B counts the run once whichever folder has its files."""
        return " ".join(
            os.environ.get(name) or usual
            for name, usual in (("WANDB_BASE_URL", "https://api.wandb.ai"), ("WANDB_PROJECT", PROJECT))
        )

    def position(self) -> Position | None:
        if self.offline:
            return self.written
        return Position(self.hosted.step - 1, None) if self.hosted.step else None

    def feed(self, rows: Sequence[Row]) -> None:
        with wandb_errors():
            for row in rows:
                self.hosted.log(numbers(row) | {"_timestamp": row["time"]}, step=row["step"], commit=True)

    def close(self, ended: str) -> None:
        with wandb_errors():
            self.hosted.finish(exit_code=int(ended == FAILED))
        if self.offline:
            say(f"`{program('wandb')} sync --id {self.run.key} {self.folder}/offline-run-*-{self.run.key}*` sends them")


def check_mode(mode: str, before: Sequence[Path]) -> None:
    """Raises UserError where nothing would be fed, or where the server lacks what earlier commands wrote offline."""
    if mode == "disabled":
        raise UserError("WANDB_MODE=disabled feeds nothing: leave it unset, or set WANDB_MODE=offline")
    offline = [path for path in before if path.parent.name.startswith("offline-run-")]
    waiting = [path for path in offline if not path.with_suffix(".wandb.synced").exists()]
    if waiting:
        folders = " ".join(str(path.parent) for path in waiting)
        sync = f"{program('wandb')} sync --id {waiting[0].stem[4:]} {folders}"
        raise UserError(f"this run has files that were written offline: first `{sync}`")


def newest_written(files: Sequence[Path]) -> Position | None:
    """The newest step in these files. What was cut at their ends does not count."""
    steps = (step for file in files for step in history(file.read_bytes()))
    return max(steps, key=lambda one: one.step, default=None)


def history(body: bytes) -> Iterator[Position]:
    from wandb.proto import wandb_internal_pb2

    for content in records(body):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            yield Position(int(record.history.step.num), float(json.loads(items["_timestamp"])))


def records(body: bytes) -> Iterator[bytes]:
    """The whole records of a file, which stand in blocks, in one part or several."""
    at, parts = FILE_HEADER, b""
    while True:
        left = BLOCK - at % BLOCK
        if left < PART_HEADER.size:  # too short for another part: it is zeros
            at += left
            continue
        if at + PART_HEADER.size > len(body):
            return
        _, length, kind = PART_HEADER.unpack_from(body, at)
        at += PART_HEADER.size
        if at + length > len(body):
            return
        parts += body[at : at + length]
        at += length
        if kind in ENDS_RECORD:
            yield parts
            parts = b""


def wait_for_writers(files: Sequence[Path]) -> None:
    """Wait until nobody writes these: W&B's own process lives on for a moment after a command that was killed."""
    names, deadline = {str(file.resolve()) for file in files}, time.monotonic() + WRITERS_SECONDS
    while names and names & opened():
        if time.monotonic() > deadline:
            raise TrackerError(f"another process has files of this run open in {files[0].parent.parent}")
        time.sleep(0.05)


def opened() -> set[str]:
    """The files that processes of this user have open."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return found


@contextlib.contextmanager
def wandb_errors() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.errors.UsageError as error:
        raise UserError(f"W&B: {without_secrets(str(error))}") from error
    except (wandb.Error, OSError) as error:
        raise TrackerError(f"W&B: {without_secrets(str(error))}") from error
