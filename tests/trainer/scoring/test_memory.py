"""The memory of a device: who leaves it, and what is told where it is full. A CPU stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.scoring.test_views import BASE, CARD, WORLD, member
from trainer.contract import UserError
from trainer.data.reading.split import PreparedSplit
from trainer.scoring import sweep
from trainer.scoring.data import ScoredSet
from trainer.scoring.members import Member
from trainer.scoring.speed import latency_seconds
from trainer.scoring.sweep import run_sweeps, sweep_member, sweep_plans


def test_a_sweep_has_one_member_on_the_device_at_a_time(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = members = [member(1), member(2)]
    events = list[tuple[str, Member | None]]()
    for one in members:
        monkeypatch.setattr(one.model, "to", lambda device, one=one: events.append(("there", one)))
        monkeypatch.setattr(one.model, "cpu", lambda one=one: events.append(("away", one)))

    def watched(one: Member, *more: Any) -> sweep.Sweep:
        assert not torch.is_inference_mode_enabled()
        events.append(("swept", one))
        return sweep_member(one, *more)

    monkeypatch.setattr(sweep, "sweep_member", watched)
    monkeypatch.setattr(sweep, "empty_cache", lambda world: events.append(("emptied", None)))
    scored = ScoredSet(
        name="some", prefix="val", identity={}, classes=split.classes, labels=split.labels, open=lambda pixels: split
    )
    run_sweeps(sweep_plans(members, "32"), scored, BASE, WORLD, tmp_path)
    assert events == [
        (what, one if what != "emptied" else None)
        for one in (first, second)
        for what in ("there", "swept", "away", "emptied")
    ]


class Full(nn.Module):
    """A network that no GPU has room for."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_that_has_no_room_for_one_image_is_told() -> None:
    with pytest.raises(UserError, match=r"no memory left for 1 image\(s\) at a time .*: pass --device cpu$"):
        latency_seconds(Member("large", Full(), CARD), BASE, WORLD)
