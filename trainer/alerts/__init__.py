"""Alerts: what a person should hear of a run while it runs, and how it reaches them. Standard library only.

`filter` keeps repetitions away, `webhook` writes the message that Slack, Discord or another program takes, and
`delivery` sends it in the background. Who notices what is to be told is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

LIFECYCLE_KINDS = ("started", "interrupted", "resumed", "best", "finished", "failed", "budget")
HEALTH_KINDS = (
    "starved", "hung", "throttled", "loss-jump", "not-finite", "store-stalled", "disk-full", "gpu-lost", "idle-gpu",
)  # fmt: skip
ALERT_LEVELS = ("info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One thing to tell: `kind` is one of LIFECYCLE_KINDS and HEALTH_KINDS, `level` of ALERT_LEVELS."""

    kind: str
    level: str
    text: str
    run_id: str
    step: int
    time: float  # Unix seconds
