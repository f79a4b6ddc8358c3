"""ImageNet-ReaL: several right answers for an image of ImageNet's validation, as five experts and others found them.

Beyer et al., "Are we done with ImageNet?" (arXiv:2006.07159). The labels are real.json of
github.com/google-research/reassessed-imagenet: for each validation image a list of ImageNet's classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.contract import UserError
from trainer.imagenet import wnids
from trainer.scoring.predictions import LEFT_OUT, Predictions, Truth

VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
VAL_IMAGES = 50_000

RightAnswers = list[tuple[int, ...]]  # for each image; () where nobody found one


def read_right_answers(file: Path) -> RightAnswers:
    """Of the 50,000 validation images, by their number. Raises UserError if this is not real.json."""
    try:
        lists = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--labels {file} cannot be read ({error}): it must be real.json of ImageNet-ReaL") from error
    of_lists = isinstance(lists, list) and all(isinstance(one, list) for one in lists)
    if not of_lists or len(lists) != VAL_IMAGES or not all(_is_class(label) for one in lists for label in one):
        raise UserError(
            f"--labels {file} is not real.json of ImageNet-ReaL, which has {VAL_IMAGES:,} lists of numbers from 0 to "
            f"{len(wnids()) - 1}: take it from github.com/google-research/reassessed-imagenet"
        )
    return [tuple(one) for one in lists]


def _is_class(label: object) -> bool:
    return isinstance(label, int) and 0 <= label < len(wnids())


def answers_by_name(data: str, names: Sequence[str], answers: RightAnswers) -> RightAnswers:
    """The right answers of these images. Raises UserError where a name says no number, or two say the same."""
    found: RightAnswers = []
    first: dict[int, str] = {}
    for name in names:
        match = VAL_NAME.search(name)
        if match is None or not 1 <= int(match[1]) <= len(answers):
            raise UserError(
                f"DATA={data}: the name of {name} does not say which validation image it is: imagenet-real takes the "
                "images of ImageNet's validation under their own names, ILSVRC2012_val_00000001.JPEG and so on"
            )
        if (other := first.setdefault(int(match[1]), name)) is not name:
            raise UserError(f"DATA={data}: {other} and {name} are the same image: give a folder that has each once")
        found.append(answers[int(match[1]) - 1])
    return found


def likeliest_labels(predictions: Predictions, answers: RightAnswers) -> Truth:
    """Of the right answers of each image the one that is stated as the most probable; LEFT_OUT without any.

    So the first answer is right if it is in the list.
    """
    labels = np.full(len(answers), LEFT_OUT, np.int64)
    for first, rows in predictions.chunks():
        for i, row in enumerate(rows, first):
            if right := answers[i]:
                labels[i] = right[int(np.argmax(row[list(right)]))]
    return labels
