"""A model has as many outputs as the data has classes, unless another number is given, which is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.trainer.lab import CONFIG, STEPS, Lab
from tests.trainer.standins import CLASSES, StandInData
from trainer import setup
from trainer.contract import Exit, UserError, run_key
from trainer.learning.execution import Execution
from trainer.recipes.config import Config
from trainer.values import parse_object


def with_classes(classes: int) -> Config:
    return replace(CONFIG, epochs=1, model=replace(CONFIG.model, num_classes=classes))


def test_the_head_follows_the_data_and_what_is_saved_says_how_many_classes_it_has(lab: Lab) -> None:
    assert lab.train(with_classes(0))[0] == Exit.FINISHED
    assert len(lab.weights()["model.fc.bias"]) == CLASSES
    assert parse_object(lab.store.get(run_key("loop", "config.json")))["model"]["num_classes"] == CLASSES


def test_a_run_that_began_with_a_number_goes_on_where_the_data_says_it_now(lab: Lab) -> None:
    lab.train(CONFIG)
    begun = lab.counters()
    assert lab.train(replace(CONFIG, model=replace(CONFIG.model, num_classes=0)))[0] == Exit.FINISHED
    assert lab.counters() == begun
    assert begun["step"] == STEPS


def test_another_number_than_the_data_has_is_refused_with_both_numbers(lab: Lab) -> None:
    with pytest.raises(UserError, match=rf"--model.num-classes is 7, but 'stand-in' has {CLASSES} classes: .* --model"):
        lab.train(with_classes(7))
    assert not lab.uploader.steps()


def test_balanced_weights_make_rare_classes_count_as_much_as_frequent_ones(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = StandInData()
    data.splits["train"].labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    given: list[Tensor] = []
    of = Execution.of

    def noted(*arguments: Any) -> Execution:
        given.append(arguments[-1])
        return of(*arguments)

    monkeypatch.setattr(Execution, "of", noted)
    monkeypatch.setattr(setup, "stage_data", lambda *arguments: data)
    balanced = replace(CONFIG.regularize, class_weights="balanced", loss="bce")
    assert lab.train(replace(with_classes(0), regularize=balanced))[0] == Exit.FINISHED
    assert given[0].tolist() == pytest.approx([8 / 12, 8 / 4])
