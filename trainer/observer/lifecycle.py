"""What there is to tell of a run that goes well, or ends: pure functions from rows and reasons to what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.contract import Exit
from trainer.telemetry.health import Observation
from trainer.telemetry.metrics import Row
from trainer.text import show_share

TOP1_NAMES = {"val/top1": "", "val_ema/top1": " (EMA)", "val_swa/top1": " (SWA)"}
STAGES = {0.5: "info", 0.8: "warning", 1.0: "error"}  # of a budget


def begun(start: Row, reached: int | None) -> Observation:
    """How an attempt began, by its first row. `reached` is the last step of the attempts before, if that is known."""
    attempt, step = start["attempt"], start["step"]
    if not start["origin"]:
        again = f", in attempt {attempt}" if attempt > 1 else ""
        return Observation("started", "info", f"training has begun{again}")
    lost = "" if reached is None else f"; steps that are done again: {max(0, reached - step)}"
    return Observation("resumed", "info", f"training goes on from step {step}, in attempt {attempt}{lost}")


def best(rows: Sequence[Row], step: int) -> Observation | None:
    """The best score so far is stored: that of a validation at this step, if its row is among these."""
    found = last_score([row for row in rows if row["step"] == step])
    return (
        Observation("best", "info", f"the best top-1 so far: {found}, of step {step}; it is stored") if found else None
    )


def last_score(rows: Sequence[Row]) -> str:
    """The best top-1 of the last validation in these rows, as text; "" if there was none."""
    for row in reversed(rows):
        if scores := [(row[name], title) for name, title in TOP1_NAMES.items() if name in row]:
            top1, title = max(scores)
            return f"{show_share(top1)}{title}"
    return ""


def ended(end: Mapping[str, Any], rows: Sequence[Row], *, has_begun: bool) -> Observation | None:
    """How an attempt ended, as the supervisor tells it: `code`, `message`, and `reason` where it was interrupted.

    `rows` are its validations, if it `has_begun`. None where nothing had begun, and where another attempt has the run.
    """
    code, message = end.get("code"), str(end.get("message", ""))
    if code == Exit.FINISHED:
        score = f"; the last top-1: {found}" if (found := last_score(rows)) else ""
        return Observation("finished", "info", f"the run is finished: {message}{score}")
    if code == Exit.INTERRUPTED:
        told = f"{end.get('reason', 'stopping')}: {message}"
        return Observation("interrupted", "warning", told) if has_begun else None
    return None if code in (None, Exit.HELD) else Observation("failed", "error", message)


def budget_stage(usd: float, budget_usd: float) -> float:
    """The highest stage that the run has reached; 0 before the first."""
    return max((stage for stage in STAGES if usd >= stage * budget_usd), default=0.0)


def spent(stage: float, usd: float, budget_usd: float) -> Observation:
    said = f"{100 * stage:.0f} % of the budget are spent: ${usd:.2f} of ${budget_usd:.2f}"
    return Observation("budget", STAGES[stage], said)
