"""A model has as many outputs as the data has classes, unless another number is given, which is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.trainer.lab import CONFIG, STEPS, Lab
from tests.trainer.standins import CLASSES
from trainer.contract import Exit, UserError, run_key
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
