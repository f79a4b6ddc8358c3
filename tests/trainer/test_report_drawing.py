"""The process that draws the charts of a report."""

from __future__ import annotations

import signal

import pytest

from tests.trainer.test_report import put_finished_run
from trainer.contract import run_key
from trainer.report import build_report, write_report
from trainer.report.drawing import Drawer
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
