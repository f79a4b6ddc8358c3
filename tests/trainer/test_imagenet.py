"""ImageNet's classes: the same as torchvision's and timm's, and names for people."""

from __future__ import annotations

from importlib.resources import files

import pytest
from torchvision.models import ResNet50_Weights

from trainer.imagenet import class_names, class_wnids, english_names, wnids, wnids_of_a, wnids_of_r


def timm_list(name: str) -> tuple[str, ...]:
    return tuple((files("timm.data._info") / name).read_text().split())


def test_the_1000_classes_have_the_order_of_timm_and_the_names_of_torchvision() -> None:
    assert wnids() == timm_list("imagenet_synsets.txt")
    assert english_names() == tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    assert len(set(wnids())) == len(set(english_names())) == 1000


def test_the_200_classes_of_a_and_of_r_are_those_that_timm_has() -> None:
    assert wnids_of_a() == timm_list("imagenet_a_synsets.txt")
    assert wnids_of_r() == timm_list("imagenet_r_synsets.txt")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["n01443537", "n01440764"], ("goldfish", "tench")),
        (["cat", "dog"], ("cat", "dog")),
        (["n01443537", "n99999999"], ("n01443537", "n99999999")),
        ([], ()),
    ],
)
def test_classes_are_named_in_english_where_all_are_wordnet_ids_of_imagenet(classes, names) -> None:
    assert class_names(classes) == names


def test_wordnet_ids_are_found_by_english_names_and_by_themselves() -> None:
    assert class_wnids(["goldfish", "tench"]) == class_wnids(["n01443537", "n01440764"]) == ("n01443537", "n01440764")
    assert class_wnids(["goldfish", "cat"]) == ()


def test_the_lists_of_synonyms_that_the_hub_has_for_names_are_known_by_their_order() -> None:
    lines = (files("timm.data._info") / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    names = [lemmas[wnid] for wnid in wnids()]
    assert names[0] == "tench, Tinca tinca"
    assert class_wnids(names) == wnids()
    assert class_wnids([*names[1:], names[0]]) == ()
    assert class_wnids(names[:500]) == ()
