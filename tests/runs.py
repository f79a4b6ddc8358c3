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
from typing import TYPE_CHECKING, Any

import pytest

from tests import PATIENCE, ROOT
from trainer.contract import HEAD_FILE, Lease, checkpoint_key, run_key
from trainer.data.format import Copies
from trainer.data.stage import stage
from trainer.recipes.digits import digits
from trainer.recipes.sides import wanted_spans
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import read_metrics

if TYPE_CHECKING:
    from torch import Tensor

# 5 steps per epoch of 256 images, 4 micro-batches each: the shortest run that does all that a long one does.
NETWORK = "shufflenet_v2_x0_5"  # small; its kernels, too, and those are slower on two threads than on one
QUICK = ("digits", "--model.name", NETWORK, "--epochs", "2", "--global-batch-size", "256", "--device-batch-size", "64")
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
            [sys.executable, "-m", "trainer.process.supervise", *(arguments or QUICK)],
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

    def until(self, ready: Callable[[], Any], timeout: float = PATIENCE) -> None:
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

    def hold(self, phase: str, step: int = 0) -> list[int]:
        """Stop the trainer's processes in a phase, at a step or later: however fast they are, they do not leave it."""

        def the_phase() -> bool:
            status = self.status()
            return bool(status.get("phase") == phase and status["step"] >= step)

        self.until(the_phase)
        for pid in (workers := self.workers()):
            os.kill(pid, signal.SIGSTOP)

        def the_stop() -> bool:
            return all(is_stopped(pid) for pid in workers)

        self.until(the_stop)
        return workers

    def interrupt(self, held: list[int], number: int) -> None:
        """Signal the supervisor, and let the processes that are held go on to find that they are to stop."""
        assert self.process is not None
        self.process.send_signal(number)
        self.release(held)

    def release(self, held: list[int]) -> None:
        """Let processes go on as soon as the supervisor has told them all to stop."""

        def the_signal() -> bool:
            return all(is_pending(pid, signal.SIGTERM) for pid in held)

        self.until(the_signal)
        for pid in held:
            os.kill(pid, signal.SIGCONT)

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

    def workers(self) -> list[int]:
        """The process ids of the trainer processes that have registered."""
        pids = self.local() / "pids"
        return sorted(int(path.name) for path in pids.iterdir()) if pids.is_dir() else []

    def worker(self) -> int:
        """The process id of the only one."""
        (pid,) = self.workers()
        return pid

    def children(self) -> list[int]:
        """The processes that the supervisor started: the uploader, then the trainer."""
        assert self.process is not None
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listing.split()]

    def uploader(self) -> int:
        return next(
            pid for pid in self.children() if "trainer.upload.uploader" in Path(f"/proc/{pid}/cmdline").read_text()
        )

    def kill_everything(self) -> None:
        """As when the machine is gone."""
        assert self.process is not None
        assert self.process.poll() is None, "it has ended already"
        self.process.send_signal(signal.SIGSTOP)
        for pid in [self.process.pid, *self.children()]:
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def json(self, file: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.store.get(run_key(self.run_id, file)))
        return value

    def stored(self) -> set[str]:
        return {info.key for prefix in ("runs/", "checkpoints/") for info in self.store.list(prefix)}

    def lease(self) -> Lease:
        """It names no checkpoint before the first commit."""
        key = checkpoint_key(self.run_id, HEAD_FILE)
        return Lease.from_json(self.store.get(key)) if key in self.stored() else Lease(attempt=0)

    def manifest(self) -> dict[str, Any]:
        """The newest committed manifest."""
        value: dict[str, Any] = json.loads(self.store.get(self.lease().newest))
        return value

    def tensors(self) -> dict[str, Tensor]:
        """The newest committed checkpoint, read by safetensors' own reader."""
        import safetensors.torch  # here, since the process that starts the workers loads this module, too

        return safetensors.torch.load(self.store.get(self.manifest()["object"]["key"]))

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.store, self.run_id)


def is_stopped(pid: int) -> bool:
    """Whether all its threads stand: one that still runs would take the next signal first."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # one has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal waits for a process, as for one that is stopped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.fixture(scope="session")
def digits_folder(shared_folder: Path) -> Path:
    """The digits, prepared: by the first worker that needs them, while the others wait."""
    data = digits().data
    copies = Copies(data.train_sides, (data.val_side,), data.quality)
    return stage("digits", shared_folder, copies, wanted_spans(digits()))


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
            "TRAINER_SCRATCH_DIR": str(tmp_path / "scratch"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        made.append(Run(tmp_path, base | places | environ, open_store(uri), run_id))
        return made[-1]

    yield make
    for run in made:
        if run.process is not None and run.process.poll() is None:
            run.stop(signal.SIGINT)
