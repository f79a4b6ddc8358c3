"""Real runs, the supervisor and all that it starts, killed or told to stop at random, with the end compared."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests import ROOT
from tests.chaos.lab import Case, Lab, WrongError, expect, wait_for
from trainer.checkpoint.line import list_manifests
from trainer.checkpoint.restore import read_manifest
from trainer.contract import Exit
from trainer.data.format import Copies
from trainer.data.stage import stage
from trainer.recipes.digits import digits
from trainer.recipes.sides import wanted_spans
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import read_metrics

INTERVAL = 1.0  # seconds between saves
OPTIONS = (
    "digits", "--epochs", "2", "--global-batch-size", "32", "--device-batch-size", "16", "--deterministic",
    "--model.name", "shufflenet_v2_x0_5", "--log-every-steps", "4", "--checkpoint.every-seconds", str(INTERVAL),
)  # fmt: skip
RUN = "real"
KILLS = 10  # in a chain
NOT_LEARNED = ("time", "speed/", "checkpoint/", "gpu/")  # what two equal trainings do not share


def digits_data(lab: Lab) -> Path:
    """The digits, prepared once per laboratory."""
    data = digits().data
    copies = Copies(data.train_sides, (data.val_side,), data.quality)
    splits = wanted_spans(digits())
    return stage("digits", lab.folder / "digits", copies, splits)


@dataclass
class RealRun:
    """One run id in one store; every start is another process tree."""

    lab: Lab
    store: ObjectStore
    environ: dict[str, str]
    command: tuple[str, ...] = (sys.executable, "-m", "trainer.process.supervise")
    process: subprocess.Popen[bytes] | None = None
    outputs: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls, lab: Lab, *, s3: bool) -> RealRun:
        data = digits_data(lab)
        lab.new_try(s3=s3)
        environ = lab.base | lab.environ | {
            "TRAINER_RUN_ID": RUN, "TRAINER_DATA": str(data), "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        environ.pop("OMP_NUM_THREADS")
        return cls(lab, open_store(lab.uri), environ)

    def start(self, *more: str, environ: Mapping[str, str] = {}) -> None:
        self.start_in(ROOT, self.command, *more, environ=environ)

    def start_in(self, tree: Path, command: Sequence[str], *more: str, environ: Mapping[str, str] = {}) -> None:
        """Start it with the code of a checkout."""
        self.outputs.append(self.lab.place / f"output-{len(self.outputs)}.txt")
        with self.outputs[-1].open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *OPTIONS, *more], env=self.environ | dict(environ), cwd=tree, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = 180) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise WrongError(f"a run does not end in {seconds:.0f} s: {self.output()[-500:]}") from error

    def output(self) -> str:
        return self.outputs[-1].read_text(errors="replace")

    def tree(self) -> list[int]:
        """The supervisor and all below it."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                found += [int(child) for child in children]
        return found

    def kill(self) -> None:
        """SIGKILL to all of them, as the end of a machine does it."""
        assert self.process is not None
        pids = self.tree()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # none starts another meanwhile
        for pid in dict.fromkeys(pids + self.tree()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def until(self, seconds: float, *, in_training: bool) -> list[tuple[float, float]]:
        """Wait so long, from the start or from the first step; the moments spent in training, and how long they were.

        Validation is not among them: what a kill there loses is done again in seconds.
        """
        started, trained, last = time.time(), list[tuple[float, float]](), time.time()
        assert self.process is not None
        while self.process.poll() is None and time.time() < started + 90:
            now = time.time()
            if self.status().get("phase") == "training":
                trained.append((now, now - last if trained else 0.0))
            last = now
            if now > (trained[0][0] if trained and in_training else started) + seconds and (trained or not in_training):
                break
            time.sleep(0.02)
        return trained

    def local(self) -> Path:
        """This machine's folder of the latest attempt."""
        runs = Path(self.environ["TRAINER_SCRATCH_DIR"]) / "runs" / RUN
        return runs / max((path.name for path in runs.glob("[0-9]*")), key=int, default="1")

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.local() / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def newest(self) -> dict[str, Any]:
        """The manifest that the next start will restore; {} where there is none."""
        keys = list_manifests(self.store, RUN)[1]
        return dict(read_manifest(self.store, RUN, keys[0])) if keys else {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load(self.store.get(self.newest()["object"]["key"]))

    def metrics(self) -> dict[int, dict[str, Any]]:
        """What was learned, by step; WrongError where a step says something twice."""
        steps: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.store, RUN):
            values = {name: value for name, value in row.items() if not name.startswith(NOT_LEARNED)}
            known = steps.setdefault(values.pop("step"), {}) if "event" not in row else {}
            twice = known.keys() & values.keys()
            expect(not twice, f"step {row['step']} stands twice in the metrics: {sorted(twice)}")
            known.update(values)
        return steps


_references: dict[str, tuple[dict[str, torch.Tensor], dict[int, dict[str, Any]]]] = {}


def reference(lab: Lab) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, Any]]]:
    """The end and the metrics of the run that nobody disturbed; made once per laboratory."""
    if (known := _references.get(str(lab.folder))) is None:
        run = RealRun.make(lab, s3=False)
        run.start()
        code = run.wait()
        expect(code == 0, f"the undisturbed run ended {code}: {run.output()[-800:]}")
        known = _references[str(lab.folder)] = run.tensors(), run.metrics()
    return known


def judge_end(run: RealRun, lab: Lab) -> None:
    """Bitwise the same tensors, and every step once with the same values."""
    tensors, metrics = reference(lab)
    found = run.tensors()
    odd = [name for name in tensors if name not in found or not torch.equal(tensors[name], found[name])]
    expect(not odd and tensors.keys() == found.keys(), f"{len(odd)} of {len(tensors)} tensors differ: {odd[:3]}")
    ours = run.metrics()
    missing, more = sorted(metrics.keys() - ours.keys()), sorted(ours.keys() - metrics.keys())
    expect(not missing and not more, f"metrics: steps {missing} are missing, steps {more} are too many")
    different = [step for step in metrics if metrics[step] != ours[step]]
    expect(not different, f"metrics differ at steps {different[:5]}: " + str([
        (metrics[s], ours[s]) for s in different[:1]]))  # fmt: skip


def kill_run(lab: Lab, seed: int) -> Case:
    """A chain: start with another number of workers, kill at a random time, again; then run to the end."""
    reference(lab)
    dice, run = random.Random(seed), RealRun.make(lab, s3=seed % 2 == 1)
    lost_seconds, killed, kept = [0.0], 0, 0
    try:
        for kill in range(KILLS):
            run.start("--data.workers", str(1 + (seed + kill) % 4))
            # Half of the kills while it starts, the others while it trains.
            trained = run.until(dice.uniform(0, 4), in_training=kill % 2 == 1)
            if run.process is not None and run.process.poll() is not None:
                break  # it was done before
            run.kill()
            killed += 1
            newest = run.newest()
            step = int(newest.get("step", 0))
            expect(step >= kept, f"lost: after kill {killed} step {step} is the newest, before it was {kept}")
            kept = step
            lost_seconds.append(sum(seconds for at, seconds in trained if at > newest.get("time", 0.0)))
        if run.process is not None and run.process.poll() is None:
            run.kill()
        run.start("--data.workers", str(1 + seed % 3))
        code = run.wait()
        expect(code == 0, f"after {killed} kills the run ended {code}: {run.output()[-800:]}")
        judge_end(run, lab)
        lags = [
            row["checkpoint/lag_seconds"] for row in read_metrics(run.store, RUN) if "checkpoint/lag_seconds" in row
        ]
        most = max(lost_seconds)
        expect(most <= INTERVAL + max(lags) + 2, f"{most:.1f} s of training were lost, the greatest lag is {max(lags)}")
    finally:
        if run.process is not None and run.process.poll() is None:
            run.kill()
    return Case(injected=killed, notes={"lost_seconds": most, "lag_seconds": max(lags)})


PHASES: dict[str, Callable[[RealRun, random.Random], bool]] = {
    "start-up": lambda run, dice: dice.random() < 0.01,  # at some of the looks, 10 ms apart
    "staging": lambda run, dice: run.status().get("phase") in ("staging", "starting"),
    "warm-up": lambda run, dice: run.status().get("phase") == "training",
    "training": lambda run, dice: run.status().get("step", 0) >= dice.randrange(1, 60),
    "evaluation": lambda run, dice: run.status().get("phase") == "evaluating",
    "saving": lambda run, dice: any(run.store.list(f"checkpoints/{RUN}/data/")),
}


def sigterm(lab: Lab, seed: int) -> Case:
    """One signal, to the supervisor alone, in the phase that the seed says."""
    dice, run = random.Random(seed), RealRun.make(lab, s3=seed % 2 == 1)
    name = list(PHASES)[seed % len(PHASES)]
    more = ("--val-batch-size", "2") if name == "evaluation" else ()
    run.start(*more)
    assert run.process is not None
    process = run.process
    try:
        wait_for(lambda: PHASES[name](run, dice) or process.poll() is not None, 90, f"the phase {name}")
        at = time.time()
        process.send_signal(signal.SIGTERM)
        code = run.wait(100)
        seconds = time.time() - at
        if code == 0 and "signal" not in run.output() and "stopping" not in run.output():
            return Case(injected=0)  # it was over before
        if code == -signal.SIGTERM and not run.output() and not any(run.store.list(f"runs/{RUN}/")):
            return Case(injected=0)  # before Python had read its first line
        newest, done = run.newest(), int(run.status().get("step", 0))
        expect(code == Exit.INTERRUPTED, f"SIGTERM in {name}: exit code {code}: {run.output()[-500:]}")
        step = int(newest.get("step", 0))
        expect(step >= done, f"lost: SIGTERM in {name}: {done} steps were done, step {step} is saved")
        steps = run.metrics()
        expect(max(steps, default=0) <= step, f"SIGTERM in {name}: metrics up to {max(steps, default=0)}, saved {step}")
    finally:
        if process.poll() is None:
            run.kill()
    notes = {"exit_seconds": seconds}
    if newest:
        notes |= {"commit_seconds": max(0.0, committed_at(run) - at), "megabytes": newest["object"]["bytes"] / 1e6}
    return Case(notes=notes)


def committed_at(run: RealRun) -> float:
    """When the newest manifest came to be, by the store's clock, which is this machine's."""
    key = list_manifests(run.store, RUN)[1][0]
    if not run.lab.uri.startswith("s3://"):
        return Path(run.store.describe(key)).stat().st_mtime
    bucket, _, name = run.store.describe(key).removeprefix("s3://").partition("/")
    return float(run.lab.client().head_object(Bucket=bucket, Key=name)["LastModified"].timestamp())
