"""Which chart shows which metrics. Tables alone: nothing here draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Lines = dict[str, tuple[str, str, str]]  # metric -> label in the legend, colour, line style


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes: its metrics, and how they are drawn."""

    title: str
    lines: Lines
    right: Lines = field(default_factory=dict)  # with a scale of their own, in pixels
    scale: float = 1.0
    is_from_zero: bool = False


def _by_split(name: str, style: str = "-", labels: Sequence[str] = ("train", "validation", "EMA", "SWA")) -> Lines:
    splits = (("train", "train"), ("val", "val"), ("val_ema", "ema"), ("val_swa", "swa"))
    return {f"{split}/{name}": (label, colour, style) for (split, colour), label in zip(splits, labels, strict=True)}


def _alone(title: str, metric: str, colour: str = "train", scale: float = 1.0) -> Panel:
    return Panel(title=title, lines={metric: ("", colour, "-")}, scale=scale, is_from_zero=True)


TRAINING_CHARTS = {
    "loss": [Panel(title="Loss", lines=_by_split("loss"))],
    "accuracy": [
        Panel(
            title="Accuracy (%)", scale=100.0, lines=_by_split("top1") | _by_split("top5", ":", ("", "top-5", "", ""))
        )
    ],
    "learning-rate": [
        Panel(
            title="Learning rate",
            lines={"plan/lr": ("planned", "muted", "--"), "train/lr": ("done", "train", "-")},
            right={"plan/resolution": ("", "muted", "--"), "done/resolution": ("pixels", "ema", "-")},
            is_from_zero=True,
        )
    ],
    "throughput": [
        _alone("Images per second", "speed/images_per_second"),
        _alone("Time spent waiting for data (%)", "speed/data_wait_fraction", "val", 100.0),
    ],
}
STEP_CHARTS = {
    "step-time": [
        Panel(
            title="Step time (ms)",
            lines={"speed/step_seconds_p50": ("median", "train", "-"), "speed/step_seconds_p95": ("p95", "val", "-")},
            scale=1e3,
            is_from_zero=True,
        )
    ],
    "checkpoints": [
        _alone("Work that no checkpoint has yet (s)", "checkpoint/lag_seconds"),
        _alone("Training held up by saves (ms)", "checkpoint/stall_seconds", "val", 1e3),
    ],
}
MACHINE_CHARTS = {
    "gpu": [
        _alone("GPU utilisation (%)", "gpu/utilization", "train", 100.0),
        Panel(
            title="GPU memory (GB)",
            lines={"gpu/memory_used_bytes": ("used", "ema", "-"), "gpu/memory_total_bytes": ("total", "muted", "--")},
            scale=1e-9,
            is_from_zero=True,
        ),
    ],
    "power": [
        _alone("GPU power (W)", "gpu/power_watts"),
        _alone("Hottest GPU (°C)", "gpu/temperature_celsius", "val"),
    ],
    "machine": [
        _alone("Processors busy (%)", "machine/cpu_fraction", "train", 100.0),
        Panel(
            title="Memory (GB)",
            lines={
                "process/trainer_memory_bytes": ("trainer", "ema", "-"),
                "machine/memory_available_bytes": ("available", "muted", "--"),
            },
            scale=1e-9,
            is_from_zero=True,
        ),
    ],
    "traffic": [
        Panel(
            title="Scratch disk (MB/s)",
            lines={
                "disk/read_bytes_per_second": ("read", "train", "-"),
                "disk/write_bytes_per_second": ("written", "val", "-"),
            },
            scale=1e-6,
            is_from_zero=True,
        ),
        Panel(
            title="Network (MB/s)",
            lines={
                "network/received_bytes_per_second": ("received", "train", "-"),
                "network/sent_bytes_per_second": ("sent", "val", "-"),
            },
            scale=1e-6,
            is_from_zero=True,
        ),
    ],
}
CHARTS = (*TRAINING_CHARTS, *STEP_CHARTS, *MACHINE_CHARTS)
