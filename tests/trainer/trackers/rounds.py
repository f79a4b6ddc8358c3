"""`python -m tests.trainer.trackers.rounds NAME` runs `make track` again and again, each time in a child of its own.

For .venv-trackers, whose trackers take seconds to import: this process imports one, once. A line of JSON on standard
input is a round, which `play` takes. The answer is a line of JSON, too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.trackers import __main__ as command
from trainer.trackers.wandb import records

IMPORTED = {
    "wandb": ["wandb", "wandb.proto.wandb_internal_pb2", "wandb.sdk.launch"],
    "mlflow": ["mlflow", "mlflow.entities", "mlflow.store.tracking.file_store"],
    "trackio": ["trackio.sqlite_storage"],
}
OURS = "trainer/trackers/"
PARTS = ("open_tracker", "feed", "close")  # functions of our modules about a tracker: what happens there may be cut


def play(
    arguments: list[str], environ: dict[str, str], part: str = "", killed_after: int = 0, *, alone: bool = False,
    interrupted_after: float = 0,
) -> dict[str, Any]:  # fmt: skip
    """Run the command with the arguments. SIGKILL comes after so many calls of functions during this part.

    It comes to all that the command started, or to its process `alone`. Ctrl-C comes after so many seconds. Returns the
    exit status, what was said, and how many functions, Python's and C's, were called in each part.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as counted:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.environ |= environ
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            signal.signal(signal.SIGALRM, lambda number, frame: os.killpg(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, interrupted_after)
            calls, now = dict.fromkeys(PARTS, 0), ""

            def count(frame: FrameType, event: str, argument: object) -> None:
                nonlocal now
                if frame.f_code.co_name in PARTS and OURS in frame.f_code.co_filename:
                    now = frame.f_code.co_name if event == "call" else "" if event == "return" else now
                if now and event in ("call", "c_call"):
                    calls[now] += 1
                    if now == part and calls[now] == killed_after:
                        (os.kill if alone else os.killpg)(os.getpid(), signal.SIGKILL)

            sys.setprofile(count)
            status = command.main(arguments)
            sys.setprofile(None)
            print(json.dumps(calls), file=counted, flush=True)
            sys.exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        counted.seek(0)
        return {"status": status, "said": said.read(), "calls": json.loads(counted.read() or "{}")}


def history_rows(paths: list[str]) -> Iterator[dict[str, Any]]:
    """What W&B's files have of each step."""
    from wandb.proto import wandb_internal_pb2

    for path in paths:
        for content in records(Path(path).read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                yield {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}


def main() -> None:
    command.FEED_SECONDS = 0.1
    for name in IMPORTED[sys.argv[1]]:
        import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = list(history_rows(asked["read"])) if "read" in asked else play(**asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
