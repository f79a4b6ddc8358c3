"""What two equal trainings share of their metrics."""

from __future__ import annotations

from typing import Any

NOT_LEARNED = ("time", "speed/", "checkpoint/", "gpu/")  # what two equal trainings do not share


def learned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(NOT_LEARNED)}
        for row in rows
        if "event" not in row
    ]


def merged(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """One row per step; a step that is in two rows must not say two things."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = steps.setdefault(row["step"], {})
        assert not (set(known) & set(row)) - {"step"}, f"step {row['step']} stands twice: {known}, {row}"
        known.update(row)
    return steps
