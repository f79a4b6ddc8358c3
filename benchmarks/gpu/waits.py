"""Hidden waits: lines of a step at which the processor stops until the GPU has done all that it was given."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measure import Found, Place
from benchmarks.gpu.steps import config_of, ours

BATCH, STEPS = 64, 3
ROOT = Path(__file__).parents[2]
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain bf16": {},
    "plain fp16": {"precision": "fp16"},
    "trivial, erasing, mixup": {
        "regularize.augment": "trivial", "regularize.erasing_probability": 0.1, "regularize.mixup_alpha": 0.2
    },
    "rand, cutmix": {"regularize.augment": "rand", "regularize.cutmix_alpha": 1.0},
}  # fmt: skip


@contextmanager
def noticed(place: Place) -> Iterator[Counter[str]]:
    """Counts the waits inside, by `file:line`, as torch warns of them. On a CPU there are none."""
    found: Counter[str] = Counter()
    if place.on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield found
    finally:
        if place.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    found.update(_where(one) for one in seen if "synchron" in str(one.message))


def _where(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    inside = path.is_relative_to(ROOT) and "site-packages" not in path.parts
    name = path.relative_to(ROOT) if inside else Path(*path.parts[-3:])
    return f"{name}:{warning.lineno}"


def find(place: Place) -> Found:
    """By variant of the step, its waits in three steps; `control` is a wait on purpose, which must be seen."""
    waits = {}
    for name, options in VARIANTS.items():
        training = ours(place, config_of(place, options, batch=min(place.batch, BATCH)))
        training.step()
        training.step()
        place.drain()
        with noticed(place) as found:
            for _ in range(STEPS):
                training.step()
        waits[name] = dict(found)
    with noticed(place) as control:
        torch.zeros(1, device=place.device).item()
    return {f"waits_in_{STEPS}_steps": waits, "control_seen": sum(control.values())}
