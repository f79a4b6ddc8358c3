"""How a run on several machines has to end, whatever happened to it."""

from __future__ import annotations

import itertools
import time

import torch

from tests.chaos.lab import Lab, expect, step_of
from tests.chaos.machines import Group, group_of, start_all
from tests.chaos.runs import RUN
from trainer.contract import run_key

END_SECONDS = 420
# Where the number of processes changed, sums were added in another order. That moves losses by 2e-6 and weights by 7e-7
# in so many steps. The loss of the next step, which has other images, is 1e-3 away.
LOSS_TOLERANCE = 1e-4  # of a step's loss
WEIGHT_TOLERANCE = 1e-4  # of the norm of all weights
WEIGHTS = ("model.", "ema.")
LEFT_SECONDS = 15  # that the last process of a machine may take to end after its first one

Known = tuple[dict[str, torch.Tensor], dict[int, dict[str, object]]]
_references: dict[str, Known] = {}


def reference(lab: Lab) -> Known:
    """Tensors and metrics of the run on one machine that nobody disturbed; made once per laboratory."""
    if (key := str(lab.folder)) not in _references:
        with group_of(lab, 1) as group:
            start_all(group, group.machines)
            group.wait(lambda: False, END_SECONDS, "the end of an undisturbed run")
            expect(set(group.codes().values()) == {0}, f"undisturbed: {group.said()}")
            _references[key] = group.real.tensors(), group.real.metrics()
    return _references[key]


def judge(group: Group, lab: Lab) -> dict[str, float]:
    """WrongError says what is lost or wrong; else how far losses and weights are from those of an undisturbed run."""
    codes = group.codes()
    expect(bool(codes) and set(codes.values()) == {0}, f"ended {codes}: {group.said()}")
    judge_writers(group, lab)
    judge_leftovers(group)
    tensors, metrics = group.real.tensors(), group.real.metrics()
    known_tensors, known_metrics = reference(lab)
    missing, more = sorted(known_metrics.keys() - metrics.keys()), sorted(metrics.keys() - known_metrics.keys())
    expect(not missing and not more, f"metrics: steps {missing} are missing, steps {more} are too many")
    losses = {step: off(row, known_metrics[step]) for step, row in metrics.items()}
    worst = max(losses, key=lambda step: losses[step])
    expect(losses[worst] <= LOSS_TOLERANCE, f"the loss of step {worst} is off by {losses[worst]:.2%}: {losses}"[:600])
    weights = distance(tensors, known_tensors)
    expect(weights <= WEIGHT_TOLERANCE, f"the weights are off by {weights:.2%} of their norm")
    return {"loss_off": losses[worst], "weights_off": weights}


def judge_writers(group: Group, lab: Lab) -> None:
    """Whoever owned the run, owned it alone, and what was saved stayed so."""
    expect(any(group.real.store.list(run_key(RUN, "done.json"))), f"no done.json: {group.said()}")
    leases = [lease for _, lease in lab.proxy.leases]
    for before, after in itertools.pairwise(leases):
        expect(
            after["attempt"] >= before["attempt"], f"attempt {after['attempt']} wrote HEAD after {before['attempt']}"
        )
        lost = step_of(after["newest"]) < step_of(before["newest"])
        expect(not lost, f"lost: HEAD went from {before['newest']} to {after['newest']}")
    done = [call for call in lab.proxy.calls if call.method == "PUT" and "/done.json" in call.target]
    expect([call.status for call in done].count(200) == 1, f"done.json: {[call.status for call in done]}")


def judge_leftovers(group: Group) -> None:
    for machine in (machine for machine in group.machines if machine.host.keeper):
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := machine.host.pids()) and time.monotonic() < deadline:
            time.sleep(0.1)
        expect(not left, f"{machine.host.name} has {len(left)} processes left: {left}")


def off(row: dict[str, object], known: dict[str, object]) -> float:
    """How far the loss of a step is from the known one, as a share of it; 0 where a row has none."""
    ours, theirs = row.get("train/loss"), known.get("train/loss")
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) / abs(theirs)
    expect(ours is theirs is None, f"a loss where there is none, or none where there is one: {row} {known}")
    return 0.0


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of all weights together, as a share of their norm: a bias near zero may be another one for a rounding."""
    names = [name for name in theirs if name.startswith(WEIGHTS) and theirs[name].is_floating_point()]
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in names)
    return float((apart / sum(float(theirs[name].square().sum()) for name in names)) ** 0.5)
