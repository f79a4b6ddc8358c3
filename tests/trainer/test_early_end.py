"""Early stopping: a run whose scores no longer rise is finished, and nothing of it goes on by accident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer.lab import CONFIG, Lab
from trainer import train as module
from trainer.contract import Exit, Phase, run_key
from trainer.learning.schedule import Clock
from trainer.recipes.config import Config, ScheduleConfig
from trainer.report.summary import summarise, summary_text
from trainer.values import parse_object

PATIENT = replace(CONFIG, epochs=9, patience=2)


@pytest.fixture
def scoring(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the validations of a run find these values of top-1, one for each epoch."""

    def find(top1s: Sequence[float]) -> None:
        def scores(*_: Any) -> dict[str, float]:
            value = top1s[lab.phases[-1][1] // 2 - 1]
            return {"val/loss": 1.0, "val/top1": value, "val/top5": 1.0}

        monkeypatch.setattr(module, "scores", scores)

    return find


def result(lab: Lab) -> dict[str, Any]:
    return parse_object(lab.store.get(run_key("loop", "result.json")))


def test_a_run_ends_after_so_many_validations_without_a_better_score_and_is_finished(
    lab: Lab, scoring: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scoring([0.5, 0.6, 0.6, 0.5])
    code, message = lab.train(PATIENT)
    assert code == Exit.FINISHED
    reason = "the best top-1, 60.00 %, is that of step 4, 2 validations before (--patience)"
    assert message.startswith(f"the run ended early, after 8 steps of 18: {reason}; the learning rate is ")
    assert "would have come down to 4e-10 by step 18: fewer --epochs bring it down sooner" in message
    assert f"the run ends at step 8 of 18: {reason}" in capsys.readouterr().err
    assert [row["step"] for row in lab.rows() if "train/loss" in row] == [*range(1, 9)]
    assert lab.counters()["validated"] == 8
    assert "swa_step" not in lab.counters()  # nor anything else of a mean that it does not keep
    told = result(lab)
    assert (told["steps"], told["epochs"], told["best"]["step"]) == (8, 9, 4)
    assert told["images_per_second"] == pytest.approx(8 * 4 / told["seconds"])
    shown = summarise("loop", lab.rows(), {}, told, checkpoint="", metrics="", report="")
    assert "loop (recipe custom): finished early (--patience)" in summary_text(shown)
    assert "8 of 18" in summary_text(shown)


def test_an_attempt_that_continues_where_the_run_was_over_trains_no_further(lab: Lab, scoring: Any) -> None:
    """The attempt before may have died after its validation. If it was stopped in it, the next one validates first."""
    scoring([0.5, 0.4, 0.4])
    lab.stop_in, lab.stop_at = Phase.EVALUATING, 6
    assert lab.train(PATIENT) == (Exit.INTERRUPTED, "step 6 of 18 is saved")
    assert lab.train(PATIENT)[0] == Exit.FINISHED
    assert lab.counters()["step"] == 6
    begun = len(lab.rows())
    assert lab.train(PATIENT)[0] == Exit.FINISHED
    assert len(lab.rows()) == begun
    assert result(lab)["steps"] == 6


def test_a_run_that_goes_on_getting_better_or_has_no_patience_ends_with_its_last_step(lab: Lab, scoring: Any) -> None:
    scoring([0.5, 0.4, 0.6])
    assert lab.train(replace(CONFIG, patience=2)) == (Exit.FINISHED, "6 steps are done")
    assert result(lab)["steps"] == 6


def test_a_learning_rate_that_was_to_stay_is_no_reason_for_a_remark(lab: Lab, scoring: Any) -> None:
    scoring([0.5, 0.4])
    constant = replace(PATIENT, patience=1, schedule=ScheduleConfig(kind="constant"))
    assert lab.train(constant)[1].endswith("is that of step 2, 1 validations before (--patience)")


def test_patience_counts_validations_and_not_epochs() -> None:
    config = Config(epochs=30, val_every_epochs=3, patience=2, global_batch_size=1)
    clock = Clock.of(config, 10)
    over = [step for step in range(0, 300, 30) if clock.is_out_of_patience(step, 60)]
    assert over == [*range(120, 300, 30)]
    assert not any(Clock.of(replace(config, patience=0), 10).is_out_of_patience(step, 0) for step in range(0, 300, 30))
