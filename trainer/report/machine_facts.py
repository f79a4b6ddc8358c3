"""The few numbers that say how a run's machine did, from its samples and rows. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trainer.telemetry.metrics import Row
from trainer.text import show_bytes, show_share


def machine_facts(samples: Sequence[Row], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Names and numbers, those that were measured."""
    told: list[tuple[str, str]] = []
    for name, metric, pick, show in (
        ("GPUs", "gpu/count", max, "{:,.0f}".format),
        ("GPU utilisation, mean", "gpu/utilization", mean_of, lambda value: show_share(value, 0)),
        ("GPU memory, most", "gpu/memory_used_bytes", max, show_bytes),
        ("GPU power, mean", "gpu/power_watts", mean_of, "{:,.0f} W".format),
        ("hottest GPU", "gpu/temperature_celsius", max, "{:,.0f} °C".format),
        ("Xid errors", "gpu/xid_count", max, "{:,.0f}".format),
        ("processors, mean", "machine/cpu_fraction", mean_of, lambda value: show_share(value, 0)),
        ("memory left, least", "machine/memory_available_bytes", min, show_bytes),
        ("scratch disk left, least", "disk/scratch_free_bytes", min, show_bytes),
    ):
        if values := _finite(samples, metric):
            told.append((name, show(pick(values))))
    for name, metric in (("tensors", "gpu/memory_bytes"), ("reserved", "gpu/memory_reserved_bytes")):
        if values := _finite(rows, metric):
            told.append((f"GPU {name}, most", show_bytes(max(values))))
    return told


def _finite(rows: Iterable[Row], metric: str) -> list[float]:
    return [row[metric] for row in rows if metric in row and math.isfinite(row[metric])]


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
