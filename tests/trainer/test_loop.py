"""The training loop in this process, with stand-ins for data and uploader: what it guarantees, one test each."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainer.lab import CONFIG, SAVE_EACH_STEP, STEPS, STEPS_PER_EPOCH, Lab
from trainer import train as module
from trainer.contract import Exit, LostRunError, Phase, UserError
from trainer.data.reading.loader import Batch, Loader
from trainer.learning.state import State
from trainer.learning.step import train_step
from trainer.learning.world import Wishes, World
from trainer.model_card import ModelCard
from trainer.process import interruption as interruption_module
from trainer.process.channel import Channel
from trainer.process.interruption import Interrupted
from trainer.store import StoreError
from trainer.telemetry.console import Console
from trainer.telemetry.metrics import MetricsWriter


def test_a_run_trains_every_step_validates_each_epoch_and_leaves_its_result(lab: Lab) -> None:
    assert lab.train() == (Exit.FINISHED, "6 steps are done")
    rows = lab.rows()
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "val/top1" in row] == [2, 4, 6]
    assert lab.uploader.steps() == [2, 4, 6]
    assert lab.uploader.stored()[0] == "runs/loop/config.json"
    assert lab.uploader.stored()[-1] == "runs/loop/result.json"


@pytest.mark.parametrize("seed", [9007199254740993, 2**63 - 1])
def test_a_run_starts_with_every_seed_that_the_option_takes(lab: Lab, seed: int) -> None:
    assert lab.train(replace(CONFIG, seed=seed, epochs=1)) == (Exit.FINISHED, "2 steps are done")
    assert ModelCard.from_json(lab.store.get("runs/loop/model.json")).seed == seed


@pytest.mark.parametrize(("phase", "stands"), [(Phase.STAGING, 0), (Phase.STARTING, 1), (Phase.WAITING_FOR_STORE, 2)])
def test_a_an_interruption_before_there_is_state_saves_nothing(lab: Lab, phase: str, stands: int) -> None:
    lab.stop_in = phase
    with pytest.raises(Interrupted):
        lab.train()
    assert lab.entered() == [Phase.STAGING, Phase.STARTING, Phase.WAITING_FOR_STORE][: stands + 1]
    assert lab.uploader.events == [("closed", None)]
    assert not list(lab.store.list("checkpoints/"))


@pytest.mark.parametrize("fails", [False, True])
def test_b_resources_are_closed_in_reverse_also_after_an_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    closed: list[str] = []
    for kind in (Loader, Channel, Console):

        def close(self: Any, kind: Any = kind, close: Any = kind.close) -> None:
            if kind is not Channel or threading.current_thread() is threading.main_thread():  # not the stand-in's
                closed.append(kind.__name__)
            close(self)

        monkeypatch.setattr(kind, "close", close)
    if fails:
        monkeypatch.setattr(module, "train_step", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lab.train()
    else:
        lab.train()
    in_the_end = [name for name in closed if name != "Loader"]
    assert in_the_end == ["Channel", "Console"]
    assert closed[-3:] == ["Loader", "Channel", "Console"]


def test_c_a_run_that_is_resumed_at_a_due_validation_validates_before_it_steps(lab: Lab) -> None:
    lab.stop_in, lab.stop_at = Phase.EVALUATING, 4
    assert lab.train()[0] == Exit.INTERRUPTED
    assert lab.uploader.steps() == [2, 4]
    assert [row["step"] for row in lab.rows() if "val/top1" in row] == [2]
    assert lab.train()[0] == Exit.FINISHED
    began = lab.phases.index((Phase.TRAINING, 4))  # the step that it goes on from
    assert lab.phases[began + 1] == (Phase.EVALUATING, 4), "before any step of this attempt"
    assert [row["step"] for row in lab.rows() if "val/top1" in row] == [2, 4, 6]


@pytest.mark.parametrize("wish", ["stop", "save"])
def test_d_stopping_and_saving_are_decisions_of_all_processes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    """Another process wants it, this one does not: it follows. Each asks as often as the others, whatever it wants."""
    asked: list[list[bool]] = []

    def answer(wishes: Wishes) -> list[bool]:
        asked.append(wishes.flags())
        # after each step: stop? save? After the third, the other process says yes
        pairs = zip(asked[-1], ("stop", "save"), strict=True)
        return [flag or (len(asked) == 3 and wish == name) for flag, name in pairs]

    monkeypatch.setattr(Wishes, "answer", answer)
    code, message = lab.train(replace(CONFIG, val_every_epochs=3))
    if wish == "stop":
        assert (code, message) == (Exit.INTERRUPTED, "step 3 of 6 is saved")
        assert len(asked) == 3
    else:
        assert code == Exit.FINISHED
        assert lab.uploader.steps() == [3, 6]
        assert len(asked) == STEPS


def test_e_every_metric_of_a_checkpoint_is_sent_before_it(lab: Lab) -> None:
    lab.train(replace(CONFIG, checkpoint=SAVE_EACH_STEP, log_every_steps=100))
    sent: set[int] = set()
    checkpoints = 0
    for kind, what in lab.uploader.events:
        if kind == "put" and "/metrics/" in what:
            sent |= {json.loads(line)["step"] for line in lab.store.get(what).splitlines()}
        if kind == "checkpoint":
            checkpoints += 1
            assert set(range(1, what["step"] + 1)) <= sent
    assert checkpoints >= STEPS_PER_EPOCH


def test_f_a_save_that_meets_a_validation_is_the_validation_s(lab: Lab) -> None:
    lab.train(replace(CONFIG, checkpoint=SAVE_EACH_STEP))
    for kind, note in lab.uploader.events:
        if kind == "checkpoint" and note["step"] % STEPS_PER_EPOCH == 0:
            assert note["manifest"]["counters"]["validated"] == note["step"]
    assert lab.uploader.steps() == sorted(set(lab.uploader.steps()))


def test_g_the_phases_of_the_heartbeat_follow_what_happens(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: net)
    lab.train(replace(CONFIG, compile=True))
    begin = [Phase.STAGING, Phase.STARTING, Phase.WAITING_FOR_STORE, Phase.STARTING, Phase.COMPILING]
    middle = [(Phase.TRAINING, 1)] + [
        one for step in (2, 4, 6) for one in ((Phase.EVALUATING, step), (Phase.TRAINING, step))
    ]
    assert lab.phases == [(phase, 0) for phase in begin] + middle + [(Phase.SAVING, 6)]


def test_g_each_resolution_that_is_compiled_has_a_phase_of_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard lets a phase stand for a while: a compiler counts no progress."""
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: net)
    data = replace(CONFIG.data, start_resolution=32, resolution=64, ramp_end_epoch=1)
    lab.train(replace(CONFIG, compile=True, data=data, val_every_epochs=3))
    assert [step for phase, step in lab.phases if phase == Phase.COMPILING] == [0, 2]
    then = [Phase.TRAINING, Phase.EVALUATING, Phase.TRAINING, Phase.SAVING]
    assert lab.entered()[-6:] == [Phase.TRAINING, Phase.COMPILING, *then]


def test_a_stop_does_not_wait_for_a_compiler(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in another process, just before the first step of another size: all are asked, and all end."""
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: net)
    asked: list[bool] = []

    def any_of(flag: bool, world: World) -> bool:
        asked.append(flag)
        return len(asked) == 2

    monkeypatch.setattr(module, "any_of", any_of)
    data = replace(CONFIG.data, start_resolution=32, resolution=64, ramp_end_epoch=1)
    code, message = lab.train(replace(CONFIG, compile=True, data=data, val_every_epochs=3))
    assert (code, message, asked) == (Exit.INTERRUPTED, "step 2 of 6 is saved", [False, False])


def test_steps_before_a_change_of_size_have_their_speed_and_the_first_of_a_size_has_none(lab: Lab) -> None:
    data = replace(CONFIG.data, start_resolution=32, resolution=64, ramp_end_epoch=1)
    lab.train(replace(CONFIG, data=data, val_every_epochs=3, log_every_steps=100))
    speeds = [row["step"] for row in lab.rows() if "speed/images_per_second" in row]
    assert speeds == [2, 6], "steps 1 and 3 are warm-ups"


def test_h_memory_is_given_back_where_the_resolution_changes_and_after_validations(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(CONFIG.data, start_resolution=32, resolution=64, ramp_end_epoch=2, resolution_multiple=16)
    config = replace(CONFIG, data=data, val_every_epochs=3)
    given_back: list[int] = []
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "empty_cache", lambda world: given_back.append(len(seen)))

    def watched(state: Any, net: Any, batches: Iterator[Batch], *rest: Any) -> Any:
        first = next(batches)
        seen.append((first.images.shape[1], rest[1].resolution))
        return train_step(state, net, itertools.chain([first], batches), *rest)

    monkeypatch.setattr(module, "train_step", watched)
    assert lab.train(config)[0] == Exit.FINISHED
    assert seen == [(pixels, pixels) for pixels in (32, 32, 48, 48, 64, 64)], "what the clock says is what is decoded"
    assert given_back == [2, 4, 6]


@pytest.mark.parametrize("who", ["this process", "another process"])
def test_i_an_interrupted_validation_is_void_in_all_processes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    if who == "this process":
        lab.stop_in = Phase.EVALUATING
    else:
        monkeypatch.setattr(module, "any_of", lambda flag, world: True)  # which validations ask
    assert lab.train() == (Exit.INTERRUPTED, "step 2 of 6 is saved")
    assert not [row for row in lab.rows() if "val/top1" in row]
    (note,) = [note for kind, note in lab.uploader.events if kind == "checkpoint"]
    assert note["manifest"]["counters"]["validated"] == 0
    assert note["is_best"] is False


def test_j_a_run_is_finished_only_if_its_last_validation_counts(lab: Lab) -> None:
    lab.stop_in, lab.stop_at = Phase.EVALUATING, STEPS
    assert lab.train() == (Exit.INTERRUPTED, "step 6 of 6 is saved")
    assert "runs/loop/result.json" not in lab.uploader.stored()
    assert lab.train() == (Exit.FINISHED, "6 steps are done")
    assert lab.uploader.stored()[-1] == "runs/loop/result.json"


def test_k_the_last_save_has_a_deadline_that_a_signal_brings_nearer(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uploader never answers. Without a signal, the run's own deadline ends the wait, and it is an error."""
    monkeypatch.setattr(interruption_module, "STOP_SECONDS", 0.3)
    began = time.time()
    with pytest.raises(StoreError, match="did not reach the store in time"):
        lab.train(answers="nothing", deadline=str(began + 1))
    assert time.time() > began + 1

    lab.stop_in, began = Phase.SAVING, time.time()
    expected = (Exit.INTERRUPTED, "step 6 of 6 is handed over")
    assert lab.train(answers="nothing", deadline=str(began + 1000)) == expected
    assert time.time() < began + 60


def test_an_interruption_while_training_ends_after_that_step_and_saves_it(lab: Lab) -> None:
    lab.signals = {3: signal.SIGTERM}
    assert lab.train() == (Exit.INTERRUPTED, "step 4 of 6 is saved"), "after the validation that was due is void"
    assert lab.uploader.steps() == [2, 4]
    assert lab.train() == (Exit.FINISHED, "6 steps are done")
    assert lab.uploader.steps()[-1] == STEPS
    assert [row["step"] for row in lab.rows() if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def test_an_interruption_of_the_last_save_of_a_finished_run_changes_nothing(lab: Lab) -> None:
    lab.stop_in = Phase.SAVING
    assert lab.train() == (Exit.FINISHED, "6 steps are done")


def test_a_save_that_is_asked_for_is_made_once(lab: Lab) -> None:
    lab.signals = {2: signal.SIGUSR1}
    lab.train()
    assert lab.uploader.steps() == [2, 3, 4, 6]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(lab: Lab) -> None:
    def poisoned(state: State, *rest: Any) -> torch.Tensor:
        if state.step == 2:
            next(state.model.parameters()).data.fill_(float("nan"))
        return train_step(state, *rest)

    lab.monkeypatch.setattr(module, "train_step", poisoned)
    with pytest.raises(UserError, match="the loss of step 3 is nan: it must be finite"):
        lab.train(replace(CONFIG, checkpoint=SAVE_EACH_STEP))
    assert max(lab.uploader.steps()) == 2


def test_of_several_processes_the_main_one_ends_the_run_for_its_loss() -> None:
    """On a GPU another one may read the loss first. Its machine would then fail in the place of the run."""
    row = {"step": 3, "train/loss": float("nan")}
    log, metrics = SimpleNamespace(read=lambda until: [[row]]), MetricsWriter(None, "run", 1, first_step=0, origin=0)
    run: Any = SimpleNamespace(log=log, metrics=metrics, config=CONFIG, world=World(1, 1, 2, torch.device("cpu")))
    module.report_steps(run, 3)
    run.world = World(0, 0, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="the loss of step 3 is nan"):
        module.report_steps(run, 3)


def test_a_run_that_another_attempt_took_over_ends_at_once_and_commits_nothing(lab: Lab) -> None:
    with pytest.raises(LostRunError, match="attempt 2 has taken the run over"):
        lab.train(replace(CONFIG, checkpoint=SAVE_EACH_STEP), answers="lost")
    assert lab.uploader.steps() == []
