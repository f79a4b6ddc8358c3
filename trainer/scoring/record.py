"""What an evaluation found, as the JSON that the store keeps. Shares are fractions, times are seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import UserError, run_key
from trainer.learning.world import World
from trainer.model_card import ModelCard
from trainer.origin import git_commit
from trainer.recipes.config import Config
from trainer.scoring.data import ScoredSet
from trainer.scoring.measures import Measures, measure
from trainer.scoring.passes import Answers
from trainer.scoring.speed import latency_seconds
from trainer.scoring.sweep import Sweep
from trainer.scoring.views import ONE_VIEW, Views, variant_of

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
    members_in_pass: int  # that shared it: the time of one member is only known where it was alone
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
        """Of the pass."""
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
                "images_per_second": self.images_per_second, "members_in_pass": self.members_in_pass,
                "latency_seconds": self.latency, "device": self.device, "precision": self.base.precision,
                "batch_size": self.base.val_batch_size,
            },
        }  # fmt: skip


def evaluate_answers(answers: Answers, scored: ScoredSet, base: Config, world: World, views: Views) -> Evaluation:
    """What the answers of a member are worth, and how fast it gives one."""
    member, prefix = answers.member, scored.prefix if views.is_plain else f"{scored.prefix}_tta"
    return Evaluation(
        name=member.name, prefix=prefix, card=member.card, scored=scored, seconds=answers.seconds, base=base,
        members_in_pass=answers.members_in_pass, device=world.device.type, views=views,
        measures=measure(answers.predictions, scored.truth_of(answers.predictions)),
        latency=latency_seconds(member, base, world) if views.is_plain else None,
    )  # fmt: skip


def name_in_store(one: Evaluation, resize: int, crop: int, weights: str) -> str:
    """The name of the data, and whatever is not as the run alone gives it: its record stays, and others lie beside it.

    `resize`, `crop` and `weights` as the user typed them.
    """
    version, known = one.scored.identity.get("version", ""), one.card.data
    other = {
        version: known.get("name") == one.scored.name and known.get("version", version) != version,
        f"step-{one.card.step}": "@" in one.name,
        weights: weights != "auto",
        one.base.precision: one.base.precision != "fp32",
    }
    parts = "".join(f"-{part}" for part, is_other in other.items() if is_other)
    return one.scored.name + variant_of(one.views, resize, crop) + parts


def check_output(file: str) -> None:
    """Raises UserError where results cannot be written there: before the passes, which take a while. "" is no file."""
    path = Path(file)
    place = path if path.exists() else path.absolute().parent
    if file and (path.is_dir() or not os.access(place, os.W_OK)):
        raise UserError(
            f"--output {file!r}: that is a folder, or lies in none that you may write to: name another file"
        )


def write_output(file: str, results: Mapping[str, Any]) -> None:
    """As JSON. Raises UserError."""
    try:
        Path(file).write_text(json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output {file!r} cannot be written ({error}): name another file") from error


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
