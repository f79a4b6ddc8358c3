"""A laboratory for the training loop: one run in this process, as often as a test likes, among stand-ins."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import NETWORK
from tests.trainer.standins import CLASSES, StandInData, StandInUploader
from trainer import setup
from trainer import train as module
from trainer.checkpoint.line import list_manifests
from trainer.checkpoint.restore import read_manifest, read_object, tensors_of
from trainer.contract import Exit, RunEnv
from trainer.learning.world import World
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir
from trainer.process.interruption import Interruption
from trainer.recipes.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, RegularizeConfig
from trainer.store import open_store
from trainer.telemetry.metrics import read_metrics
from trainer.telemetry.status import Status
from trainer.train import train
from trainer.upload.owner import MachineLock, Ownership, claim_attempt

CONFIG = Config(
    epochs=3, global_batch_size=4, device_batch_size=2, precision="fp32", log_every_steps=1, val_batch_size=4,
    model=ModelConfig(name=NETWORK, num_classes=CLASSES), optim=OptimConfig(peak_lr=1e-4),
    data=DataConfig(resolution=32, start_resolution=32, val_resize=32, val_crop=32, workers=1),
    regularize=RegularizeConfig(ema_decay=0.9), checkpoint=CheckpointConfig(every_seconds=3600),
)  # fmt: skip
STEPS_PER_EPOCH, STEPS = 2, 6
SAVE_EACH_STEP = CheckpointConfig(every_seconds=1e-9)
WORLD = World(0, 0, 1, torch.device("cpu"))


class Lab:
    """One run in one store, started in this process as often as a test likes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch, self.interruption = monkeypatch, Interruption()
        self.begin_in(folder)
        self.phases: list[tuple[str, int]] = []  # and the step at which each was entered
        self.stop_in, self.stop_at = "", 0  # SIGTERM comes when this phase begins, at this step or later
        self.signals: dict[int, int] = {}  # before this step comes this signal
        self.owns = False  # each attempt owns the run, and is in its ledger, as with the real uploader
        enter, step = Status.enter, module.step

        def entered(status: Status, phase: str) -> None:
            self.phases.append((phase, status.step))
            enter(status, phase)
            if phase == self.stop_in and status.step >= self.stop_at:
                self.stop_in = ""
                os.kill(os.getpid(), signal.SIGTERM)

        def stepped(run: setup.Run) -> None:
            if number := self.signals.pop(run.state.step, 0):
                os.kill(os.getpid(), number)
            step(run)

        monkeypatch.setattr(Status, "enter", entered)
        monkeypatch.setattr(module, "step", stepped)
        monkeypatch.setattr(setup, "stage_data", lambda *arguments: StandInData())

    def begin_in(self, folder: Path) -> None:
        """A new run, in an empty store."""
        (folder / "store").mkdir(parents=True)
        self.store, self.attempt = open_store(str(folder / "store")), 0
        self.environ = {
            "TRAINER_STORE": str(folder / "store"), "TRAINER_RUN_ID": "loop",
            "TRAINER_SCRATCH_DIR": str(folder / "scratch"),
        }  # fmt: skip

    def train(self, config: Config = CONFIG, answers: str = "committed", deadline: str = "") -> tuple[Exit, str]:
        """One attempt."""
        self.attempt = claim_attempt(self.store, "loop") if self.owns else self.attempt + 1
        self.interruption.requested = False
        self.phases.clear()
        self.uploader = StandInUploader(self.store, "loop", self.attempt, answers, self.own()).start()
        self.monkeypatch.setenv(SOCKET_VARIABLE, self.uploader.path)
        more = {"TRAINER_ATTEMPT": str(self.attempt), "TRAINER_DEADLINE": deadline}
        env = RunEnv.from_environ(self.environ | more)
        attempt_dir(env).mkdir(parents=True)
        try:
            return train(config, env, WORLD, self.interruption)
        finally:
            self.uploader.stop()
            if self.uploader.ownership is not None:
                self.uploader.ownership.release()

    def own(self) -> Ownership | None:
        """The run for this attempt, if the attempts of this lab own it."""
        if not self.owns:
            return None
        ownership = Ownership(self.store, "loop", self.attempt, 60, MachineLock(Path(self.store.uri) / "../lock"))
        ownership.claim(print, lambda before: None)
        ownership.sweep()
        return ownership

    def entered(self) -> list[str]:
        return [phase for phase, _ in self.phases]

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(self.store, "loop") if "event" not in row]

    def counters(self) -> dict[str, Any]:
        """Of the newest checkpoint."""
        manifest = read_manifest(self.store, "loop", list_manifests(self.store, "loop")[1][0])
        counters: dict[str, Any] = manifest["counters"]
        return counters

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the newest checkpoint."""
        key = list_manifests(self.store, "loop")[1][0]
        return tensors_of(read_object(self.store, read_manifest(self.store, "loop", key)))
