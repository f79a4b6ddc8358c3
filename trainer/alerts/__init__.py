"""Alerts: what a person should hear of a run while it runs, and how it reaches them. Standard library only.

`filter` keeps repetitions away, `webhook` writes the message that Slack, Discord or another program takes, and
`delivery` sends it in the background. Who notices what is to be told is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

HEALTH_KINDS = (
    "starved", "hung", "throttled", "loss-jump", "not-finite", "store-stalled", "disk-full", "gpu-lost", "idle-gpu",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One thing to tell."""

    kind: str  # of HEALTH_KINDS, or: started, interrupted, resumed, best, finished, failed, budget
    level: str  # info, warning or error
    text: str
    run_id: str
    step: int
    time: float  # Unix seconds
    id: str = ""  # unique in the run: of a message that comes twice it is the same
