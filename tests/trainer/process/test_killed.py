"""How a trainer ended that left no word: by its last phase, and by whether a signal had come."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.contract import CRASH, Exit
from trainer.process import supervise
from trainer.process.channel import write_json
from trainer.process.children import TrainerProcess


@pytest.mark.parametrize(
    ("phase", "code"), [("starting", Exit.INTERRUPTED), ("staging", Exit.INTERRUPTED), ("training", CRASH)]
)
def test_a_trainer_that_is_killed_while_it_waits_for_others_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, code: int
) -> None:
    """A signal reaches no process that waits in a collective, and after a while it is killed. Nothing is lost then."""
    signals: Any = SimpleNamespace(received=[], trainer=None, seconds_since=lambda: 0.0)

    class Waiting(TrainerProcess):
        def __init__(self, arguments: Sequence[str], environ: dict[str, str], local: Path):
            write_json(local / "status.json", {"phase": phase, "step": 0})
            self.process = subprocess.Popen(["sleep", "60"], start_new_session=True)

        def wait(self, since_signal: Callable[[], float]) -> None:
            signals.received.append(signal.SIGTERM)
            self.process.kill()
            self.process.wait()

    monkeypatch.setattr(supervise, "TrainerProcess", Waiting)
    assert supervise.run_trainer([], {}, tmp_path / "attempt", signals)["code"] == code
