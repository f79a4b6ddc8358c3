"""The robustness sets: which class of a set a folder or a row means, and which output of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.imagenet import english_names, wnids, wnids_of_a, wnids_of_r
from trainer.model_card import ModelCard
from trainer.scoring.image_sets import IMAGE_SETS, labels_of_set, outputs_for_set
from trainer.scoring.members import Member


class Counting(nn.Module):
    """Answers the number of each output, so that one sees which were taken."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(1, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(len(self.fc.weight), dtype=torch.float32).expand(len(images), -1)


def member(classes: Sequence[str], outputs: int = 1000) -> Member:
    card = ModelCard(
        network="resnet18", classes=tuple(classes), mean=(0, 0, 0), std=(1, 1, 1), val_resize=32, val_crop=32
    )
    return Member("some", Counting(outputs), card)


def test_folders_called_by_numbers_are_class_numbers_and_not_their_order_as_text() -> None:
    names = ["0", "1", "10", "2", "999"]  # as sorted folders are listed
    assert labels_of_set("v2", IMAGE_SETS["imagenet-v2"], names).tolist() == [0, 1, 10, 2, 999]


def test_labels_of_a_set_of_200_are_places_in_its_own_classes() -> None:
    image_set = IMAGE_SETS["imagenet-a"]
    assert labels_of_set("a", image_set, ["n01531178", "n01498041"]).tolist() == [1, 0]
    names = [english_names()[wnids().index(wnid)] for wnid in wnids_of_a()]
    assert labels_of_set("a", image_set, names).tolist() == list(range(200))


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("imagenet-a", ["n01498041", "n01440764"], "class 'n01440764' is none of the 200 of imagenet-a (1 such of 2)"),
        ("imagenet-a", ["0", "1"], "class '0' is none of the 200"),  # of 200, or of 1,000? nobody says
        ("imagenet-v2", ["0", "1000"], "class 1000 is out of range: imagenet-v2 has the classes 0 to 999"),
        ("imagenet-sketch", ["cats", "dogs"], "class 'cats' is none of the 1,000 of imagenet-sketch"),
    ],
)
def test_classes_that_a_set_does_not_have_are_refused(name: str, classes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        labels_of_set("x", IMAGE_SETS[name], classes)


def answers(found: Member) -> list[int]:
    return found.model(torch.zeros(1, 3, 1, 1))[0].int().tolist()


@pytest.mark.parametrize("classes", [wnids(), english_names(), (), tuple(map(str, range(1000)))], ids=len)
def test_a_network_answers_a_set_of_200_with_the_outputs_of_those_classes_alone(classes: tuple[str, ...]) -> None:
    found = outputs_for_set(member(classes), IMAGE_SETS["imagenet-r"])
    assert found.card.classes == wnids_of_r()
    assert answers(found) == [wnids().index(wnid) for wnid in wnids_of_r()]


def test_outputs_in_another_order_are_found_by_name() -> None:
    found = outputs_for_set(member(wnids()[::-1]), IMAGE_SETS["imagenet-sketch"])
    assert answers(found) == list(range(999, -1, -1))


def test_a_network_whose_order_nobody_knows_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    outputs_for_set(member(()), IMAGE_SETS["imagenet-v2"])
    assert "does not say the names of its 1,000 classes" in capfd.readouterr().err
    outputs_for_set(member(english_names()), IMAGE_SETS["imagenet-v2"])
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cats", "dogs"), "some has 2 classes (such as 'cats'), which are not ImageNet's: imagenet-a takes"),
        (wnids()[:100], "some has no output for"),
        (wnids()[1:], "some has no output for n01440764 (1 of the 1,000 classes of imagenet-sketch are missing)"),
    ],
)
def test_weights_without_the_classes_of_a_set_are_refused(classes: tuple[str, ...], message: str) -> None:
    image_set = IMAGE_SETS["imagenet-sketch" if len(classes) == 999 else "imagenet-a"]
    with pytest.raises(UserError, match=re.escape(message)):
        outputs_for_set(member(classes, len(classes)), image_set)


def test_a_network_with_more_outputs_than_its_card_has_names_is_refused() -> None:
    with pytest.raises(UserError, match="some has 1,001 outputs, and its card names 1,000 classes"):
        outputs_for_set(member(wnids(), 1001), IMAGE_SETS["imagenet-a"])
