"""What a tracker must do, and which there are."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trainer.contract import UserError
from trainer.telemetry.metrics import Row

PROJECT = "resnet-spot"  # where runs go, unless the tracker's own variable names another

# To add one: its class, in a module of its name beside this one, and here the class and what people call it.
TRACKERS = {
    "wandb": ("HostedRun", "Weights & Biases"),
    "mlflow": ("ExperimentRun", "MLflow"),
    "trackio": ("LocalRun", "Trackio"),
}

METRIC_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}(/[A-Za-z0-9_.-]{1,60}){1,4}")


class TrackerError(Exception):
    """The tracker did not take or give what it was asked for. It may later."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it."""

    run_id: str
    began: float  # Unix seconds
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Unlike that of another run that has or had the same id: `digits-1f0c29ab`."""
        return f"{self.run_id}-{hashlib.sha256(f'{self.run_id} {self.began!r}'.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Position:
    """The newest step of which a tracker has all, and that step's time; None where the tracker does not tell it."""

    step: int
    time: float | None


class Tracker(Protocol):
    """A run at a tracker. Every method raises TrackerError."""

    where: str
    """The place that is fed, for messages."""

    @staticmethod
    def target() -> str:
        """The place that the variables name, for what keeps two commands from feeding it at once. Raises UserError."""

    def position(self) -> Position | None:
        """What the tracker itself says that it has of the run. None: nothing."""

    def feed(self, rows: Sequence[Row]) -> None:
        """Give it rows, by step, each beyond its position. It may be killed meanwhile."""

    def close(self, ended: str) -> None:
        """Hand over what waits, and say that the run is "finished" or "failed"; "": it may go on."""


def target_of(name: str) -> str:
    """The place that the tracker's variables name. Raises UserError."""
    target: str = tracker_class(name).target()
    return target


def tracker_class(name: str) -> Any:
    return getattr(import_module(f"trainer.trackers.{check_tracker(name)}"), TRACKERS[name][0])


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """The run at the tracker, which is made if it is not there. Raises UserError, TrackerError."""
    tracker: Tracker = tracker_class(name)(run)
    return tracker


def check_tracker(name: str) -> str:
    if name not in TRACKERS:
        told = f"TO={name!r} is no tracker" if name else "TO= names no tracker"
        raise UserError(f"{told}: choose {', '.join(TRACKERS)}, for example `make track RUN=digits TO=mlflow`")
    return name


def numbers(row: Row) -> dict[str, float]:
    """The metrics of a row. A name that no trainer writes is left out."""
    return {name: value for name, value in row.items() if METRIC_NAME.fullmatch(name) and ".." not in name}


def program(name: str) -> str:
    """The program of this environment, for a command that a person may copy."""
    path, here = Path(sys.executable).parent / name, Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def without_secrets(text: str) -> str:
    """The text without the keys that trackers are used with, also those in an address."""
    text = re.sub(r"://[^/@\s]*@", "://…@", text)
    for name, value in os.environ.items():
        if value and len(value) >= 6 and re.search(r"KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "…")
    return text
