"""What is scored on: validation images of prepared data, the run's own copies where they are on this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trainer.contract import UserError, dataset_key, run_key
from trainer.data.format import INDEX, Copies, Index, read_index
from trainer.data.reading.split import EncodedImages
from trainer.data.stage import WantedSizes, stage
from trainer.imagenet import english_names, wnids
from trainer.learning.world import World, barrier
from trainer.model_card import ModelCard
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.fields import from_json
from trainer.recipes.named import default_data
from trainer.recipes.sides import wanted_span
from trainer.scoring.image_sets import SomeOutputs
from trainer.scoring.members import Member
from trainer.scoring.originals import unreadable_text
from trainer.scoring.predictions import LEFT_OUT, Predictions, Truth
from trainer.scoring.real_labels import RightAnswers, likeliest_labels
from trainer.scoring.weight_files import head_size
from trainer.setup import Data
from trainer.store import NotFoundError, ObjectStore, naming_the_fix
from trainer.text import say
from trainer.values import parse_object

ALIKE_WORDS = 0.99  # of the words of ImageNet's classes; of another order, hardly one is where it should be


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """Images with labels. `open(pixels)` gives the stored size that serves a short side of so many pixels."""

    name: str  # of the data: evaluations are stored under it
    prefix: str  # of its scores: val/top1
    identity: Mapping[str, str]  # as in a manifest
    classes: tuple[str, ...]
    labels: Truth
    open: Callable[[int], EncodedImages]
    notes: tuple[str, ...] = ()  # how it is scored, and what it lacks
    unreadable: Callable[[], Mapping[int, str]] = dict  # which images this process could not read in a pass, and why
    left_out: Mapping[int, str] = field(default_factory=dict)  # the same, of all processes
    numbers: npt.NDArray[np.int64] | None = None  # of a part of a split: which images of that these are
    right_answers: RightAnswers | None = None  # of each image, where several may be right; then `labels` has the first

    def truth_of(self, predictions: Predictions) -> Truth:
        """What counts as right for these answers: the label, or the likeliest of several that are right."""
        return self.labels if self.right_answers is None else likeliest_labels(predictions, self.right_answers)

    def without(self, left_out: Mapping[int, str]) -> ScoredSet:
        """The same set with these images left out of every score. Raises UserError if no image is left."""
        if len(left_out) == len(self.labels):
            raise UserError(f"none of the {len(self.labels):,} images of {self.name} can be read: {left_out[0]}")
        numbers = sorted(left_out)
        labels, answers = self.labels.copy(), self.right_answers
        labels[numbers] = LEFT_OUT
        if answers is not None:
            answers = [() if i in left_out else right for i, right in enumerate(answers)]
        return replace(self, labels=labels, right_answers=answers, left_out={i: left_out[i] for i in numbers})


def without_unreadable(scored: ScoredSet, world: World) -> ScoredSet:
    """After the passes: the set without the images that some process could not read, which are said.

    All processes call it. Raises UserError if no image is left.
    """
    found: list[Mapping[int, str]] = [dict(scored.unreadable())]
    if world.size > 1:
        mine, found = found[0], [{} for _ in range(world.size)]
        torch.distributed.all_gather_object(found, mine)
    left_out = {i: why for of_process in found for i, why in of_process.items()}
    if not left_out:
        return scored
    if world.is_main:
        say(f"note: {unreadable_text([left_out[i] for i in sorted(left_out)], len(scored.labels))}")
    return scored.without(left_out)


T = TypeVar("T")


def in_turn(make: Callable[[], T], world: World) -> T:
    """What one process of a machine fetches or makes first, and the others then find."""
    if world.local_rank == 0:
        made = make()
    barrier(world)
    return made if world.local_rank == 0 else make()


def open_prepared(
    data: str, scratch: Path, store: ObjectStore, members: Sequence[Member], world: World, workers: int,
    sides: Collection[int] = (),
) -> ScoredSet:  # fmt: skip
    """The validation split of DATA=, or of what the first member was trained on, staged on this machine.

    `sides` are short sides to which images are resized, beside those of the cards. Raises UserError, StoreError.
    """
    card = members[0].card
    config = run_config_of(store, card).data
    spans = frozenset(wanted_span(config, "val", side) for side in {*sides, *(one.card.val_resize for one in members)})
    folder = _staged(data, scratch, store, card, config, {"val": spans}, world, workers)
    index = read_index(folder)
    opened = Data(folder, index, config)
    if world.is_main:
        tell_other_data(members, index)
        tell_enlarged(opened, max(sides, default=card.val_resize))
    return ScoredSet(
        name=index.name, prefix="val", classes=index.classes, identity=data_identity(index),
        labels=opened.open("val", card.val_resize).labels, open=lambda pixels: opened.open("val", pixels),
    )  # fmt: skip


def open_training(
    data: str, scratch: Path, store: ObjectStore, card: ModelCard, pixels: int, world: World, workers: int
) -> Data:
    """The training images of the very data that a card names, for crops of so many pixels; else those of DATA=.

    Raises UserError, StoreError.
    """
    config = run_config_of(store, card).data
    spans = frozenset({wanted_span(config, "train", pixels)})
    folder = _staged(
        own_data(card, scratch, store) or data, scratch, store, card, config, {"train": spans}, world, workers
    )
    return Data(folder, read_index(folder), config)


def _staged(
    data: str, scratch: Path, store: ObjectStore, card: ModelCard, config: DataConfig, wanted: WantedSizes,
    world: World, workers: int,
) -> Path:  # fmt: skip
    """One process of a machine fetches or makes it, the others find it."""
    place = data or own_data(card, scratch, store) or default_data(card.recipe)
    copies = Copies(config.train_sides, (config.val_side,), config.quality)

    def fetch() -> Path:
        with naming_the_fix(f"the data {place}, or the scratch folder {scratch},"):
            return stage(place, scratch, copies, wanted, workers=workers)

    return in_turn(fetch, world)


def data_identity(index: Index) -> dict[str, str]:
    """As a manifest and a card name it."""
    return {
        "name": index.name, "version": index.version, "fingerprint": index.fingerprint, "sha256": index.sha256,
        "commit": index.source.commit if index.source else "",
    }  # fmt: skip


def run_config_of(store: ObjectStore, card: ModelCard) -> Config:
    """How the run of a card stores and shows images; the defaults for weights that no run of this store made."""
    try:
        config: Config = from_json(Config, parse_object(store.get(run_key(card.run_id, "config.json"))))
    except (NotFoundError, ValueError):  # none, or of another version: then the sizes are the usual ones
        return Config()
    return config


def own_data(card: ModelCard, scratch: Path, store: ObjectStore) -> str:
    """Where the very data that a card names lies prepared: on this machine, in the store, or "" where in neither."""
    if not card.data.get("version"):
        return ""
    folder = dataset_key(card.data["name"], card.data["version"], "").rstrip("/")
    if (scratch / folder / INDEX).is_file():
        return str(scratch / folder)
    try:
        store.get(f"{folder}/{INDEX}")
    except NotFoundError:
        return ""
    return f"{store.uri.rstrip('/')}/{folder}"


def tell_other_data(members: Sequence[Member], index: Index) -> None:
    """Say so where the images are not those that a card names: its scores and these cannot be compared."""
    for member in members:
        data = member.card.data
        known_by = "sha256" if data.get("sha256") else "fingerprint"
        before, now = data.get(known_by, ""), data_identity(index)[known_by]
        if before and before != now:
            say(
                f"note: the weights of {member.name} were trained with data {data.get('name', '')} "
                f"{data.get('version', '')} ({known_by} {before[:16]}), and these images are of {index.name} "
                f"{index.version} ({known_by} {now[:16] or 'unknown'}): compare scores with care"
            )


def tell_enlarged(data: Data, side: int) -> None:
    """Say so where validation images are stored with less than this short side, the largest that is asked for."""
    stored = data.open("val", side).short_side
    if stored < side:
        say(
            f"note: {data.index.name} is stored with {stored} px, so what is resized to more, up to {side} px, is "
            "enlarged: to score it as sharp as it could be, prepare that size (--val-sides)"
        )


def check_outputs(member: Member, scored: ScoredSet) -> None:
    """Raises UserError unless the outputs of a member are the classes of the data, by name and in this order."""
    known, outputs = member.card.classes, outputs_of(member)
    if outputs != len(scored.classes):
        raise UserError(
            f"{member.name} has {outputs} classes, and the data {scored.name} has {len(scored.classes)}: "
            "name the data that it was trained on (DATA=), or other weights"
        )
    if not known:
        say(f"note: nobody knows the names of the classes of {member.name}: the order of {scored.name} is believed")
    elif not same_classes(known, scored.classes):
        first = next(i for i, (mine, theirs) in enumerate(zip(known, scored.classes, strict=True)) if mine != theirs)
        raise UserError(
            f"{member.name} has other classes than the data {scored.name}, or in another order (output {first} is "
            f"{known[first]!r}, there it is {scored.classes[first]!r}): name the data that it was trained on (DATA=)"
        )


def same_classes(known: Sequence[str], found: Sequence[str]) -> bool:
    """Whether the names mean the same, in the same order. ImageNet's classes may be ids here and words there."""
    return tuple(known) == tuple(found) or (is_imagenet(known) and is_imagenet(found))


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether these are ImageNet's 1,000 classes in its order: as ids, or as words, as "tench, Tinca tinca".

    A few words differ from list to list, such as "crane (bird)".
    """
    words = [one.partition(",")[0] for one in classes]
    alike = sum(map(str.__eq__, words, english_names()))
    return tuple(classes) == wnids() or (len(words) == len(wnids()) and alike >= ALIKE_WORDS * len(words))


def outputs_of(member: Member) -> int:
    """How many classes it tells apart: as many as its classifier has outputs, whatever its card says."""
    if isinstance(member.model, SomeOutputs):
        return len(member.model.outputs)
    return head_size(member.model.state_dict(), member.card.network)
