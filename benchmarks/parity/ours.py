"""Our side: whole runs by the command that a user gives, each with a store of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.parity.sets import MEAN, STD, Settings
from trainer.contract import Exit, run_key
from trainer.recipes.command_line import command_line
from trainer.recipes.config import Config

RUN = "parity"
# How training images are stored. ImageNet's 256-px copies are 8/7 of a 224-px recipe's resolution.
COPIES = {
    "ours, originals": lambda settings: [settings.original],
    "ours, copies of 8/7": lambda settings: [-(-settings.pixels * 8 // 7)],
    "ours, a copy per crop": lambda settings: [settings.original, -(-settings.pixels * 8 // 7)],
}


def words(name: str, settings: Settings, seed: int = 0) -> list[str]:
    """The recipe and its options, which name every setting."""
    options: dict[str, object] = {
        "seed": seed, "epochs": settings.epochs, "global-batch-size": settings.batch, "device": "cpu",
        "device-batch-size": settings.batch, "val-every-epochs": settings.epochs, "model.name": settings.network,
        "data.resolution": settings.pixels, "data.start-resolution": settings.pixels, "data.workers": 2,
        "data.val-resize": settings.resize, "data.val-crop": settings.pixels, "data.val-side": settings.original,
        "data.crop-scale": settings.crop_scale, "data.crop-ratio": settings.crop_ratio, "data.mean": MEAN,
        "data.flip-probability": settings.flip, "data.std": STD, "data.train-sides": COPIES[name](settings),
        "data.quality": 90, "optim.peak-lr": settings.peak_lr, "optim.momentum": settings.momentum,
        "optim.weight-decay": settings.weight_decay, "optim.div": 25.0, "optim.final-div": 1e4,
        "optim.pct-start": 0.3, "regularize.label-smoothing": settings.smoothing, "regularize.ema-decay": 0.0,
        "checkpoint.every-seconds": 3600,
    }  # fmt: skip
    if settings.mixed:
        options |= {
            "regularize.augment": "trivial", "regularize.mixup-alpha": settings.mixup_alpha,
            "regularize.cutmix-alpha": settings.cutmix_alpha,
        }  # fmt: skip
    found = ["digits"]
    for option, value in options.items():
        found += [f"--{option}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return [*found, *(["--data.copy-per-crop"] if "per crop" in name else [])]


def config_of(name: str, settings: Settings, seed: int = 0) -> Config:
    return command_line("parity", words(name, settings, seed))


def our_run(name: str, settings: Settings, folder: Path, seed: int, scratch: Path) -> float:
    """Top-1 on the validation images after the last epoch, as a share. Prepared images stay in the scratch folder."""
    run_id = f"{RUN}-{re.sub('[^a-z0-9]+', '-', f'{folder.name}-{name}-{settings.epochs}')}-{seed}"
    store = scratch / "stores" / run_id
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    environ = os.environ | {
        "TRAINER_STORE": str(store), "TRAINER_RUN_ID": run_id, "TRAINER_DATA": str(folder),
        "TRAINER_SCRATCH_DIR": str(scratch), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "trainer.process.supervise", *words(name, settings, seed)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != Exit.FINISHED:
        raise SystemExit(f"{name} ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    result = json.loads((store / run_key(run_id, "result.json")).read_text())
    shutil.rmtree(store)
    return float(result["last"]["val/top1"])
