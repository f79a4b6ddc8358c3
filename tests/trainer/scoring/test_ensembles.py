"""Ensembles: the mean of probabilities, agreement and gain, against a few lines of numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.contract import UserError
from trainer.scoring import predictions as chunking
from trainer.scoring.ensembles import Gain, agreement_of, average_predictions, gain_of
from trainer.scoring.halves import CHOOSING, NEITHER, SCORING, Halves, halves_of, split_halves
from trainer.scoring.predictions import LEFT_OUT, LogRows, Predictions

IMAGES, CLASSES = 23, 5


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[LogRows]:
    """Of three members, who are read seven images at a time; the second is very sure, and often wrong."""
    monkeypatch.setattr(chunking, "MOST_BYTES_READ", 7 * 4 * CLASSES)
    rng = np.random.default_rng(0)
    logits = [scale * rng.normal(size=(IMAGES, CLASSES)) for scale in (1, 200, 2)]
    return [(one - np.log(np.exp(one).sum(axis=1, keepdims=True))).astype(np.float32) for one in logits]


def on_disk(folder: Path, rows: list[LogRows]) -> list[Predictions]:
    parts = [Predictions(folder / str(number), len(one), one.shape[1]) for number, one in enumerate(rows)]
    for part, one in zip(parts, rows, strict=True):
        part.write(np.arange(len(one)), one)
    return parts


def read(part: Predictions) -> LogRows:
    return np.concatenate([rows for _, rows in part.chunks()])


def test_the_probabilities_of_an_ensemble_are_the_mean_of_its_members(tmp_path: Path, rows: list[LogRows]) -> None:
    mean = Predictions(tmp_path / "mean", IMAGES, CLASSES)
    average_predictions(on_disk(tmp_path, rows), mean)
    expected = np.mean([np.exp(one.astype(np.float64)) for one in rows], axis=0)
    np.testing.assert_allclose(np.exp(read(mean)), expected, rtol=1e-5, atol=1e-7)
    by_logits = np.mean(rows, axis=0).argmax(axis=1)
    assert (by_logits != expected.argmax(axis=1)).any(), "a mean of logits would be told apart"


def test_one_member_is_an_ensemble_of_itself(tmp_path: Path, rows: list[LogRows]) -> None:
    mean = Predictions(tmp_path / "mean", IMAGES, CLASSES)
    average_predictions(on_disk(tmp_path, rows[:1]), mean)
    assert np.array_equal(read(mean), rows[0])


def test_a_class_that_all_members_exclude_stays_excluded(tmp_path: Path) -> None:
    sure = np.log(np.array([[1, 0]] * 3, np.float32), where=np.array([True, False]), out=np.full((3, 2), -np.inf, "f4"))
    mean = Predictions(tmp_path / "mean", 3, 2)
    average_predictions(on_disk(tmp_path, [sure, sure]), mean)
    assert np.array_equal(read(mean), sure)


def test_agreement_counts_images_with_the_same_answer(tmp_path: Path, rows: list[LogRows]) -> None:
    answers = np.stack([one.argmax(axis=1) for one in rows])
    found = agreement_of(on_disk(tmp_path, rows), np.zeros(IMAGES, np.int64))
    assert found.of_all == np.mean([len(set(column)) == 1 for column in answers.T.tolist()])
    assert found.of_pairs.tolist() == [[float((a == b).mean()) for b in answers] for a in answers]


def test_top1_by_halves_is_that_of_the_images_of_each(tmp_path: Path, rows: list[LogRows]) -> None:
    answers, halves = rows[0].argmax(axis=1), split_halves(np.arange(IMAGES) % CLASSES)
    choosing, scoring = np.flatnonzero(halves == CHOOSING), np.flatnonzero(halves == SCORING)
    assert (len(choosing), len(scoring)) == (12, 11)
    truth = answers.copy()
    truth[scoring[1:]] = (truth[scoring[1:]] + 1) % CLASSES
    assert halves_of(on_disk(tmp_path, rows)[0], truth, halves) == Halves(1.0, 1 / 11)


def test_one_image_alone_has_no_halves() -> None:
    for labels in ([0], [LEFT_OUT, 0, LEFT_OUT]):
        with pytest.raises(UserError, match=r"1 image\(s\) have no two halves"):
            split_halves(np.array(labels))


@pytest.mark.parametrize("order", ["by class", "in turn", "drawn"])
def test_both_halves_have_the_same_classes_whatever_the_order_of_the_images(order: str) -> None:
    labels = {
        "by class": np.repeat(np.arange(6), 11), "in turn": np.arange(66) % 2,
        "drawn": np.random.default_rng(0).integers(9, size=67),
    }[order]  # fmt: skip
    halves = split_halves(labels)
    each = [np.bincount(labels[halves == half], minlength=9) for half in (CHOOSING, SCORING)]
    assert np.abs(each[0] - each[1]).max() <= 1
    assert abs(each[0].sum() - each[1].sum()) <= 1
    assert each[0].sum() + each[1].sum() == len(labels), "every image is in one"
    assert np.array_equal(split_halves(labels), halves), "always the same"
    inside = np.flatnonzero(labels == 1)
    assert (np.diff(halves[inside]) == 0).any(), "not in turn: neighbours may be frames of one scene"


def test_images_that_no_score_counts_are_in_neither_half_and_change_no_other_half_much() -> None:
    labels = np.repeat(np.arange(4), 10)
    labels[[3, 17, 18]] = LEFT_OUT
    halves = split_halves(labels)
    assert np.flatnonzero(halves == NEITHER).tolist() == [3, 17, 18]
    assert np.bincount(halves, minlength=3).tolist() == [19, 18, 3]


def test_the_best_member_is_chosen_on_one_half_and_compared_on_the_other() -> None:
    members = [Halves(0.7, 0.9), Halves(0.8, 0.6), Halves(0.8, 0.7)]
    assert gain_of(members, Halves(0.5, 0.65)) == Gain(best=1, best_top1=0.6, ensemble_top1=0.65)
