"""Draws charts in this process, or in two others. The first of these loads matplotlib while the rows are read.

It takes a pickled Plotted on standard input, makes a copy of itself that draws every second chart meanwhile, and gives
all charts on standard output.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # they are heavy to import
    from trainer.report.page import Chart
    from trainer.report.plotted import Plotted

    Charts: TypeAlias = tuple[dict[str, Chart], dict[str, Chart]]  # along the steps, and along the machine's time


def draw_here(plotted: Plotted) -> Charts:
    from trainer.report import charts  # heavy to import

    return charts.draw_charts(plotted)


class Drawer:
    """A process that draws once. Its start and the import of matplotlib take most of a second of another core."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", f"from {__name__} import draw_there; draw_there()"]
        environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # a process with threads must not be copied
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Drawer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def draw(self, plotted: Plotted) -> Charts:
        """As `draw_here`. Raises RuntimeError if the process fails; it has said why."""
        drawn, _ = self.process.communicate(pickle.dumps(plotted))
        if self.process.returncode:
            raise RuntimeError(f"the charts were not drawn: that process ended with code {self.process.returncode}")
        charts: Charts = pickle.loads(drawn)
        return charts


def draw_there() -> None:
    """What that process does."""
    gc.disable()  # it ends soon, and what matplotlib leaves is small
    from trainer.report import charts
    from trainer.report.panels import CHARTS

    if not (asked := sys.stdin.buffer.read()):  # there is no such run
        return
    plotted = pickle.loads(asked)
    reading, writing = os.pipe()
    is_copy = os.fork() == 0
    drawn = charts.draw_charts(plotted, CHARTS[is_copy::2])
    if is_copy:
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(drawn, pipe)
        return
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:  # empty if the copy failed, which has said why
        others = pickle.load(pipe)
    every = [{name: one[name] for name in CHARTS if name in one} for one in map(dict.__or__, drawn, others)]
    sys.stdout.buffer.write(pickle.dumps(tuple(every)))
