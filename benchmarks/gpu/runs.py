"""Whole runs by the command that a user gives: supervisor, uploader and trainer, on prepared images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.images import DIGITS, PHOTOGRAPHS, prepared
from benchmarks.gpu.measure import Found, Place
from trainer.checkpoint.line import list_manifests
from trainer.checkpoint.restore import read_manifest, read_object
from trainer.contract import Exit, run_key
from trainer.data.format import read_index
from trainer.manifest import Manifest
from trainer.recipes.named import RECIPES
from trainer.store import NotFoundError, open_store
from trainer.telemetry.metrics import read_metrics

WHOLE, INTERRUPTED = "digits-whole", "digits-interrupted"
LOOK_SECONDS = 0.05
EPOCHS = 8


@dataclass(frozen=True)
class Attempt:
    """One start of a run, and where its images and its store are."""

    run: str
    data: Path
    folder: Path
    arguments: Sequence[str]
    seconds: float  # after so many it is told to stop
    stop_at_step: int = 0  # or at this step; 0: never

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        environ = os.environ | {
            "TRAINER_STORE": str(self.store), "TRAINER_RUN_ID": self.run, "TRAINER_DATA": str(self.data),
            "TRAINER_SCRATCH_DIR": str(self.folder / "scratch"),
        }  # fmt: skip
        command = [sys.executable, "-m", "trainer.process.supervise", *self.arguments]
        with log.open("ab") as said:
            return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def status(self, since: float) -> Found:
        """What the trainer says of itself: the newest of the files that it wrote since it began."""
        for path in self.folder.glob(f"scratch/runs/{self.run}/*/status.json"):
            if path.stat().st_mtime >= since:
                status: Found = json.loads(path.read_text())
                return status
        return {}


def follow(attempt: Attempt) -> Found:
    """Start it, and wait for its end. Returns exit code, seconds, when each phase began, when the SIGTERM came."""
    log = attempt.folder / f"{attempt.run}.log"
    began, wall = time.monotonic(), time.time()
    phases: dict[str, float] = {}
    told: Found = {}
    with attempt.start(log) as process:
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            now, status = time.monotonic() - began, attempt.status(wall)
            if status:
                phases.setdefault(status["phase"], round(now, 2))
            reached = attempt.stop_at_step and status.get("step", 0) >= attempt.stop_at_step
            if (reached or now > attempt.seconds) and not told:
                told = {"sigterm_at_step": status.get("step", 0), "sigterm_at_s": round(now, 2)}
                process.send_signal(signal.SIGTERM)
    seconds = time.monotonic() - began
    found = {"exit": process.returncode, "seconds": round(seconds, 2), "phases_s": phases, **told}
    if told:
        found["seconds_from_sigterm_to_exit"] = round(seconds - told["sigterm_at_s"], 2)
    if process.returncode not in (Exit.FINISHED, Exit.INTERRUPTED):
        lines = log.read_text(errors="replace").splitlines()[-15:]
        raise RuntimeError(f"run {attempt.run} ended with exit code {process.returncode}: {' | '.join(lines)}"[-1500:])
    return found | logged(attempt, wall)


def logged(attempt: Attempt, since: float) -> Found:
    """What the run left in its store: its result, its first step, its speed between two looks."""
    store, found = open_store(str(attempt.store)), dict[str, Any]()
    try:
        result = json.loads(store.get(run_key(attempt.run, "result.json")))
        found["result"] = {
            name: result[name] for name in ("steps", "images_per_second", "seconds", "best") if name in result
        }
    except NotFoundError:
        pass
    rows = [row for row in read_metrics(store, attempt.run) if row["time"] >= since and "event" not in row]
    if steps := [row["time"] for row in rows if "train/loss" in row]:
        found["first_step_logged_s"] = round(min(steps) - since, 2)
    if looks := [row for row in rows if "speed/images_per_second" in row]:
        rates = [row["speed/images_per_second"] for row in looks]
        waits = [row["speed/data_wait_fraction"] for row in looks]
        found |= {
            "looks": len(rates), "images_per_second_median": round(statistics.median(rates)),
            "images_per_second_best": round(max(rates)), "images_per_second_least": round(min(rates)),
            "data_wait_median": round(statistics.median(waits), 3),
        }  # fmt: skip
    return found


def newest_manifest(attempt: Attempt) -> Manifest:
    store = open_store(str(attempt.store))
    return read_manifest(store, attempt.run, list_manifests(store, attempt.run)[1][0])


def newest_step(attempt: Attempt) -> int:
    return int(newest_manifest(attempt)["step"])


def sha256_of(attempt: Attempt) -> str:
    """Of the newest checkpoint's bytes, all tensors included."""
    return hashlib.sha256(read_object(open_store(str(attempt.store)), newest_manifest(attempt))).hexdigest()


def digits(place: Place, run: str, *, stop_at_step: int = 0) -> Attempt:
    epochs = 2 if place.tiny else EPOCHS
    small = ["--model.name", place.network, "--global-batch-size", "256", "--device-batch-size", "256"]
    arguments = ["digits", "--epochs", str(epochs), "--deterministic", "--checkpoint.every-seconds", "3"]
    return _attempt(place, run, DIGITS, [*arguments, *(small if place.tiny else [])], stop_at_step)


def _attempt(place: Place, run: str, data: str, arguments: Sequence[str], stop_at_step: int) -> Attempt:
    folder = place.scratch / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    images = prepared(place.images, data)
    return Attempt(run, images, folder, arguments, place.seconds * 0.8, stop_at_step)


def forget(attempt: Attempt) -> None:
    """Remove what an earlier bench left of this run."""
    for kind in ("runs", "checkpoints"):
        shutil.rmtree(attempt.store / kind / attempt.run, ignore_errors=True)


def whole(place: Place) -> Found:
    """The recipe from its start to its report, with bitwise reproducible kernels."""
    attempt = digits(place, WHOLE)
    forget(attempt)
    return follow(attempt)


def interrupted(place: Place) -> Found:
    """The same, told to stop at about the middle of an epoch and started again: its last checkpoint has the same bits.

    `stopped_at_step` is where it did stop. Raises AssertionError where it had finished before it stopped.
    """
    reference = digits(place, WHOLE)
    if not (reference.store / run_key(WHOLE, "done.json")).exists():
        whole(place)
    per_epoch = 5 if place.tiny else 1438 // RECIPES["digits"]().global_batch_size
    attempt = digits(place, INTERRUPTED, stop_at_step=3 if place.tiny else per_epoch * EPOCHS // 4 + per_epoch // 2)
    forget(attempt)
    before = follow(attempt)
    if before["exit"] != Exit.INTERRUPTED:
        raise AssertionError(f"the run was not interrupted, so nothing was compared: {before}")
    found = {"told_to_stop_at_step": attempt.stop_at_step, "stopped_at_step": newest_step(attempt), "before": before}
    found["after"] = follow(digits(place, INTERRUPTED))
    same = sha256_of(attempt) == (expected := sha256_of(reference))
    if not same:
        raise AssertionError(f"the interrupted run ended with other bits than the whole one: {found}")
    return found | {"same_bits_as_whole": same, "sha256": expected[:16]}


def photographs(place: Place) -> Found:
    """ResNet-50 at 224 px with a save every 5 s, until a SIGTERM ends it: exit code 75."""
    arguments = [
        "finetune", "--model.weights", "", "--val-every-epochs", "100000", "--checkpoint.every-seconds", "5",
        "--regularize.ema-decay", "0.999", "--optim.peak-lr", "0.05",
    ]  # fmt: skip
    images = DIGITS if place.tiny else PHOTOGRAPHS
    classes = len(read_index(prepared(place.images, images)).classes)
    batch = str(8 if place.tiny else place.batch)
    arguments += ["--model.num-classes", str(classes), "--global-batch-size", batch, "--device-batch-size", batch]
    if place.tiny:
        arguments += ["--model.name", place.network, "--device", "cpu", "--precision", "fp32", "--epochs", "2"]
        for option in ("resolution", "start-resolution", "val-crop", "val-resize"):
            arguments += [f"--data.{option}", "32"]
    else:
        arguments += ["--epochs", "100000", "--data.workers", "16"]
    attempt = _attempt(place, "photographs", images, arguments, stop_at_step=2 if place.tiny else 0)
    forget(attempt)
    return follow(attempt)
