"""The passes over ImageNet-C, and what they found, as the JSON that the store keeps and as text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.learning.world import World
from trainer.model_card import ModelCard
from trainer.origin import git_commit
from trainer.recipes.config import Config
from trainer.scoring.corruptions import ALEXNET_ERRORS, PUBLISHED_SIDE, SEVERITIES, Corruption, CorruptionErrors
from trainer.scoring.data import without_unreadable
from trainer.scoring.image_sets import SetOptions, narrowed
from trainer.scoring.members import Member
from trainer.scoring.passes import predictions_folder, run_passes
from trainer.scoring.predictions import LEFT_OUT, Predictions, Truth
from trainer.scoring.record import RECORD_FORMAT, evaluation_key, write_output
from trainer.scoring.robustness import SetRequest, open_parts
from trainer.scoring.table import columns
from trainer.scoring.views import ONE_VIEW
from trainer.store import ObjectStore, open_store
from trainer.text import show_name, show_share, tell


@dataclass(frozen=True, kw_only=True)
class CorruptionEvaluation:
    """Of one member."""

    name: str  # as the user wrote it
    prefix: str
    card: ModelCard
    data: str  # as the user wrote it
    found: CorruptionErrors
    images: int  # that were scored
    left_out: tuple[str, ...]  # images that nobody could read, and why

    def to_json(self) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT, "time": time.time(), "commit": git_commit(), "name": self.name,
            "model": {name: value for name, value in self.card.to_json().items() if name != "classes"},
            "data": {
                "name": self.prefix, "source": self.data, "images": self.images, "left_out": list(self.left_out),
                "notes": [self.size_text],
            },
            "scores": self.found.scores(self.prefix), "views": ONE_VIEW.to_json(), "corruptions": self.found.to_json(),
        }  # fmt: skip

    @property
    def size_text(self) -> str:
        """What was done to the images, as they were published, before the network saw them."""
        crop = self.card.val_crop
        if crop == PUBLISHED_SIDE:
            return f"not resized before the crop of {crop}"
        return f"{'enlarged' if crop > PUBLISHED_SIDE else 'reduced'} from {PUBLISHED_SIDE} px to the crop of {crop} px"


def score_corruptions(
    asked: SetRequest, members: Sequence[Member], base: Config, world: World, folder: Path
) -> list[CorruptionEvaluation]:
    """One pass over each corruption and severity; predictions of one part are on disk at a time.

    The images are crops of 224 pixels already. So they are not enlarged before the crop, as the authors do not
    (ImageNet-C/test.py): the short side becomes the crop's. Only weights with another crop see them resized, which the
    text says. Raises UserError.
    """
    shown = [replace(one, card=replace(one.card, val_resize=one.card.val_crop)) for one in members]
    errors: list[dict[Corruption, float]] = [{} for _ in members]
    images, left_out = 0, list[str]()
    for part, opened in open_parts(asked, world):
        answers = run_passes(shown, opened, base, world, folder)
        scored = without_unreadable(opened, world)
        images += int((scored.labels != LEFT_OUT).sum())
        left_out += [f"{part.name}/{part.severity}: {why}" for why in scored.left_out.values()]
        if world.is_main:
            for of_member, one in zip(errors, answers, strict=True):
                of_member[part] = error_of(one.predictions, scored.labels)
    return [
        CorruptionEvaluation(
            name=one.name, prefix=asked.name, card=one.card, data=asked.data, found=CorruptionErrors(found),
            images=images, left_out=tuple(left_out),
        )
        for one, found in zip(shown, errors, strict=True)
    ]  # fmt: skip


def error_of(predictions: Predictions, labels: Truth) -> float:
    """The share of images that count whose first answer is wrong."""
    wrong = 0
    for first, rows in predictions.chunks():
        truth = labels[first : first + len(rows)]
        wrong += int(((rows.argmax(axis=1) != truth) & (truth != LEFT_OUT)).sum())
    return wrong / int((labels != LEFT_OUT).sum())


def corruption_text(evaluation: CorruptionEvaluation) -> str:
    """The errors by corruption, and their means."""
    found, network = evaluation.found, evaluation.card.network
    rows = [("corruption", "error", *(f"severity {severity}" for severity in SEVERITIES), "over AlexNet's")]
    for name, error in found.by_corruption.items():
        each = (found.errors.get(Corruption(name, severity)) for severity in SEVERITIES)
        shown = ("" if one is None else show_share(one, 1) for one in each)
        rows.append((name, show_share(error), *shown, show_share(error / ALEXNET_ERRORS[name])))
    parts = len(ALEXNET_ERRORS) * len(SEVERITIES)
    mce = (
        "none: it takes all parts"
        if found.mce is None
        else f"{show_share(found.mce)} mean corruption error, over AlexNet's"
    )
    lines = columns([
        ("images", f"{evaluation.images:,} in {len(found.errors)} of {parts} parts, {evaluation.size_text}"),
        (f"{evaluation.prefix}/mce", mce),
        (f"{evaluation.prefix}/error", f"{show_share(found.mean)} mean error"),
    ])  # fmt: skip
    head = f"{show_name(evaluation.name)} ({network}) on {evaluation.prefix} ({show_name(evaluation.data)})"
    return "\n".join([head, *lines, "", *columns(rows)])


def score_imagenet_c(options: SetOptions, members: Sequence[Member], base: Config, world: World) -> None:
    """Score every corruption, print and store the results. Raises UserError, StoreError."""
    asked, store = SetRequest.of(options), open_store(options.store)
    with predictions_folder(asked.scratch, world) as folder:
        found = score_corruptions(asked, narrowed(members, options), base, world, folder)
    if world.is_main:
        keep_corruptions(found, store, options.output)


def keep_corruptions(found: Sequence[CorruptionEvaluation], store: ObjectStore, output: str) -> None:
    """Print the results, store each with its run, and write all into `output`. Raises UserError, StoreError."""
    records = [one.to_json() for one in found]
    for one, record in zip(found, records, strict=True):
        tell(corruption_text(one))
        if one.card.run_id and one.name.partition("@")[0] == one.card.run_id:  # a run of this store
            store.put(key := evaluation_key(one.card.run_id, one.prefix), json.dumps(record, indent=1).encode())
            tell(f"stored: {store.describe(key)}")
    if output:
        write_output(output, {"evaluations": records})
        tell(f"written: {output}")
