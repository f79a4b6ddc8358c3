"""Does a run that an older commit began continue with this code, to the same bits?

    make upgrade-check FROM=COMMIT       begin with COMMIT, stop half-way, continue with the present tree

The weights and the metrics are compared with those of two undisturbed runs, one of COMMIT and one of the present tree.
This is done in a directory and in S3. The data is prepared by COMMIT. Exit code 0: nothing differs; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests import ROOT
from tests.chaos.lab import Lab, WrongError, expect, standalone, wait_for
from tests.chaos.runs import RUN, RealRun
from trainer.contract import Exit
from trainer.store import open_store

HALF_WAY = 40  # of 88 steps
RUN_SECONDS = 900  # what one run gets, on a machine that does much else
STOPS = {"SIGTERM": Exit.INTERRUPTED, "SIGKILL": -signal.SIGKILL}  # how the older run is stopped, and its exit code


@dataclass
class End:
    """What a run left behind: its last checkpoint, and what each step logged."""

    tensors: dict[str, torch.Tensor]
    metrics: dict[int, dict[str, Any]]
    how: str
    seconds: float


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        clone = ["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), folder]
        for command in (clone, ["git", "-C", folder, "checkout", "--quiet", "--detach", commit]):
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(f"error: no commit {commit!r} in this clone: name another, or git fetch --unshallow")
        yield Path(folder)


def entry(tree: Path) -> tuple[str, ...]:
    """The supervisor's command; before the folder `process` there was a module of the package itself."""
    module = "trainer.process.supervise" if (tree / "trainer/process").is_dir() else "trainer.supervise"
    return sys.executable, "-m", module


def new_run(lab: Lab, old: Path, *, s3: bool) -> RealRun:
    """A run in a fresh store. In a directory, its own start prepares the data; in S3, `prepare` of the old commit."""
    lab.new_try(s3=s3)
    environ = (
        lab.base | lab.environ | {"TRAINER_RUN_ID": RUN, "TRAINER_DATA": "digits", "AWS_EC2_METADATA_DISABLED": "true"}
    )
    if s3:
        sides = ["--train-sides", "32", "--val-sides", "32", "--quality", "95"]
        command = [sys.executable, "-m", "trainer.prepare", "--data", "digits", "--store", lab.uri, *sides]
        subprocess.run(command, cwd=old, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        environ["TRAINER_DATA"] = f"{lab.uri}/{prepared(lab.uri)[0]}"
    return RealRun(lab, open_store(lab.uri), environ)


def prepared(uri: str) -> list[str]:
    """The prepared forms in a store."""
    keys = [info.key for info in open_store(uri).list("datasets/")]
    return sorted(key.removesuffix("/index.json") for key in keys if key.endswith("/index.json"))


def finish(run: RealRun, tree: Path, how: str, since: float) -> End:
    """Run to the end with the code of a tree."""
    run.start_in(tree, entry(tree))
    code = run.wait(RUN_SECONDS)
    expect(code == Exit.FINISHED, f"{how}: the run ended {code}: {run.output()[-800:]}")
    return End(run.tensors(), run.metrics(), how, time.monotonic() - since)


def undisturbed(lab: Lab, old: Path, tree: Path, how: str) -> End:
    return finish(new_run(lab, old, s3=False), tree, how, time.monotonic())


def upgraded(lab: Lab, old: Path, *, s3: bool, stop: str) -> End:
    """Begun by the old commit and stopped half-way, continued by the present tree."""
    run, since = new_run(lab, old, s3=s3), time.monotonic()
    run.start_in(old, entry(old))
    assert run.process is not None
    try:
        wait_for(lambda: run.status().get("step", 0) >= HALF_WAY and run.newest(), RUN_SECONDS, f"step {HALF_WAY}")
        if stop == "SIGTERM":
            run.process.send_signal(signal.SIGTERM)
            code = run.wait(RUN_SECONDS)
        else:
            run.kill()
            code = run.process.returncode
    finally:
        if run.process.poll() is None:
            run.kill()
    expect(code == STOPS[stop], f"{stop} ended the old run with {code}: {run.output()[-800:]}")
    step = run.newest()["step"]
    end = finish(run, ROOT, f"COMMIT, {stop} at step {step}, present; {'S3' if s3 else 'directory'}", since)
    expect(f"from step {step}" in run.output(), f"{end.how}: it did not continue: {run.output()[-800:]}")
    scratch = Path(run.environ["TRAINER_SCRATCH_DIR"])
    made = {json.loads((scratch / name / "index.json").read_text())["fingerprint"] for name in prepared(str(scratch))}
    expect(len(made) == 1, f"{end.how}: the data was prepared again, and is other data: {prepared(str(scratch))}")
    return end


def differences(end: End, expected: End) -> list[str]:
    """What is not the same, in words."""
    found = []
    names = expected.tensors.keys() | end.tensors.keys()
    odd = [name for name in sorted(names) if not same(end.tensors.get(name), expected.tensors.get(name))]
    if odd:
        found.append(f"{len(odd)} of {len(names)} tensors: {', '.join(odd[:3])}")
    steps = expected.metrics.keys() | end.metrics.keys()
    known = {name for row in expected.metrics.values() for name in row}  # COMMIT may not know all of today's
    rows = {step: {name: row[name] for name in row.keys() & known} for step, row in end.metrics.items()}
    if wrong := [step for step in sorted(steps) if rows.get(step) != expected.metrics.get(step)]:
        found.append(f"metrics of {len(wrong)} steps: {wrong[:5]}")
    return found


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Bit for bit."""
    if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.upgrade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the commit that begins the runs")
    options = parser.parse_args()
    wrong = False
    with checkout(options.commit) as old, standalone() as lab:
        try:
            reference = undisturbed(lab, old, old, "COMMIT alone")
            print(f"{len(reference.tensors)} tensors, {len(reference.metrics)} steps", flush=True)
            print(f"{'seconds':>7}  {'differs from COMMIT alone':<28}  run", flush=True)
            print(f"{reference.seconds:>7.0f}  {'-':<28}  {reference.how}", flush=True)
            runs: list[Callable[[], End]] = [partial(undisturbed, lab, old, ROOT, "present alone")]
            runs += [partial(upgraded, lab, old, s3=s3, stop=stop) for s3 in (False, True) for stop in STOPS]
            for run in runs:
                end = run()
                found = differences(end, reference)
                wrong |= bool(found)
                print(f"{end.seconds:>7.0f}  {'; '.join(found) or 'in nothing':<28}  {end.how}", flush=True)
        except WrongError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
