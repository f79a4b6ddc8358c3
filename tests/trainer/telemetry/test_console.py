"""What a person sees: a live bar on a terminal, plain lines elsewhere; and how a stop reaches the trainer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import PATIENCE, ROOT
from tests.terminal import on_a_terminal
from trainer.contract import Phase
from trainer.process.interruption import Interrupted, Interruption
from trainer.telemetry.status import Status
from trainer.text import show_time_left

CONSOLE = """
import time
from trainer.telemetry.console import Console
console = Console(40, 10, speaks=True)
console.start(5)
for step in range(6, 41):
    console.step(step)
    if step % 10 == 0:
        console.log(step, {"train/loss": 1.25, "train/top1": 0.5, "speed/images_per_second": 1234.0})
    time.sleep(0.02)
console.scores(40, {"val/top1": 0.987, "val/top5": 1.0, "val/loss": 0.1})
console.close()
"""


def test_a_terminal_shows_one_live_bar_with_loss_accuracy_speed_and_eta() -> None:
    code, seen = on_a_terminal([sys.executable, "-c", CONSOLE])
    assert code == 0, seen
    assert "\r" in seen, "the bar redraws itself"
    for words in ("loss 1.250", "top-1 50.0 %", "1,234 images/s", "ETA", "step 40/40", "epoch 4.0"):
        assert words in seen
    assert "epoch 4 validated: top-1 98.70 %" in seen
    frames = re.split(r"[\r\n]", seen)
    assert max(len(frame) for frame in frames) <= 100


def test_off_a_terminal_there_is_a_line_per_log_event_and_no_control_character() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CONSOLE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"step 10/40  epoch 1\.00  loss 1\.250  top-1 50\.0 %  1,234 images/s  ETA \d+:\d\d", lines[0])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", ended.stderr)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert show_time_left(seconds) == text


def test_the_status_file_follows_phase_and_step_and_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = Status(path, writes=True)
    status.enter(Phase.TRAINING)
    assert json.loads(path.read_text()) == {"phase": "training", "step": 0, "progress": 0}
    written = path.stat().st_mtime_ns
    for _ in range(1000):
        status.tick()
    assert path.stat().st_mtime_ns == written
    time.sleep(1.1)
    status.step = 7
    status.tick()
    assert json.loads(path.read_text()) == {"phase": "training", "step": 7, "progress": 1001}


def test_only_the_main_process_writes_a_status(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json", writes=False)
    status.enter(Phase.TRAINING)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Interruption()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_raises_a_flag_and_where_nothing_is_to_be_saved_an_exception(interruption: Interruption) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.requested
    with pytest.raises(Interrupted), interruption.raises():
        pytest.fail("the stop was asked for before")
    interruption.requested = False
    with pytest.raises(Interrupted), interruption.raises():
        signal.raise_signal(signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # outside, it is a flag again


def test_progress_may_be_counted_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.telemetry.status.STATUS_SECONDS", 0.0)
    status = Status(tmp_path / "status.json", writes=True)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(status.tick, 1) for _ in range(2000)]:
            done.result()
    assert json.loads((tmp_path / "status.json").read_text())["progress"] == 2000


def test_an_interruption_passes_through_code_that_handles_errors() -> None:
    """Libraries retry on Exception; a stop is none."""
    assert not issubclass(Interrupted, Exception)
