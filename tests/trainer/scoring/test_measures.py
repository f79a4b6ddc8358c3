"""Accuracy, confusion and calibration from predictions on disk, against plain loops over the same numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from trainer.contract import UserError
from trainer.scoring import predictions as module
from trainer.scoring.calibration import Bins, calibrate
from trainer.scoring.halves import CHOOSING, SCORING, split_halves
from trainer.scoring.measures import MISTAKES, measure
from trainer.scoring.predictions import LEFT_OUT, Predictions

Rows = np.ndarray


def stored(folder: Path, logits: Rows) -> Predictions:
    """Log-probabilities of (N, classes) logits, written in two parts and out of order."""
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = Predictions(folder / "answers", *logits.shape)
    for part in (np.arange(1, len(rows), 2), np.arange(0, len(rows), 2)):
        found.write(part, rows[part].astype(np.float32))
    return found


def drawn(images: int = 400, classes: int = 7, sharpness: float = 1.0) -> tuple[Rows, Rows]:
    """Logits, and labels drawn by their probabilities: calibrated where `sharpness` is 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, classes)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in shares])
    return logits * sharpness, labels


@pytest.mark.parametrize("bytes_read", [1, 3 * 28, 1 << 20])
def test_accuracy_loss_and_confusion_are_those_of_a_plain_loop_whatever_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_read: int
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES_READ", bytes_read)
    logits, labels = drawn()
    found = measure(stored(tmp_path, logits), labels)
    confusion = np.zeros((7, 7), int)
    hits5, losses = 0, []
    for row, label in zip(logits, labels, strict=True):
        confusion[label, row.argmax()] += 1
        hits5 += label in np.argsort(-row)[:5]
        losses.append(np.log(np.exp(row).sum()) - row[label])
    assert (found.confusion == confusion).all()
    assert (found.images, found.top1, found.top5) == (400, confusion.trace() / 400, hits5 / 400)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-6)
    accuracy = confusion.diagonal() / confusion.sum(axis=1)
    assert found.worst_classes() == sorted(range(7), key=lambda label: accuracy[label])
    worst = found.worst_classes()[0]
    others = confusion[worst].copy()
    others[worst] = 0
    assert [count for _, count in found.taken_for(worst)] == sorted(others[others > 0], reverse=True)[:3]
    assert found.taken_for(worst)[0] == (others.argmax(), others.max())


def test_the_surest_mistakes_come_first_and_no_more_than_are_shown(tmp_path: Path) -> None:
    logits, labels = drawn()
    found = measure(stored(tmp_path, logits), labels).mistakes
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = [i for i in np.argsort(-shares.max(axis=1)) if logits[i].argmax() != labels[i]]
    assert [one.image for one in found] == wrong[:MISTAKES]
    assert [(one.label, one.answer) for one in found] == [(labels[i], logits[i].argmax()) for i in wrong[:MISTAKES]]
    assert [one.probability for one in found] == pytest.approx([shares[i].max() for i in wrong[:MISTAKES]])


def test_a_class_without_images_is_not_among_the_worst(tmp_path: Path) -> None:
    logits, labels = drawn(images=20)
    labels[:] = 3
    assert measure(stored(tmp_path, logits), labels).worst_classes() == [3]


def test_the_calibration_error_is_the_weighted_distance_of_stated_and_true() -> None:
    bins = Bins()
    bins.add(np.array([0.95, 0.97, 0.94, 0.34, 0.35]), np.array([True, False, True, True, False]))
    assert bins.error == pytest.approx((abs(2.86 - 2) + abs(0.69 - 1)) / 5)
    edge = Bins()
    edge.add(np.array([1 / 15, 1.0]), np.array([True, True]))
    assert edge.images.tolist() == [1] + [0] * 13 + [1], "a bin has its upper end"


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_logits_too_sharp_or_too_soft(tmp_path: Path, sharpness: float) -> None:
    logits, labels = drawn(images=4000, sharpness=sharpness)
    found = calibrate(stored(tmp_path, logits), labels)
    assert found is not None
    assert found.temperature == pytest.approx(sharpness, rel=0.06)
    assert found.error_after < 0.05
    assert found.error_after < found.error_before + 0.015

    chosen = split_halves(labels) == CHOOSING

    def loss(temperature: float) -> float:
        rows, truth = logits[chosen] / temperature, labels[chosen]
        return float(np.mean(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), truth]))

    best = loss(found.temperature)
    assert best < min(loss(found.temperature * 1.01), loss(found.temperature / 1.01)), "the least loss of that half"


def test_the_temperature_knows_nothing_of_the_half_that_it_is_scored_on(tmp_path: Path) -> None:
    logits, labels = drawn()
    before = calibrate(stored(tmp_path, logits), labels)
    others = np.flatnonzero(split_halves(labels) == SCORING)
    logits[others] = logits[others][:, ::-1]
    after = calibrate(stored(tmp_path, logits), labels)
    assert before is not None
    assert after is not None
    assert before.temperature == after.temperature
    assert before.error_after != after.error_after


def test_answers_that_are_always_right_have_a_temperature_at_the_end_of_its_range(tmp_path: Path) -> None:
    logits, _ = drawn(images=50)
    found = calibrate(stored(tmp_path, logits), logits.argmax(axis=1))
    assert found is not None
    assert 0.05 <= found.temperature < 0.06
    assert calibrate(Predictions(tmp_path / "answers", 1, 7), logits[:1].argmax(axis=1)) is None


def test_an_answer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    logits, labels = drawn(images=20)
    logits[13, 2] = np.nan
    with pytest.raises(UserError, match=r"image 13 is NaN.*--precision fp32"):
        measure(stored(tmp_path, logits), labels)


def test_images_without_a_right_answer_have_no_score(tmp_path: Path) -> None:
    logits, labels = drawn(images=20)
    with pytest.raises(UserError, match=r"none of the 20 images has a right answer"):
        measure(stored(tmp_path, logits), np.full_like(labels, LEFT_OUT))


def test_rows_of_other_classes_are_not_written(tmp_path: Path) -> None:
    found = Predictions(tmp_path / "answers", 4, 7)
    with pytest.raises(AssertionError, match=r"\(2, 6\) rows of 7 classes"):
        found.write(np.arange(2), np.zeros((2, 6), np.float32))
    assert not found.path.exists()


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES_READ", 50_000)
    peaks = []
    for images in (1000, 8000):
        logits, labels = np.random.default_rng(0).normal(size=(images, 100)), np.arange(images) % 100
        found = stored(tmp_path, logits)
        tracemalloc.start()
        measure(found, labels)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000, "the answers to 7,000 more images take 2,800,000 bytes"
