"""What a run's machines write into the bucket, read as values that are checked: somebody else may have written it.

A document that no machine writes raises ValueError. Whoever reads it says so, and goes on without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.run.values import MOST, check_number, check_object, check_text, check_whole

METRICS = (
    "train/epoch",
    "train/top1",
    "val/top1",
    "val_ema/top1",
    "val_swa/top1",
    "speed/images_per_second",
)  # that are shown
Measured = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Beat:
    phase: str = ""
    step: int = 0
    progress: int = 0  # within the phase
    attempt: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Beat:
        counts = {name: check_whole(name, value.get(name, 0)) for name in ("step", "progress", "attempt")}
        return cls(phase=check_text("phase", value.get("phase", "")), **counts)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the config says of a run's size. 0: it does not say."""

    epochs: float = 0.0
    global_batch_size: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shape:
        size = check_whole("global_batch_size", value.get("global_batch_size", 0))
        return cls(epochs=check_number("epochs", value.get("epochs", 0)), global_batch_size=size)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    step: int
    attempt: int
    time: float
    best_top1: float | None
    best_step: int
    validated: int  # the step of the last validation

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Checkpoint:
        """From its manifest."""
        counters = check_object("counters", value.get("counters", {}))
        best = check_object("best", counters.get("best") or {})
        best_step = check_whole("best.step", best.get("step", 0))  # 0: before the first validation
        return cls(
            step=check_whole("step", value.get("step")), attempt=check_whole("attempt", value.get("attempt", 0)),
            time=check_number("time", value.get("time")), best_step=best_step,
            best_top1=check_number("best.top1", best.get("top1")) if best_step else None,
            validated=check_whole("validated", counters.get("validated", 0)),
        )  # fmt: skip


def check_attempt(value: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an attempt's start and end. An attempt that was killed wrote no end."""
    for name in ("started", "ended"):
        check_number(name, value.get(name, 0))
    for name in ("attempt", "exit"):
        check_whole(name, value.get(name, 0))
    for name, one in value.items():
        if isinstance(one, float):
            check_number(name, one)
        elif isinstance(one, list | dict) and name != "machine":
            raise ValueError(f"{name} is a {type(one).__name__}")
    for name, text in check_object("machine", value.get("machine") or {}).items():
        check_text(f"machine.{name}", text)
    return dict(value)


def parse_measured(line: bytes) -> Measured:
    """What is shown of a row of metrics, and its step. Only the step if it is no row of a training or a validation."""
    try:
        row = check_object("the line", json.loads(line))
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    found: Measured = {"step": check_whole("step", row.get("step"))}
    if "event" in row:
        return found
    return found | {name: check_number(name, row[name]) for name in METRICS if name in row}


def segment_steps(key: str) -> tuple[int, int]:
    """The first and the last step of a segment of metrics, from its key; (0, 0) if it is called otherwise."""
    found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})(_[0-9]+)?\.jsonl", key.rsplit("/", 1)[1])
    return (int(found[1]), int(found[2])) if found else (0, 0)


def number_or_zero(value: object) -> float:
    """The number, and 0 for what is none."""
    try:
        return check_number("", value, MOST)
    except ValueError:
        return 0.0
