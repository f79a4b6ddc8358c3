"""What was injected and what came of it: a JSON file that grows with every try, and a table of it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from tests import ROOT
from tests.chaos.lab import Case

PATH = machine.RESULTS / "chaos.json"
KEPT_CASES = 50  # wrong ones, by scenario


def commit() -> str:
    """The commit of the code under test; with a + when the tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "trainer") else "")


class Tally:
    """Counts by scenario. Every change is written at once, by an atomic replace: Ctrl-C loses the running try alone."""

    def __init__(self, path: Path = PATH):
        self.path = path
        self.body: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"scenarios": {}}

    def of(self, scenario: str) -> dict[str, Any]:
        empty = {"tries": 0, "injected": 0, "lost": 0, "wrong": 0, "seconds": 0.0, "notes": {}, "cases": [],
                 "commits": [], "dates": []}  # fmt: skip
        found: dict[str, Any] = self.body["scenarios"].setdefault(scenario, empty)
        return found

    def add(self, scenario: str, seed: int, case: Case, seconds: float) -> None:
        entry = self.of(scenario)
        entry["tries"] += 1
        entry["injected"] += case.injected
        entry["lost"] += case.lost
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        if case.wrong:
            entry["wrong"] += 1
            if len(entry["cases"]) < KEPT_CASES:
                entry["cases"].append({"seed": seed, "wrong": case.wrong[:1000]})
        for name, value in case.notes.items():
            values = value if isinstance(value, list) else [value]
            entry["notes"].setdefault(name, []).extend(float(f"{one:.4g}") for one in values)
        today = datetime.now(UTC).date().isoformat()
        for name, mark in (("commits", self.commit), ("dates", today)):
            if mark not in entry[name]:
                entry[name].append(mark)
        self.write()

    def begin(self) -> None:
        self.commit = commit()
        self.body |= {"machine": machine.describe(), "date": datetime.now(UTC).date().isoformat()}

    def write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.body, indent=1) + "\n")
        temporary.replace(self.path)


def summary(notes: dict[str, list[float]]) -> str:
    """`restart_seconds p50 0.3 p95 0.5 max 0.6`, for each."""
    parts = []
    for name, values in sorted(notes.items()):
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        parts.append(f"{name} p50 {statistics.median(ordered):.3g} p95 {p95:.3g} max {ordered[-1]:.3g}")
    return "; ".join(parts)


def table(tally: Tally, targets: dict[str, int]) -> str:
    rows = [("scenario", "tries", "injected", "lost", "wrong", "notes")]
    for name, target in targets.items():
        if name in tally.body["scenarios"]:
            entry = tally.of(name)
            tries = f"{entry['tries']}/{target}"
            rows.append((name, tries, str(entry["injected"]), str(entry["lost"]), str(entry["wrong"]),
                         summary(entry["notes"])))  # fmt: skip
        else:
            rows.append((name, f"0/{target}", "-", "-", "-", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:], strict=True)),
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)
