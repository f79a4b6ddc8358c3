"""The parity bench: its images are disjoint, it goes on where it was stopped, and its figures are scipy's."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from benchmarks.parity import run as bench
from benchmarks.parity.figures import difference, summarised, text_of
from benchmarks.parity.loops import timm_loop, torchvision_loop
from benchmarks.parity.ours import COPIES, config_of
from benchmarks.parity.sets import PATCH, SETS, Settings, blocks_of, patches_of

SMALL = replace(SETS["digits-mixed"], train=8, val=4, batch=4, epochs=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of bright and dark images."""
    for split, count in (("train", 4), ("val", 2)):
        for name, level in (("bright", 200), ("dark", 50)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(i).integers(-40, 40, (32, 32, 3)) + level
                Image.fromarray(noise.astype(np.uint8)).save(tmp_path / split / name / f"{i}.jpg")
    return tmp_path


@pytest.mark.parametrize(("width", "height"), [(451, 300), (512, 512), (741, 500), (1411, 1411)])
def test_no_pixel_of_a_validation_patch_is_in_a_training_patch(width: int, height: int) -> None:
    train, val = (patches_of(width, height, split, 50, (1, 2)) for split in ("train", "val"))
    assert len(train) == len(val) == 50
    assert len({*train}) > 40
    for (x, y), (u, v) in product(train, val):
        assert abs(x - u) >= PATCH or abs(y - v) >= PATCH
    for left, top in train + val:
        assert 0 <= left <= width - PATCH
        assert 0 <= top <= height - PATCH
    areas = [
        sum((right - left) * (low - top) for left, top, right, low in blocks_of(width, height, split))
        for split in ("train", "val")
    ]
    assert sum(areas) == width * height


@pytest.mark.parametrize("loop", [torchvision_loop, timm_loop])
def test_a_peers_loop_takes_every_step_and_scores_every_validation_image(
    loop: Callable[[Settings, Path, int], float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    step = torch.optim.SGD.step

    def counted(optimizer: Any, *arguments: Any) -> Any:
        steps.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    assert loop(SMALL, folder, 0) in {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(steps) == SMALL.steps == 2
    assert steps[-1] == pytest.approx(SMALL.peak_lr / 25 / 1e4)  # the schedule has come to its end


@pytest.mark.parametrize(("name", "chosen"), [*zip(COPIES, SETS, strict=True)])
def test_our_run_has_the_settings_of_the_others(name: str, chosen: str) -> None:
    settings = SETS[chosen]
    config = config_of(name, settings, seed=3)
    assert (config.seed, config.epochs, config.global_batch_size) == (3, settings.epochs, settings.batch)
    assert (config.optim.peak_lr, config.optim.weight_decay) == (settings.peak_lr, settings.weight_decay)
    assert (config.data.resolution, config.data.val_resize) == (settings.pixels, settings.resize)
    assert (config.regularize.augment == "trivial") == bool(config.regularize.mixup_alpha) == settings.mixed
    assert config.optim.nesterov is False
    assert config.regularize.ema_decay == 0
    assert settings.train % settings.batch == 0  # so that an epoch has the same steps everywhere


def test_a_stopped_bench_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def train_one(contender: str, settings: Settings, folder: Path, seed: int, scratch: Path) -> tuple[float, float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((contender, seed))
        return 0.5 + seed / 100, 1.0

    monkeypatch.setattr(bench, "contenders_of", lambda settings: ["ours", "timm"])
    monkeypatch.setattr(bench, "train_one", train_one)
    monkeypatch.setattr(bench, "make_folder", lambda *arguments: tmp_path)
    path = tmp_path / "parity.json"

    def measure(seeds: int, **changes: Any) -> list[Any]:
        sets = {"digits": replace(SETS["digits"], **changes)}
        rows: list[Any] = bench.measure(path, sets, ["digits"], seeds, tmp_path, ThreadPoolExecutor(1))["rows"]
        return rows

    with pytest.raises(KeyboardInterrupt):
        measure(2)
    assert len(json.loads(path.read_text())["rows"]) == 3
    done.clear()
    rows = {(row["contender"], row["seed"]) for row in measure(2)}
    assert done == [("timm", 1)]
    assert rows == {("ours", 0), ("timm", 0), ("ours", 1), ("timm", 1)}
    done.clear()
    assert len(measure(1, epochs=9)) == 2  # other settings: from the beginning


def test_the_figures_are_means_deviations_and_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    points = {"ours": 0.44 + 0.01 * rng.standard_normal(8), "torchvision": 0.46 + 0.01 * rng.standard_normal(8),
              "timm": 0.46 + 0.02 * rng.standard_normal(8)}  # fmt: skip
    rows = [
        {"set": "photographs", "contender": name, "seed": seed, "top1": float(value)}
        for name, values in points.items()
        for seed, value in enumerate(values)
    ]
    found = summarised(rows)["photographs"]
    assert found["top1_percent"]["ours"]["mean"] == pytest.approx(100 * points["ours"].mean(), abs=0.01)
    assert found["top1_percent"]["ours"]["deviation"] == pytest.approx(100 * points["ours"].std(ddof=1), abs=0.01)
    assert {*found["differences"]} == {
        "ours - torchvision", "ours - timm", "ours - both peers", "timm - torchvision"
    }  # fmt: skip
    one = found["differences"]["ours - torchvision"]
    expected = stats.ttest_ind(100 * points["ours"], 100 * points["torchvision"], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (one["low"], one["high"], one["p"]) == pytest.approx((low, high, expected.pvalue), abs=0.01)
    assert one["real"] is True
    assert difference([1.0, 2.0, 3.0], [1.1, 2.1, 2.9])["real"] is False
    assert "p" not in difference([1.0], [2.0])
    assert "REAL" in text_of({"photographs": found}, {})
