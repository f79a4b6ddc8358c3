"""What an evaluation found, as the JSON that the store keeps. Shares are fractions, times are seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from trainer.contract import run_key
from trainer.model_card import ModelCard
from trainer.origin import git_commit
from trainer.recipes.config import Config
from trainer.scoring.data import ScoredSet
from trainer.scoring.measures import Measures
from trainer.scoring.sweep import Sweep
from trainer.scoring.views import ONE_VIEW, Views

RECORD_FORMAT = 1


def evaluation_key(run_id: str, name: str, kind: str = "json") -> str:
    """`runs/<run_id>/evaluations/<name>.json`: how a checkpoint of the run scores on the data of that name.

    `<name>.jpg` beside it shows its surest mistakes.
    """
    return run_key(run_id, f"evaluations/{name}.{kind}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one thing that was scored: a member, or several as one."""

    name: str  # as the user wrote it
    prefix: str  # of its scores: val/top1
    card: ModelCard
    scored: ScoredSet
    measures: Measures
    seconds: float  # of the pass, decoding included
    latency: float | None  # seconds of one image; None where it was not measured
    base: Config  # precision and batch
    device: str
    views: Views = ONE_VIEW
    sweep: Sweep | None = None

    @property
    def scores(self) -> dict[str, float]:
        """By their flat names."""
        found, after = self.measures, self.measures.calibration
        named = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "ece": found.ece}
        if self.scored.right_answers is not None:  # the others are not defined where several answers are right
            named, after = {"top1": found.top1}, None
        if after is not None:
            named |= {"ece_half": after.error_before, "ece_half_calibrated": after.error_after}
            named |= {"temperature": after.temperature}
        return {f"{self.prefix}/{name}": value for name, value in named.items()}

    @property
    def images_per_second(self) -> float:
        return self.measures.images / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT, "time": time.time(), "commit": git_commit(), "name": self.name,
            "model": {name: value for name, value in self.card.to_json().items() if name != "classes"},
            "data": {
                **self.scored.identity, "split": "val", "images": self.measures.images,
                "left_out": list(self.scored.left_out.values()), "notes": list(self.scored.notes),
            },
            "scores": self.scores,
            "calibration": {"bins": "15 of equal width", "temperature": "fitted on one half, scored on the other"},
            "views": self.views.to_json(),
            "sweep": self.sweep.to_json() if self.sweep else None,
            "classes": classes_of(self), "mistakes": mistakes_of(self),
            "speed": {
                "images_per_second": self.images_per_second, "latency_seconds": self.latency, "device": self.device,
                "precision": self.base.precision, "batch_size": self.base.val_batch_size,
            },
        }  # fmt: skip


def classes_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every class that has images, the worst first, and what its images were taken for."""
    found, names = evaluation.measures, evaluation.scored.classes
    return [
        {
            "name": names[label], "images": int(found.images_of[label]),
            "top1": float(found.right_of[label] / found.images_of[label]),
            "taken_for": [{"name": names[answer], "images": count} for answer, count in found.taken_for(label)],
        }
        for label in found.worst_classes()
    ]  # fmt: skip


def mistakes_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The surest mistakes, the surest first."""
    scored = evaluation.scored
    images = scored.open(evaluation.card.val_resize)
    return [
        {
            "image": one.image if scored.numbers is None else int(scored.numbers[one.image]),
            "file": images.name(one.image), "label": scored.classes[one.label],
            "answer": scored.classes[one.answer], "probability": one.probability,
        }
        for one in evaluation.measures.mistakes
    ]  # fmt: skip
