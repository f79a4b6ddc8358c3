"""Sums up a run: makes a Summary of its rows, config and result, and text of the Summary.

Pure functions. No pictures here, and no store.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.contract import check_key
from trainer.report.outlook import NOTHING_AHEAD, Outlook
from trainer.telemetry.metrics import Row
from trainer.text import show_duration, show_estimate, show_number
from trainer.values import as_number, as_object, as_text, as_whole, check_known

PREFIXES = {"model": "val", "ema": "val_ema", "swa": "val_swa"}  # of the scores of each set of weights
WEIGHTS = {"model": "model weights", "ema": "EMA weights", "swa": "SWA weights"}
MOST_STEPS = 1 << 40  # and epochs: more cannot be done


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation of one set of weights; top1 and top5 as fractions."""

    top1: float
    top5: float | None
    step: int
    weights: str  # "model", "ema" or "swa"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The main facts of a run, finished or not."""

    run_id: str
    recipe: str
    is_finished: bool
    steps: int
    total_steps: int | None  # of all epochs: a finished run may have ended early
    steps_per_epoch: float | None
    started: float | None  # unix seconds
    seconds: float
    images_per_second: float | None
    attempts: int
    parameters: int | None
    best: Score | None
    last: Score | None
    last_ema: Score | None
    last_swa: Score | None
    checkpoint: str  # a full path or URI; "" if there is none yet
    metrics: str
    report: str
    outlook: Outlook = NOTHING_AHEAD


def check_shown_config(config: dict[str, Any]) -> None:
    """Raises ValueError if what is used of `config.json` is not what a trainer writes. All of it may be missing."""
    for name in config.keys() & {"recipe"}:
        as_text(name, config[name])
    for name in config.keys() & {"epochs"}:
        as_whole(name, config[name], MOST_STEPS)


def check_result(result: dict[str, Any]) -> None:
    """As `check_shown_config`, for `result.json`."""
    check_shown_config(result)
    for name in result.keys() & {"steps", "attempts", "parameters"}:
        as_whole(name, result[name])
    for name in result.keys() & {"steps_per_epoch", "seconds", "images_per_second"}:
        as_number(name, result[name])
    for name in result.keys() & {"checkpoint"}:
        check_key(as_text(name, result[name]))
    if best := as_object("best", result.get("best", {})):
        as_number("best.top1", check_known(best, "top1"))
        as_whole("best.step", check_known(best, "step"))
        as_text("best.weights", check_known(best, "weights"), "model|ema|swa")


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """One row for each evaluated step, with the numbers of the model and of its averages."""
    by_step: dict[int, Row] = {}
    scores = {f"{prefix}/top1" for prefix in PREFIXES.values()}
    for row in rows:
        if not scores.isdisjoint(row):
            by_step.setdefault(int(row["step"]), {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def validation_scores(rows: Iterable[Row], weights: str) -> list[Score]:
    prefix = PREFIXES[weights]
    return [
        Score(
            top1=float(row[f"{prefix}/top1"]),
            top5=float(row[f"{prefix}/top5"]) if f"{prefix}/top5" in row else None,
            step=int(row["step"]),
            weights=weights,
        )
        for row in evaluations(rows)
        if f"{prefix}/top1" in row
    ]


def summarise(
    run_id: str,
    rows: Sequence[Row],
    config: dict[str, Any],
    result: dict[str, Any],
    *,
    checkpoint: str,
    metrics: str,
    report: str,
) -> Summary:
    """The facts of `result.json` if the run is finished, else the same facts from the rows so far."""
    evaluated = evaluations(rows)
    model, ema, swa = (validation_scores(evaluated, weights) for weights in PREFIXES)
    best = max(model + ema + swa, key=lambda score: score.top1, default=None)
    if told := result.get("best"):
        same = [s.top5 for s in model + ema + swa if (s.step, s.weights) == (told["step"], told["weights"])]
        best = Score(top1=told["top1"], top5=same[0] if same else None, step=told["step"], weights=told["weights"])
    steps_per_epoch = steps_in_epoch(result, rows)
    epochs = result.get("epochs") or config.get("epochs")
    speeds = [float(row["speed/images_per_second"]) for row in rows if "speed/images_per_second" in row]
    speeds = [speed for speed in speeds if math.isfinite(speed)]
    starts = [row for row in rows if row.get("event") == "start"]
    return Summary(
        run_id=run_id,
        recipe=str(result.get("recipe") or config.get("recipe") or "unknown"),
        is_finished=bool(result),
        steps=int(result.get("steps") or max((int(row["step"]) for row in rows), default=0)),
        total_steps=round(epochs * steps_per_epoch) if epochs and steps_per_epoch else result.get("steps"),
        steps_per_epoch=steps_per_epoch,
        started=min((float(row["time"]) for row in rows), default=None),
        seconds=float(result.get("seconds") or training_seconds(rows)),
        images_per_second=result.get("images_per_second") or (statistics.median(speeds) if speeds else None),
        attempts=int(result.get("attempts") or max((row.get("attempt", 1) for row in starts), default=1)),
        parameters=result.get("parameters"),
        best=best,
        last=model[-1] if model else None,
        last_ema=ema[-1] if ema else None,
        last_swa=swa[-1] if swa else None,
        checkpoint=checkpoint,
        metrics=metrics,
        report=report,
    )


def steps_in_epoch(result: Mapping[str, Any], rows: Sequence[Row]) -> float | None:
    """As `result.json` says, else from the rows so far; None where neither does."""
    seen = ((row["step"], row["train/epoch"]) for row in reversed(rows) if row.get("train/epoch"))
    return result.get("steps_per_epoch") or next((int(s) / float(e) for s, e in seen if math.isfinite(e)), None)


def last_scores(summary: Summary) -> list[tuple[str, Score]]:
    """The last scores of the model and of its averages, by what they are called."""
    scores = (("last", summary.last), ("last, EMA", summary.last_ema), ("last, SWA", summary.last_swa))
    return [(name, score) for name, score in scores if score is not None]


def training_seconds(rows: Iterable[Row]) -> float:
    """Seconds from the first to the last row of each attempt. The time between attempts does not count."""
    spans: list[list[float]] = []
    for row in rows:
        if row.get("event") == "start" or not spans:
            spans.append([])
        spans[-1].append(float(row["time"]))
    return sum(max(times) - min(times) for times in spans)


def restarts(rows: Iterable[Row]) -> list[int]:
    """The steps from which later attempts continued; a rewind and the attempt that went on from it are one."""
    steps = [int(row["step"]) for row in rows if row.get("event") == "start" and row.get("attempt", 1) > 1]
    return list(dict.fromkeys(steps))


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def _printable(text: str) -> str:
    """Replace control characters: names come from files, and must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def facts(summary: Summary) -> dict[str, str]:
    """The numbers that both the page and the terminal show, as text."""
    steps = f"{summary.steps:,}"
    if summary.total_steps and (not summary.is_finished or summary.steps < summary.total_steps):
        steps += f" of {summary.total_steps:,}"
    epochs = show_number(summary.steps / summary.steps_per_epoch) if summary.steps_per_epoch else "-"
    rate = summary.images_per_second
    told = {
        "steps": steps,
        "epochs": epochs,
        "wall time": show_duration(summary.seconds),
        "speed": "-" if rate is None else f"{rate:,.0f} images/s",
        "attempts": str(summary.attempts),
    }
    return told | _costs(summary.outlook, is_finished=summary.is_finished)


def _costs(ahead: Outlook, *, is_finished: bool) -> dict[str, str]:
    """Time that is left, dollars and energy, as far as they are known."""
    told = {}
    if ahead.seconds_left is not None and not is_finished:
        told["time left"] = f"about {show_estimate(ahead.seconds_left)}"
    projected = None if is_finished else ahead.projected_usd
    for name, usd in (("spent", ahead.spent_usd), ("projected", projected), ("budget", ahead.budget_usd)):
        if usd is not None:
            told[name] = f"${usd:,.2f}"
    if ahead.kwh is not None:
        told["GPU energy"] = f"{ahead.kwh:,.3g} kWh"
    return told


def finished_text(summary: Summary) -> str:
    """Whether a finished run has done all its epochs."""
    is_early = summary.total_steps is not None and summary.steps < summary.total_steps
    return "finished early (--patience)" if is_early else "finished"


def summary_text(summary: Summary) -> str:
    """What the terminal shows at the end of a run: plain text, aligned."""
    told = [("best", summary.best)] if summary.best else []
    told += last_scores(summary)
    state = finished_text(summary) if summary.is_finished else "NOT finished; the command that started it continues it"
    lines = [f"{summary.run_id} (recipe {summary.recipe}): {state}", ""]
    if told:
        lines.append(" " * 12 + "".join(f"{name:>11}" for name, _ in told))
        lines.append(f"  {'top-1':10}" + "".join(f"{percent(score.top1):>11}" for _, score in told))
        lines.append(f"  {'top-5':10}" + "".join(f"{percent(score.top5):>11}" for _, score in told))
    else:
        lines.append("  no evaluation yet")
    if summary.best:
        lines.append(f"  {'best at':13}step {summary.best.step:,}, {WEIGHTS[summary.best.weights]}")
    lines.append("")
    lines += [f"  {name:13}{value}" for name, value in facts(summary).items()]
    lines.append("")
    paths = {"checkpoint": summary.checkpoint or "none yet", "metrics": summary.metrics, "report": summary.report}
    lines += [f"  {name:13}{value}" for name, value in paths.items()]
    return "\n".join(_printable(line) for line in lines)
