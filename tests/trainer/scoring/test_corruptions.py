"""The errors of ImageNet-C as one number, as text, and in a release. `test_robustness` scores images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.scoring.made import prepare_images, put_run
from trainer.release.history import read_evaluations
from trainer.scoring.corruption_record import CorruptionEvaluation, keep_corruptions
from trainer.scoring.corruptions import ALEXNET_ERRORS, Corruption, CorruptionErrors
from trainer.scoring.members import open_member

PARTS = [Corruption(name, severity) for name in ALEXNET_ERRORS for severity in range(1, 6)]


def test_the_mean_corruption_error_is_that_of_the_15_over_those_of_alexnet() -> None:
    errors = {part: 0.1 * part.severity + (0.2 if part.name == "fog" else 0) for part in PARTS}
    found = CorruptionErrors(errors)
    expected = np.mean([(0.5 if name == "fog" else 0.3) / alexnet for name, alexnet in ALEXNET_ERRORS.items()])
    assert found.mce == pytest.approx(expected)
    assert found.mean == pytest.approx((14 * 0.3 + 0.5) / 15)
    assert CorruptionErrors({part: ALEXNET_ERRORS[part.name] for part in PARTS}).mce == pytest.approx(1)
    assert CorruptionErrors({part: errors[part] for part in PARTS[1:]}).mce is None


def test_a_release_shows_the_mean_corruption_error_and_the_text_says_what_was_resized(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = put_run(tmp_path, prepare_images(tmp_path, val=1))
    found = CorruptionErrors({part: ALEXNET_ERRORS[part.name] / 2 for part in PARTS})
    told = {224: "not resized before the crop of 224", 288: "enlarged from 224 px to the crop of 288 px"}
    for crop, said in told.items():
        card = replace(open_member("made", store).card, val_resize=crop, val_crop=crop)
        evaluation = CorruptionEvaluation(
            name="made", prefix="imagenet-c", card=card, data="c", found=found, images=75, left_out=()
        )
        keep_corruptions([evaluation], store, "")
        assert f"75 in 75 of 75 parts, {said}" in capfd.readouterr().out
        (row,) = read_evaluations(store, card)
        assert row.images == "imagenet-c"
        assert row.more.endswith("mce 50.00 %")
