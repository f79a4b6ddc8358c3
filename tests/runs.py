"""Real runs for the tests: the supervisor as a process of its own, on data that is prepared once per session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from trainer.contract import checkpoint_key, run_key
from trainer.data.shards import Copies
from trainer.data.stage import stage
from trainer.metrics import read_metrics
from trainer.recipes import digits
from trainer.store import ObjectStore, open_store

ROOT = Path(__file__).parent.parent
# 5 steps per epoch of 256 images, 4 micro-batches each: the shortest run that does all that a long one does.
QUICK = ("digits", "--epochs", "2", "--global-batch-size", "256", "--device-batch-size", "64")
QUICK_STEPS = 10


@dataclass
class Run:
    """One run id in one store, started as often as a test likes."""

    folder: Path
    environ: dict[str, str]
    store: ObjectStore
    run_id: str = "quick"
    output: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self, *arguments: str, **environ: str) -> Run:
        environ = self.environ | environ
        if "AWS_EC2_METADATA_SERVICE_ENDPOINT" not in environ:  # on EC2, the machine's own has no say in a test
            environ["AWS_EC2_METADATA_DISABLED"] = "true"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.supervise", *(arguments or QUICK)],
            env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return self

    def wait(self, timeout: float = 120) -> int:
        """The exit code; what was printed is in `output` afterwards."""
        assert self.process is not None
        try:
            self.output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the run does not end: {self.process.communicate()[0]}")
        return self.process.returncode

    def run(self, *arguments: str, **environ: str) -> int:
        return self.start(*arguments, **environ).wait()

    def until(self, ready: Callable[[], Any], timeout: float = 90) -> None:
        """Wait while the run goes on."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the run ended, or time ran out, before {ready.__name__}: {self.kill()}")
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        def the_step() -> bool:
            return int(self.status().get("step", 0)) >= step

        self.until(the_step)

    def kill(self) -> str:
        assert self.process is not None
        self.process.kill()
        return self.process.communicate()[0]

    def stop(self, number: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def local(self) -> Path:
        """This machine's folder of the latest attempt."""
        runs = Path(self.environ["TRAINER_SCRATCH_DIR"]) / "runs" / self.run_id
        return runs / max((path.name for path in runs.glob("[0-9]*")), key=int, default="1")

    def status(self) -> dict[str, Any]:
        path = self.local() / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def worker(self) -> int:
        """The process id of the (first) trainer process."""
        return int(min(path.name for path in (self.local() / "pids").iterdir()))

    def children(self) -> list[int]:
        """The processes that the supervisor started: the uploader, then the trainer."""
        assert self.process is not None
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listing.split()]

    def uploader(self) -> int:
        return next(pid for pid in self.children() if "trainer.uploader" in Path(f"/proc/{pid}/cmdline").read_text())

    def kill_everything(self) -> None:
        """As when the machine is gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        for pid in [self.process.pid, *self.children()]:
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def json(self, file: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.store.get(run_key(self.run_id, file)))
        return value

    def stored(self) -> set[str]:
        return {info.key for prefix in ("runs/", "checkpoints/") for info in self.store.list(prefix)}

    def manifest(self) -> dict[str, Any]:
        """The newest committed manifest."""
        head = json.loads(self.store.get(checkpoint_key(self.run_id, "HEAD.json")))
        value: dict[str, Any] = json.loads(self.store.get(head["newest"]))
        return value

    def tensors(self) -> dict[str, Tensor]:
        """The newest committed checkpoint, read by safetensors' own reader."""
        return safetensors.torch.load(self.store.get(self.manifest()["object"]["key"]))

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.store, self.run_id)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared."""
    data = digits().data
    copies = Copies(data.train_sides, (data.val_side,), data.quality)
    return stage(
        "digits", tmp_path_factory.mktemp("data"), copies, {"train": digits().resolutions(), "val": frozenset({32})}
    )


@pytest.fixture
def new_run(tmp_path: Path, digits_folder: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs in a fresh directory store, or in the store of a URI; what still runs at the end is killed."""
    made: list[Run] = []

    def make(store: str = "", run_id: str = "quick", **environ: str) -> Run:
        uri = store or str(tmp_path / "store")
        (tmp_path / "store").mkdir(exist_ok=True)
        base = {name: value for name, value in os.environ.items() if not name.startswith("TRAINER_")}
        places = {
            "TRAINER_STORE": uri, "TRAINER_RUN_ID": run_id, "TRAINER_DATA": str(digits_folder),
            "TRAINER_SCRATCH_DIR": str(tmp_path / "scratch"),
        }  # fmt: skip
        made.append(Run(tmp_path, base | places | environ, open_store(uri), run_id))
        return made[-1]

    yield make
    for run in made:
        if run.process is not None and run.process.poll() is None:
            run.stop(signal.SIGINT)
