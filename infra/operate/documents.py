"""What a run's machines write into the bucket, read as values that are checked: somebody else may have written it.

A document that no machine writes raises ValueError. Whoever reads it says so, and goes on without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.run.values import MOST, check_number, check_object, check_text, check_whole, printable

METRICS = (
    "train/epoch",
    "train/top1",
    "val/top1",
    "val_ema/top1",
    "val_swa/top1",
    "speed/images_per_second",
)  # that are shown
CURVES = ("time", "train/loss", "speed/data_wait_fraction")  # likewise, where they are numbers
MOST_OF_SAMPLE = 1e20  # bytes, or a mask of 64 bits
MOST_NAMES, ALERTS_SHOWN = 100, 20  # of an observation
TOLD_LEVELS = ("info", "warning", "error")
Measured = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedAlert:
    """Something that the run's observer told."""

    id: str
    time: float  # Unix seconds
    step: int
    kind: str
    level: str  # one of TOLD_LEVELS
    text: str  # one line

    @classmethod
    def from_json(cls, value: object) -> TimedAlert:
        found = check_object("an alert", value)
        texts = {name: " ".join(check_text(name, found.get(name)).split()) for name in ("id", "kind", "text")}
        return cls(
            time=check_number("time", found.get("time")), step=check_whole("step", found.get("step", 0)),
            level=check_text("level", found.get("level"), TOLD_LEVELS),
            id=printable(texts["id"], 100), kind=printable(texts["kind"], 40), text=printable(texts["text"], 400),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the machine measured of itself last, and what it told, the oldest first. What is odd of it is left out."""

    sample: Mapping[str, float] = field(default_factory=dict)  # `gpu/utilization`, …; "time" if it says when
    alerts: tuple[TimedAlert, ...] = ()
    problem: str = ""  # what was odd first

    @classmethod
    def from_json(cls, value: object) -> Observed:
        if value is None:
            return cls()
        odd: list[str] = []
        try:
            found = check_object("observed", value)
            sample = parse_numbers(check_object("observed.sample", found.get("sample") or {}), odd)
        except ValueError as error:
            return cls(problem=str(error))
        alerts, told = list[TimedAlert](), found.get("alerts") or []
        for one in told[-ALERTS_SHOWN:] if isinstance(told, list) else [told]:
            try:
                alerts.append(TimedAlert.from_json(one))
            except ValueError as error:
                odd.append(str(error))
        return cls(sample=sample, alerts=tuple(alerts), problem=odd[0] if odd else "")


def parse_numbers(value: Mapping[str, Any], odd: list[str]) -> Measured:
    """The numbers of a row whose names have slashes, and "time". Adds to `odd` what is none, or cannot be."""
    found: Measured = {}
    for name, one in list(value.items())[:MOST_NAMES]:
        if name != "time" and not re.fullmatch(r"[a-z0-9_]{1,40}(/[a-z0-9_]{1,40})+", name):
            continue
        most = MOST if name == "time" else 1.0 if name.endswith(("utilization", "fraction")) else MOST_OF_SAMPLE
        try:
            found[name] = check_number(name, one, most)
        except ValueError as error:
            odd.append(str(error))
    return found


@dataclass(frozen=True, kw_only=True)
class Beat:
    phase: str = ""
    step: int = 0
    progress: int = 0  # within the phase
    attempt: int = 0
    nodes: int = 1  # machines of the attempt
    observed: Observed = Observed()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Beat:
        counts = {name: check_whole(name, value.get(name, 0)) for name in ("step", "progress", "attempt")}
        counts["nodes"] = check_whole("nodes", value.get("nodes", 1))
        observed = Observed.from_json(value.get("observed"))
        return cls(phase=check_text("phase", value.get("phase", "")), observed=observed, **counts)


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
    total_steps: int  # of all epochs; 0: an older version does not tell

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
            validated=check_whole("validated", counters.get("validated", 0)), total_steps=total_of(value),
        )  # fmt: skip


def total_of(manifest: Mapping[str, Any]) -> int:
    config = check_object("config", manifest.get("config") or {})
    epochs = check_number("config.epochs", config.get("epochs", 0))
    return round(min(epochs * check_number("steps_per_epoch", manifest.get("steps_per_epoch", 0)), MOST))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the trainer says of a finished run."""

    steps: int
    total_steps: int
    top1: float | None  # the best in validation

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        epochs, per_epoch = (check_number(name, value.get(name)) for name in ("epochs", "steps_per_epoch"))
        best = check_object("best", value.get("best") or {})
        top1 = check_number("best.top1", best.get("top1")) if best.get("step") else None
        steps = check_whole("steps", value.get("steps"))
        return cls(steps=steps, total_steps=round(min(epochs * per_epoch, MOST)), top1=top1)


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
    row = parse_line(line)
    found: Measured = {"step": check_whole("step", row.get("step"))}
    if "event" in row:
        return found
    found |= {name: check_number(name, row[name]) for name in METRICS if name in row}
    return found | parse_numbers({name: row[name] for name in CURVES if name in row}, [])


def parse_telemetry(line: bytes) -> Measured:
    """The numbers of a row of telemetry; {} if it is no sample."""
    row, odd = parse_line(line), list[str]()
    found = parse_numbers({} if "event" in row else row, odd)
    if odd:
        raise ValueError(odd[0])
    return found


def parse_line(line: bytes) -> dict[str, Any]:
    """The object of a line of JSON. Raises ValueError if there is none."""
    try:
        return check_object("the line", json.loads(line))
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None


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
