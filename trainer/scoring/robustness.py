"""Opens the robustness sets of ImageNet as images to score. `image_sets` narrows members to the classes of a set.

Scores carry the name of their set, as imagenet-a/top1, and are never mixed with those of validation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.contract import UserError
from trainer.data.format import INDEX
from trainer.data.making.forms.source_formats import FolderSplit
from trainer.learning.world import World
from trainer.process.scratch import open_scratch
from trainer.scoring.corruptions import Corruption, find_parts
from trainer.scoring.data import ScoredSet, in_turn, open_prepared
from trainer.scoring.found_images import FoundFiles, FoundImages, files_of_images, find_files, open_found
from trainer.scoring.image_sets import IMAGE_SETS, ImageSet, SetOptions, labels_of_set
from trainer.scoring.members import Member
from trainer.scoring.originals import Originals
from trainer.scoring.predictions import LEFT_OUT, Truth
from trainer.scoring.real_labels import VAL_NAME, RightAnswers, answers_by_name, read_right_answers
from trainer.store import ObjectStore

V2_VARIANTS = ("threshold0.7", "top-images")  # in the names of the folders; imagenet-v2 alone is matched-frequency


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """What the user asks for."""

    name: str  # of IMAGE_SETS
    data: str
    labels: str  # of imagenet-real: where real.json is
    scratch: Path
    workers: int

    @classmethod
    def of(cls, options: SetOptions) -> SetRequest:
        return cls(
            name=options.set, data=options.data, labels=options.labels, scratch=open_scratch(options.scratch),
            workers=options.workers,
        )  # fmt: skip

    @property
    def image_set(self) -> ImageSet:
        return IMAGE_SETS[self.name]


def open_set(
    asked: SetRequest, store: ObjectStore, members: Sequence[Member], world: World, sides: Collection[int]
) -> ScoredSet:
    """The images of a set. imagenet-c has `open_parts` instead. `sides` as in `open_prepared`.

    Raises UserError, StoreError.
    """
    if asked.name == "imagenet-real":
        return open_real(asked, store, members, world, sides)
    require_data(asked)
    found = in_turn(lambda: open_found(find_files(asked.data, asked.scratch, workers=asked.workers)), world)
    variant = next((one for one in V2_VARIANTS if asked.name == "imagenet-v2" and one in found.identity["name"]), "")
    return scored_set_of(asked, found, f"{asked.name}-{variant}" if variant else asked.name)


def require_data(asked: SetRequest) -> None:
    """Raises UserError where no data is named: a set is never that of a recipe."""
    if not asked.data:
        raise UserError(
            f"--set {asked.name} needs its images: DATA= (or --data) the folder that the files of "
            f"{asked.image_set.source} were unpacked into, or a data set of the hub"
        )


def scored_set_of(asked: SetRequest, found: FoundImages, name: str) -> ScoredSet:
    """Images that lie in class folders, or have a label."""
    labels = labels_of_set(asked.data, asked.image_set, found.classes)[found.labels]
    return _scored(asked, found, name, labels, None)


def _scored(
    asked: SetRequest, found: FoundImages, name: str, labels: Truth, right_answers: RightAnswers | None
) -> ScoredSet:
    images = Originals(found, labels)
    return ScoredSet(
        name=name, prefix=name, identity=found.identity, classes=asked.image_set.wnids, labels=labels,
        open=lambda pixels: images, notes=_notes(asked.image_set, labels, right_answers),
        unreadable=lambda: images.unreadable, right_answers=right_answers,
    )  # fmt: skip


def _notes(image_set: ImageSet, labels: Truth, right_answers: RightAnswers | None) -> tuple[str, ...]:
    """How a set is scored, and what it lacks."""
    said, classes = [], len(np.unique(labels[labels != LEFT_OUT]))
    if len(image_set.wnids) < 1000:
        said.append(f"only the {len(image_set.wnids)} classes of the set can be answered, as its authors do")
    if len(labels) != image_set.images:
        said.append(f"{len(labels):,} images are here, {image_set.images:,} were published ({image_set.source})")
    if right_answers is not None:
        without = sum(not right for right in right_answers)
        said.append(f"an answer is right if it is one of the image's; {without:,} images without any are left out")
    elif classes < len(image_set.wnids):
        said.append(f"{classes:,} of {len(image_set.wnids):,} classes have images")
    return tuple(said)


def open_real(
    asked: SetRequest, store: ObjectStore, members: Sequence[Member], world: World, sides: Collection[int]
) -> ScoredSet:
    """ImageNet's validation images, prepared or as they were published, with the labels of ImageNet-ReaL."""
    if not asked.labels:
        raise UserError(
            f"--set imagenet-real needs --labels FILE: real.json of {asked.image_set.source}; the images are those of "
            "ImageNet's validation"
        )
    lists, data = read_right_answers(Path(asked.labels).expanduser()), asked.data
    if not data or data.startswith("s3://") or (Path(data).expanduser() / INDEX).is_file():
        prepared = open_prepared(data, asked.scratch, store, members, world, asked.workers, sides)
        split = prepared.open(members[0].card.val_resize)
        answers = answers_by_name(data or prepared.name, [split.name(i) for i in range(len(split))], lists)
        labels = _first_answers(answers)
        return replace(
            prepared, name=asked.name, prefix=asked.name, classes=asked.image_set.wnids, labels=labels,
            notes=_notes(asked.image_set, labels, answers), right_answers=answers,
        )  # fmt: skip
    found = in_turn(lambda: _find_val_images(find_files(data, asked.scratch, workers=asked.workers)), world)
    answers = answers_by_name(data, found.names(), lists)
    return _scored(asked, found, asked.name, _first_answers(answers), answers)


def _find_val_images(files: FoundFiles) -> FoundImages:
    """The validation images, which are known by their names, in whatever folders they lie."""
    paths = [path for path in files_of_images(files) if VAL_NAME.search(path.rpartition("/")[2])]
    if not paths:
        return open_found(files)  # parquet files
    labels = np.zeros(len(paths), np.int64)
    return FoundImages(FolderSplit(files.fetch(paths), paths, labels), labels, (), files.identity(paths), lambda: paths)


def _first_answers(answers: RightAnswers) -> Truth:
    return np.array([right[0] if right else LEFT_OUT for right in answers], np.int64)


def open_parts(asked: SetRequest, world: World) -> Iterator[tuple[Corruption, ScoredSet]]:
    """Each corruption and severity of imagenet-c that is there, one after the other. Raises UserError."""
    require_data(asked)
    for part, open_part in in_turn(lambda: find_parts(asked.data, asked.scratch, asked.workers), world).items():
        yield part, scored_set_of(asked, in_turn(open_part, world), f"{asked.name}/{part.name}/{part.severity}")
