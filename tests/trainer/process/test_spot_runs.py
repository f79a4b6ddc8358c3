"""Spot notices: what real runs do about them, at their start, at work and in their last validation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.emulator.imds import NOTICE, Imds
from tests.runs import QUICK, Run
from trainer.contract import Exit, Phase, attempt_key
from trainer.process import spot

pytestmark = pytest.mark.slow

NewRun = Callable[..., Run]
WHEN = "2026-01-01T00:02:00Z"
STOP_SECONDS = 20  # from the notice to the commit, as promised


@pytest.fixture
def spot_run(new_run: NewRun, imds: Imds) -> Run:
    """A run on a machine that the emulator can reclaim."""
    return new_run(AWS_EC2_METADATA_SERVICE_ENDPOINT=imds.endpoint)


def notice_and_wait(run: Run, imds: Imds) -> float:
    """Reclaim the machine, and wait for the end of the run, which must be an interruption; seconds that it took."""
    imds.set_notice(when=WHEN)
    started = time.monotonic()
    assert run.wait() == Exit.INTERRUPTED, run.output
    assert f"spot notice: this machine is reclaimed at {WHEN}" in run.output
    return time.monotonic() - started


def test_a_machine_that_is_reclaimed_already_begins_nothing(spot_run: Run, imds: Imds) -> None:
    imds.set_notice()
    assert spot_run.run() == Exit.INTERRUPTED, spot_run.output
    assert spot_run.stored() == set()


def test_a_notice_while_the_uploader_starts_and_one_while_torch_loads_are_interruptions(
    spot_run: Run, imds: Imds
) -> None:
    """The process is held in that phase until the notice has been read."""

    def the_uploader() -> bool:
        return bool(children(spot_run, "trainer.upload.uploader"))

    def the_worker() -> bool:
        return bool(spot_run.workers())

    def the_notice() -> bool:
        return imds.served(NOTICE)

    for attempt, (begun, module) in enumerate(
        ((the_uploader, "trainer.upload.uploader"), (the_worker, "trainer.train")), 1
    ):
        spot_run.start()
        spot_run.until(begun)
        (held,) = children(spot_run, module)
        os.kill(held, signal.SIGSTOP)
        imds.set_notice()
        spot_run.until(the_notice)
        os.kill(held, signal.SIGCONT)
        notice_and_wait(spot_run, imds)
        assert spot_run.json(f"attempts/{attempt}.json")["exit"] == Exit.INTERRUPTED
        assert not Path(f"/proc/{held}").exists()
        imds.documents.clear()
        imds.answers.clear()


def test_a_recommendation_saves_and_goes_on_and_a_notice_saves_and_ends(spot_run: Run, imds: Imds) -> None:
    strangers = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}  # of the cluster's own launcher
    no_save = ("--epochs", "1000", "--val-every-epochs", "1000", "--checkpoint.every-seconds", "9999")
    spot_run.start(*QUICK, *no_save, **strangers).until_step(1)
    assert children(spot_run, "trainer.train")
    assert not children(spot_run, "torch.distributed"), "one process needs no torchrun"
    imds.set_rebalance()

    def the_checkpoint() -> str:
        return spot_run.lease().newest

    spot_run.until(the_checkpoint)
    saved = spot_run.manifest()["step"]
    spot_run.until_step(saved + 1)
    assert notice_and_wait(spot_run, imds) < STOP_SECONDS
    assert "rebalance recommendation" in spot_run.output
    assert spot_run.manifest()["step"] > saved
    assert spot_run.json("attempts/1.json")["exit"] == Exit.INTERRUPTED


def test_a_notice_that_leaves_time_saves_at_once_trains_on_and_saves_the_very_last_step(
    spot_run: Run, imds: Imds
) -> None:
    no_save = ("--epochs", "1000", "--val-every-epochs", "1000", "--checkpoint.every-seconds", "9999")
    spot_run.start(*QUICK, *no_save).until_step(1)
    reclaimed = datetime.now(UTC) + timedelta(seconds=spot.SECOND_SAVE_SECONDS + 12)
    imds.set_notice(when=reclaimed.isoformat())

    def the_checkpoint() -> str:
        return spot_run.lease().newest

    spot_run.until(the_checkpoint)
    first = spot_run.manifest()["step"]
    assert datetime.now(UTC) < reclaimed - timedelta(seconds=spot.SECOND_SAVE_SECONDS), "saved while it still trains"
    spot_run.until_step(first + 1)
    assert spot_run.wait() == Exit.INTERRUPTED, spot_run.output
    left = (reclaimed - datetime.now(UTC)).total_seconds()
    assert spot.SECOND_SAVE_SECONDS - STOP_SECONDS < left <= spot.SECOND_SAVE_SECONDS
    last = spot_run.manifest()["step"]
    assert last > first
    assert last == max(row["step"] for row in spot_run.metrics() if "train/loss" in row), "no step is lost"
    ended = spot_run.json("attempts/1.json")
    assert ended["exit"] == Exit.INTERRUPTED
    assert ended["reason"] == f"spot notice: this machine is reclaimed at {reclaimed.isoformat()}"
    assert "saving now, going on for" in spot_run.output


def test_a_notice_in_the_last_validation_is_not_the_end_of_the_run(spot_run: Run, imds: Imds) -> None:
    """The trainer is held there until the notice has reached it: a validation may be shorter than a poll."""
    held = spot_run.start(*QUICK, "--epochs", "1", "--val-batch-size", "1").hold(Phase.EVALUATING)
    imds.set_notice(when=WHEN)
    spot_run.release(held)
    assert notice_and_wait(spot_run, imds) < STOP_SECONDS
    assert spot_run.manifest()["step"] == 5
    assert attempt_key("quick", 1) in spot_run.stored()
    assert not any(key.endswith("done.json") for key in spot_run.stored())


def children(run: Run, module: str) -> list[int]:
    """The process ids of the supervisor's children that run a module."""
    assert run.process is not None
    listing = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
    return [int(pid) for pid in listing.split() if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
