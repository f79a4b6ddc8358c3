"""`make track` in a process that has imported the tracker, and what the tracker then has."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

SETTINGS = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
FOLDERS = {"wandb": "wandb", "mlflow": "mlruns", "trackio": "trackio"}
Values = dict[int, dict[str, float]]  # by step
Found = Iterator[tuple[int, str, float]]


@dataclass(frozen=True)
class Rounds:
    """The process. It is asked in JSON, and each round starts from what the trackers themselves have kept."""

    process: subprocess.Popen[str]
    to: str
    folder: Path

    def ask(self, **asked: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "it has ended"
        return json.loads(answer)

    def track(self, store: str, run_id: str, *options: str, **how: Any) -> dict[str, Any]:
        arguments = ["--store", store, "--run-id", run_id, "--to", self.to, *options]
        answer: dict[str, Any] = self.ask(arguments=arguments, **{"environ": {}} | how)
        return answer

    def held(self, run_id: str) -> Values:
        """What the tracker has of the run. Fails where it has a value twice."""
        found: Values = {}
        for step, name, value in READERS[self.to](self, run_id):
            assert name not in found.setdefault(step, {}), f"{name} of step {step} is there twice"
            found[step][name] = value
        return found


def in_wandb(rounds: Rounds, run_id: str) -> Found:
    paths = sorted(map(str, rounds.folder.glob(f"*run-*/run-{run_id}-*.wandb")))
    for row in rounds.ask(read=paths):
        for name, value in row.items():
            if "/" in name:
                yield int(row["_step"]), name, float(value.strip('"'))


def in_mlflow(rounds: Rounds, run_id: str) -> Found:
    for named in rounds.folder.glob("*/*/tags/mlflow.runName"):
        for path in (named.parents[1] / "metrics").glob("*/*") if named.read_text() == run_id else ():
            for line in path.read_text().splitlines():
                _, value, step = line.split(" ")
                yield int(step), "/".join(path.parts[-2:]), float(value)


def in_trackio(rounds: Rounds, run_id: str) -> Found:
    with closing(sqlite3.connect(next(rounds.folder.glob("*.db")))) as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics WHERE run_name = ?", (run_id,)):
            for name, value in json.loads(metrics).items():
                yield step, name, float(value)


READERS: dict[str, Callable[[Rounds, str], Found]] = {
    "wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio,
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(READERS))
def rounds(
    request: pytest.FixtureRequest, trackers_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rounds]:
    to, here = request.param, tmp_path_factory.mktemp(request.param)
    folder = here / FOLDERS[to]
    foreign = ("WANDB_", "MLFLOW_", "TRACKIO_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environ |= SETTINGS | {"TRACKIO_DIR": str(here / FOLDERS["trackio"]), "HOME": str(here)}
    with subprocess.Popen(
        [trackers_python, "-m", "tests.trainer.trackers.rounds", to], cwd=here, env=environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Rounds(process, to, folder)
