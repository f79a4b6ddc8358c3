"""Troubles of the machine: a scratch disk that fills up, an uploader that dies, clocks that differ by hours."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.lab import Case, Lab, expect, step_of, wait_for
from tests.chaos.races import STEPS, judge_end
from tests.chaos.runs import RealRun, reference
from tests.chaos.runs import judge_end as judge_real_end
from trainer.contract import Exit

SCRATCH_MEGABYTES = 24
# In a mount namespace of its own: a small disk at the scratch folder.
SMALL_DISK = 'mount -t tmpfs -o size="$MEGABYTES"m scratch "$TRAINER_SCRATCH_DIR" && exec "$@"'
SHIFTED_CLOCK = """
import os, time
real, shift = time.time, float(os.environ["CHAOS_CLOCK"])
time.time = lambda: real() + shift
"""


def full_disk(lab: Lab, seed: int) -> Case:
    """The disk fills up in the middle of training, or is full from the start; then there is room again."""
    reference(lab)
    run = RealRun.make(lab, s3=False)
    Path(run.environ["TRAINER_SCRATCH_DIR"]).mkdir(exist_ok=True)
    run.command = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", sys.executable, "-m", "trainer.process.supervise")
    run.start(environ={"MEGABYTES": str(SCRATCH_MEGABYTES)})
    assert run.process is not None
    process, dice = run.process, random.Random(seed)
    inside = Path(f"/proc/{process.pid}/root{run.environ['TRAINER_SCRATCH_DIR']}")
    try:
        wait_for(lambda: list((inside / "runs").glob("*/*/status.json")) or process.poll() is not None, 90, "a start")
        time.sleep(dice.uniform(0, 6))
        ended = process.poll() is not None
        if not ended:
            with (inside / "full").open("wb") as file:
                try:
                    while True:
                        os.write(file.fileno(), bytes(1 << 16))
                except OSError:
                    pass
        code = run.wait(180)
    finally:
        if process.poll() is None:
            run.kill()
    said = run.output()
    expect(code in (0, 1, *Exit), f"a full disk: exit code {code}: {said[-500:]}")
    expect(code == 0 or "error: " in said, f"a full disk: ended {code} without a reason: {said[-500:]}")
    if code:
        kept = int(run.newest().get("step", 0))
        run.start()  # on the machine's own disk
        again = run.wait()
        expect(again == 0, f"after a full disk, the next start ended {again}: {run.output()[-500:]}")
        expect(f"from step {kept} of" in run.output() or not kept, f"lost: step {kept} was kept: {run.output()[:500]}")
    judge_real_end(run, lab)
    return Case(injected=int(not ended), notes={"full_disk_ended": float(code != 0)})


def dead_uploader(lab: Lab, seed: int) -> Case:
    """The uploader of a real run is killed: a crash with a reason, and the next start continues."""
    reference(lab)
    run = RealRun.make(lab, s3=seed % 2 == 1)
    run.start()
    assert run.process is not None
    process, dice = run.process, random.Random(seed)
    try:
        wait_for(
            lambda: run.status().get("step", 0) >= dice.randrange(1, 40) or process.poll() is not None, 90, "steps"
        )
        for pid in run.tree():
            if b"trainer.upload.uploader" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        code = run.wait(100)
    finally:
        if process.poll() is None:
            run.kill()
    said = run.output()
    expect(code not in list(Exit), f"the uploader died, and the run ended {code}: {said[-500:]}")
    expect("uploader" in said.lower() and "error: " in said, f"the uploader died without a word of it: {said[-500:]}")
    kept = int(run.newest().get("step", 0))
    run.start()
    again = run.wait()
    expect(again == 0, f"after a dead uploader, the next start ended {again}: {run.output()[-500:]}")
    expect(f"from step {kept} of" in run.output() or not kept, f"lost: step {kept} was kept: {run.output()[:500]}")
    judge_real_end(run, lab)
    return Case()


def clocks(lab: Lab, seed: int) -> Case:
    """An owner whose clock is hours ahead or behind is no more and no less alive than any other."""
    lab.new_try(s3=True)
    folder = lab.place / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    hours = random.Random(seed).choice([-30, -2, 2, 30])

    def shifted(by: float) -> dict[str, str]:
        return {"PYTHONPATH": str(folder), "CHAOS_CLOCK": str(by * 3600)}

    owner = lab.start("scratch-1", environ=shifted(hours), last_step=STEPS)
    wait_for(lambda: owner.acknowledged() >= 2, 20, "the owner commits")
    if kill := seed % 2:
        owner.signal(signal.SIGKILL)
        owner.wait()
    second = lab.start("scratch-2", environ=shifted(-hours), last_step=STEPS)
    racers = [second] if kill else [owner, second]
    judge_end(lab, racers, [racer.wait(60) for racer in racers], {0})
    expect(step_of(lab.lease()["newest"]) == STEPS, "the run is not at its end")
    return Case()


TROUBLES: list[Callable[[Lab, int], Case]] = [full_disk, dead_uploader, clocks]


def trouble(lab: Lab, seed: int) -> Case:
    return TROUBLES[seed % len(TROUBLES)](lab, seed // len(TROUBLES))
