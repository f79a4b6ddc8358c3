"""The process that draws the charts of a report."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer.test_report import put_finished_run
from trainer.contract import run_key
from trainer.report import build_report, write_report
from trainer.report.drawing import Drawer
from trainer.report.plotted import plotted_of
from trainer.store import ObjectStore


def test_charts_that_another_process_draws_are_the_same_and_without_that_process_there_is_no_report(
    store: ObjectStore,
) -> None:
    put_finished_run(store)
    with Drawer() as drawer:
        assert build_report(store, "digits", draw=drawer.draw).files == build_report(store, "digits").files
    with Drawer() as drawer:
        drawer.process.kill()
        with pytest.raises(RuntimeError, match="the charts were not drawn: that process ended with code -9"):
            write_report(store, "digits", draw=drawer.draw)
    assert not [info.key for info in store.list(run_key("digits", "report/"))]
    with Drawer() as drawer:  # there was nothing to draw
        pass
    assert drawer.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("metric", ["train/loss", "val/top1"])
def test_without_the_charts_of_one_of_the_two_processes_there_are_none(metric: str) -> None:
    """Each process draws one of the first two charts, of the loss and of the accuracy."""
    rows = [{"step": step, "time": float(step), "train/loss": 1.0, "val/top1": 0.5} for step in range(3)]
    plotted = plotted_of(rows, [], {}, None)
    damaged: Any = dict(plotted.of_steps) | {metric: "no curve"}
    with Drawer() as drawer, pytest.raises(RuntimeError, match="that process ended with code 1"):
        drawer.draw(replace(plotted, of_steps=damaged))
