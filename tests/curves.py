"""What TensorBoard finds in a folder of event files, for the tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests import PATIENCE

READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
for folder in sys.argv[1:]:
    found = EventAccumulator(folder, size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    print(json.dumps({tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}))
"""
Curves = dict[str, list[tuple[int, float]]]  # by metric: steps and values, in TensorBoard's order


def tensorboard_reads(python: str, *folders: Path) -> list[Curves]:
    """The curves of each folder by TensorBoard's own EventAccumulator, in a process of .venv-trackers."""
    command = [python, "-W", "ignore", "-c", READ, *map(str, folders)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    return [
        {tag: [(step, value) for step, value in points] for tag, points in json.loads(line).items()}
        for line in output.splitlines()
    ]


def summary_values(body: bytes) -> list[tuple[int, Any]]:
    """The step and the `Summary.Value` of each record of an event file, as tensorboardX's protocol buffers read it."""
    from tensorboardX.proto.event_pb2 import Event

    found, at = list[tuple[int, Any]](), 0
    while at < len(body):  # records: length, its checksum, the event, its checksum
        size = int.from_bytes(body[at : at + 8], "little")
        event = Event.FromString(body[at + 12 : at + 12 + size])
        found += [(event.step, value) for value in event.summary.value]
        at += 16 + size
    return found


def points(folder: Path) -> Curves:
    """The curves of a folder that nothing has to be dropped from."""
    found: Curves = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for step, value in summary_values(path.read_bytes()):
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((step, value.simple_value))
    return found
