"""What the accuracies say: means, deviations, and differences with their confidence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]  # set, contender, seed, top1 (a share), seconds, commit
PEERS = ("torchvision", "timm")
CONFIDENCE = 0.95


def summarised(rows: Sequence[Row]) -> dict[str, Any]:
    """For each set: mean and deviation of each contender in percent, and ours minus each peer's and both peers'."""
    found = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        points = points_of([row for row in rows if row["set"] == name])
        ours = [contender for contender in points if contender not in PEERS]
        peers = {peer: points[peer] for peer in PEERS if peer in points}
        if len(peers) > 1:
            peers["both peers"] = [value for values in peers.values() for value in values]
        found[name] = {
            "top1_percent": {contender: _described(values) for contender, values in points.items()},
            "differences": {
                f"{contender} - {peer}": difference(points[contender], values)
                for contender in ours
                for peer, values in peers.items()
            },
        }
        if len(PEERS) == len([peer for peer in PEERS if peer in points]):
            found[name]["differences"]["timm - torchvision"] = difference(points["timm"], points["torchvision"])
    return found


def points_of(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Top-1 in percent, by contender."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["contender"], []).append(100 * row["top1"])
    return found


def _described(values: Sequence[float]) -> dict[str, float]:
    deviation = round(statistics.stdev(values), 2) if len(values) > 1 else math.nan
    return {"mean": round(statistics.fmean(values), 2), "deviation": deviation, "seeds": len(values)}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Of two means, with Welch's 95 % interval and p; `real` where the interval leaves 0 out."""
    found: dict[str, Any] = {"mean": round(statistics.fmean(ours) - statistics.fmean(theirs), 2)}
    if min(len(ours), len(theirs)) < 2 or len({*ours}) == len({*theirs}) == 1:
        return found
    from scipy.stats import ttest_ind

    test = ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    low, high = round(float(interval.low), 2), round(float(interval.high), 2)
    return found | {"low": low, "high": high, "p": round(float(test.pvalue), 4), "real": not low <= 0 <= high}


def text_of(summary: dict[str, Any], inputs: dict[str, Any]) -> str:
    """The tables for the terminal."""
    lines = []
    for name, found in summary.items():
        lines.append(f"{name}: top-1 in percent")
        for contender, one in found["top1_percent"].items():
            lines.append(f"  {contender:<24}{one['mean']:7.2f} ± {one['deviation']:.2f}  ({one['seeds']} seeds)")
        for pair, one in found["differences"].items():
            interval = f"  95 %: {one['low']:+.2f} to {one['high']:+.2f}  p {one['p']:.3f}" if "p" in one else ""
            verdict = ("  REAL" if one["real"] else "  chance") if "real" in one else ""
            lines.append(f"  {pair:<36}{one['mean']:+7.2f}{interval}{verdict}")
    for name, contenders in inputs.items():
        keys = list(next(iter(contenders.values()))["ratios"])
        lines.append(f"{name}: training images, mean of each statistic over torchvision's")
        lines.append(" " * 28 + "".join(f"{key[:10]:>11}" for key in keys))
        for contender, one in contenders.items():
            lines.append(f"  {contender:<26}" + "".join(f"{one['ratios'][key]:11.3f}" for key in keys))
    return "\n".join(lines)
