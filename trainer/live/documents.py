"""The small objects that a run leaves, as values that are checked. What is not as a machine of ours writes it raises
ValueError. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.values import as_list, as_number, as_object, as_text, as_time, as_whole, check_known, is_measured

MOST_ALERTS = 20
MOST_TOLD_STEPS = 1e12  # and epochs: more cannot be done
MOST_SAMPLED = 2.0**64  # of bytes, watts, degrees and bits
SHARES = ("utilization", "_fraction")  # how the names of those end
LEVELS = ("info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class ShownAlert:
    """Something that was told of the run. `time` in Unix seconds."""

    time: float
    kind: str
    level: str  # info, warning or error
    text: str


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """`heartbeat.json`."""

    time: float  # Unix seconds, by the clock of the run's machine
    attempt: int
    phase: str = ""
    step: int = 0
    progress: int = 0  # within the phase
    owner: str = ""  # the machine's name
    nodes: int = 1  # machines of the attempt
    sample: Mapping[str, float] = field(default_factory=dict)
    sample_time: float = 0.0  # Unix seconds; 0: not known
    alerts: tuple[ShownAlert, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """`attempts/<n>.json`. Without an end it still runs, or was killed."""

    started: float = 0.0
    ended: float = 0.0  # 0: not known
    code: int | None = None
    message: str = ""
    machine: str = ""  # type and zone; "" outside EC2


@dataclass(frozen=True, kw_only=True)
class Finish:
    """`result.json`."""

    recipe: str
    steps: int
    total_steps: int | None
    seconds: float
    attempts: int
    top1: float | None
    best_step: int
    images_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """`done.json`: the record of the attempt that finished, and copies of what a list of runs needs. None where it has
    none: an older version wrote it, or the run is a preparation.
    """

    record: AttemptRecord
    finish: Finish | None
    first: AttemptRecord | None  # the start of the run


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the manifest of the newest checkpoint says."""

    step: int
    attempt: int
    time: float
    recipe: str
    epochs: float
    total_steps: int | None  # of all epochs; None: an older version does not tell
    batch: int  # images of a step
    top1: float | None  # best so far
    best_step: int
    last_top1: float | None  # of the last validation, the best of the model and its averages


@dataclass(frozen=True, kw_only=True)
class Money:
    """Dollars. None: nobody has counted, or said."""

    spent: float | None = None
    budget: float | None = None


def parse_pulse(value: Mapping[str, Any]) -> Pulse:
    """What an older version did not write is empty. `observed` is dropped alone if it is damaged."""
    try:
        observed = as_object("observed", value.get("observed", {}))
        measured = as_object("sample", observed.get("sample", {}))
        sample, alerts = parse_sample(measured), parse_alerts(observed.get("alerts", []))
        sample_time = as_time("sample.time", measured.get("time", 0))
    except ValueError:
        sample, alerts, sample_time = {}, (), 0.0
    return Pulse(
        time=as_time("time", check_known(value, "time")),
        attempt=as_whole("attempt", value.get("attempt", 0)),
        phase=as_text("phase", value.get("phase", "")),
        step=as_whole("step", value.get("step", 0)),
        progress=as_whole("progress", value.get("progress", 0)),
        owner=as_text("owner", value.get("owner", "")),
        nodes=as_whole("nodes", value.get("nodes", 1)),
        sample=sample,
        sample_time=sample_time,
        alerts=alerts,
    )


def parse_sample(value: object) -> dict[str, float]:
    """The values by their names. What no machine can measure is left out. Raises ValueError if it is no object."""
    measured = {
        name: float(one) for name, one in as_object("sample", value).items() if "/" in name and is_measured(one)
    }
    return {name: one for name, one in measured.items() if 0 <= one <= (1.0 if name.endswith(SHARES) else MOST_SAMPLED)}


def parse_alerts(value: object) -> tuple[ShownAlert, ...]:
    """The newest MOST_ALERTS. Raises ValueError if one is no alert."""
    return tuple(parse_alert(as_object("alert", one)) for one in as_list("alerts", value)[-MOST_ALERTS:])


def parse_alert(value: Mapping[str, Any]) -> ShownAlert:
    level = as_text("level", value.get("level", "info"))
    return ShownAlert(
        time=as_time("time", check_known(value, "time")),
        kind=as_text("kind", check_known(value, "kind")),
        level=level if level in LEVELS else "info",
        text=as_text("text", check_known(value, "text"))[:1000],
    )


def parse_attempt(value: Mapping[str, Any]) -> AttemptRecord:
    machine = as_object("machine", value.get("machine") or {})
    named = [as_text(f"machine.{name}", machine[name]) for name in ("type", "zone", "market") if machine.get(name)]
    return AttemptRecord(
        started=as_time("started", value.get("started", 0)),
        ended=as_time("ended", value.get("ended", 0)),
        code=as_whole("exit", value["exit"]) if "exit" in value else None,
        message=as_text("message", value.get("message", "")),
        machine=", ".join(named),
    )


def parse_finish(value: Mapping[str, Any]) -> Finish:
    top1, best_step = _parse_best(value.get("best"))
    epochs, per_epoch = (as_number(name, value.get(name, 0), MOST_TOLD_STEPS) for name in ("epochs", "steps_per_epoch"))
    rate, steps = value.get("images_per_second"), as_whole("steps", value.get("steps", 0))
    total = round(epochs * per_epoch)
    return Finish(
        recipe=as_text("recipe", value.get("recipe", "")),
        steps=steps,
        total_steps=total if total and total >= steps else None,
        seconds=float(as_number("seconds", value.get("seconds", 0))),
        attempts=as_whole("attempts", value.get("attempts", 1)),
        top1=top1,
        best_step=best_step,
        images_per_second=None if rate is None else float(as_number("images_per_second", rate)),
    )


def parse_done(value: Mapping[str, Any]) -> Done:
    record, first = parse_attempt(value), value.get("first")
    if value.get("attempt") == 1 and {"started", "machine"} <= value.keys():
        first = value
    return Done(
        record=record,
        finish=parse_finish(as_object("result", value["result"])) if "result" in value else None,
        first=None if first is None else parse_attempt(as_object("first", first)),
    )


def parse_saved(value: Mapping[str, Any]) -> Saved:
    counters, config = (as_object(name, value.get(name) or {}) for name in ("counters", "config"))
    scores = as_object("scores", counters.get("scores") or {})
    epochs = float(as_number("epochs", config.get("epochs", 0), MOST_TOLD_STEPS))
    per_epoch = as_number("steps_per_epoch", value.get("steps_per_epoch", 0), MOST_TOLD_STEPS)
    top1, best_step = _parse_best(counters.get("best"))
    top1s = [_share(scores[name]) for name in ("val/top1", "val_ema/top1", "val_swa/top1") if name in scores]
    return Saved(
        step=as_whole("step", check_known(value, "step")),
        attempt=as_whole("attempt", value.get("attempt", 0)),
        time=as_time("time", check_known(value, "time")),
        recipe=as_text("recipe", config.get("recipe", "")),
        epochs=epochs,
        total_steps=round(epochs * per_epoch) or None,
        batch=as_whole("global_batch_size", config.get("global_batch_size", 0)),
        top1=top1,
        best_step=best_step,
        last_top1=max(top1s, default=None),
    )


def _parse_best(value: object) -> tuple[float | None, int]:
    """Its accuracy and step. Before the first validation a trainer writes step 0, and an accuracy of -1."""
    best = as_object("best", value or {})
    step = as_whole("best.step", best.get("step", 0))
    return _share(check_known(best, "top1")) if step else None, step


def _share(value: object) -> float:
    share = float(as_number("top1", value))
    if not 0 <= share <= 1:
        raise ValueError(f"top1 is {share:g}, not from 0 to 1")
    return share
