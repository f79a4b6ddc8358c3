"""MLflow: rows go to MLFLOW_TRACKING_URI, a server or a folder; without it, into the folder `mlruns` here.

The run there is found by a tag. A batch that was cut is completed: each metric knows its own newest step, and only
later steps of it are sent. The package without a server (mlflow-skinny) has no SQL, so a database needs a server.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from trainer.contract import UserError
from trainer.telemetry.metrics import Row
from trainer.text import say
from trainer.trackers.committed import FAILED, FINISHED, flat
from trainer.trackers.tracker import PROJECT, Position, TrackedRun, TrackerError, numbers, without_secrets

RUN_TAG = "resnet-spot.run"
METRICS_OF_A_BATCH, OPTIONS_OF_A_BATCH, LETTERS_OF_AN_OPTION = 1000, 100, 6000  # MLflow takes no more


def tracking_address() -> str:
    """MLFLOW_TRACKING_URI, or the folder that MLflow took before it preferred a database. Raises UserError."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme = urlsplit(given).scheme
    if scheme in ("http", "https", "databricks") or given == "databricks":
        return given
    if scheme not in ("", "file"):
        raise UserError(
            f"MLFLOW_TRACKING_URI={without_secrets(given)} is a database, for which this package of MLflow has no "
            f"driver: start `mlflow server --backend-store-uri …` and name its http:// address, or name a folder"
        )
    return Path(unquote(urlsplit(given).path) or "mlruns").absolute().as_uri()


class ExperimentRun:
    """The run in an experiment: that of MLFLOW_EXPERIMENT_NAME, else resnet-spot."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before it is imported
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 refuses a folder
        from mlflow import MlflowClient

        address = tracking_address()
        self.name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self.where = f"MLflow's experiment {self.name} at {without_secrets(address)}"
        self.folder = Path(unquote(urlsplit(address).path)) if urlsplit(address).scheme == "file" else None
        if self.folder:
            clear_cut_files(self.folder)
        self.client = MlflowClient(address)
        self.newest: dict[str, int] = {}  # by metric
        with mlflow_errors():
            self.id = self.find(run) or self.create(run)
            self.client.update_run(self.id, status="RUNNING")
            self.put_config(run)

    def find(self, run: TrackedRun) -> str:
        """The id of the run there; "" if there is none."""
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            return ""
        found = self.client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run.key}'")
        return str(found[0].info.run_id) if found else ""

    def create(self, run: TrackedRun) -> str:
        experiment = self.client.get_experiment_by_name(self.name)
        at = experiment.experiment_id if experiment else self.client.create_experiment(self.name)
        made = self.client.create_run(
            at, start_time=int(run.began * 1000), tags={RUN_TAG: run.key}, run_name=run.run_id
        )
        return str(made.info.run_id)

    def put_config(self, run: TrackedRun) -> None:
        """The options as parameters, which MLflow takes once. Those that have changed since stay as they were."""
        from mlflow.entities import Param

        known = self.client.get_run(self.id).data.params
        options = [Param(name, value[:LETTERS_OF_AN_OPTION]) for name, value in flat(run.config) if name not in known]
        for first in range(0, len(options), OPTIONS_OF_A_BATCH):
            self.client.log_batch(self.id, params=options[first : first + OPTIONS_OF_A_BATCH])

    @staticmethod
    def target() -> str:
        return f"{tracking_address()} {os.environ.get('MLFLOW_EXPERIMENT_NAME') or PROJECT}"

    def position(self) -> Position | None:
        """The last step before the newest, of which the last batch may have brought a part."""
        times: dict[int, float] = {}
        with mlflow_errors():
            for name in self.client.get_run(self.id).data.metrics:
                for metric in self.client.get_metric_history(self.id, name):
                    times[metric.step] = metric.timestamp / 1000
                    self.newest[name] = max(self.newest.get(name, 0), metric.step)
        whole = sorted(times)[-2:-1]
        return Position(whole[0], times[whole[0]]) if whole else None

    def feed(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        batch: list[Any] = []
        for row in rows:
            time = int(row["time"] * 1000)
            batch += [
                Metric(name, float(value), time, row["step"])
                for name, value in numbers(row).items()
                if row["step"] > self.newest.get(name, -1)
            ]
        with mlflow_errors():
            for first in range(0, len(batch), METRICS_OF_A_BATCH):
                some = batch[first : first + METRICS_OF_A_BATCH]
                self.client.log_batch(self.id, metrics=some)
                self.newest |= {metric.key: metric.step for metric in some}

    def close(self, ended: str) -> None:
        status = {FINISHED: "FINISHED", FAILED: "FAILED"}.get(ended)
        if status:
            with mlflow_errors():
                self.client.set_terminated(self.id, status)
        if self.folder:
            say(f"`MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {self.folder}` shows them")


def clear_cut_files(folder: Path) -> None:
    """Remove the experiments, runs and metrics that a killed command has begun and left empty: MLflow fails on them."""
    remove_empty(folder.glob("*/*/metrics/**/*"))
    begun = [path for path in folder.glob("*") if path.name.isdecimal()]
    begun += [path for path in folder.glob("*/*") if re.fullmatch(r"[0-9a-f]{32}", path.name)]
    for path in begun:
        remove_empty([path / "meta.yaml"])
        if not (path / "meta.yaml").exists():
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()


def remove_empty(files: Iterable[Path]) -> None:
    for path in files:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()


@contextlib.contextmanager
def mlflow_errors() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackerError(f"MLflow: {without_secrets(str(error))}") from error
