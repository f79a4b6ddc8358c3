"""Views: what a plain loop over the same pictures gives, each image decoded once; what is typed wrongly is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import hflip

from trainer.contract import UserError
from trainer.data.reading import decode
from trainer.data.reading.decode import Picture, ResizeMode, pictures_into
from trainer.data.reading.loader import Loader
from trainer.data.reading.split import PreparedSplit
from trainer.learning.evaluation import evaluate
from trainer.learning.evaluation import scores as means
from trainer.learning.world import World
from trainer.model_card import ModelCard
from trainer.recipes.config import Config, DataConfig
from trainer.scoring import forward
from trainer.scoring.forward import open_batches, predict_split
from trainer.scoring.members import Member
from trainer.scoring.predictions import Predictions
from trainer.scoring.probabilities import config_for
from trainer.scoring.views import Views, check_pictures, parse_views, with_sizes

WORLD = World(0, 0, 1, torch.device("cpu"))
BASE = Config(precision="fp32", val_batch_size=4, data=DataConfig(workers=2))
CARD = ModelCard(
    network="resnet18", classes=("a", "b", "c"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), val_resize=36, val_crop=32
)


def member(seed: int = 0, card: ModelCard = CARD) -> Member:
    """A network that takes any size, sees left and right, and is sure of what it says."""
    torch.manual_seed(seed)
    head = nn.Linear(16, 3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        head,
    )  # fmt: skip
    with torch.no_grad():
        head.weight *= 50
    return Member(f"seed {seed}", model.eval(), card)


def predicted(members: Sequence[Member], split: PreparedSplit, views: Views, folder: Path) -> list[np.ndarray]:
    """(images, classes) log-probabilities of each member."""
    found = {one: Predictions(folder / str(number), len(split), 3) for number, one in enumerate(members)}
    counted: list[int] = []
    predict_split(found, split, BASE, WORLD, counted.append, views)
    assert sum(counted) == len(split)
    return [np.concatenate([rows for _, rows in predictions.chunks()]) for predictions in found.values()]


def plain_loop(one: Member, split: PreparedSplit, pictures: Sequence[Picture], *, mirrored: bool) -> np.ndarray:
    """(images, views, classes) logits, one view at a time."""
    found = []
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (CARD.mean, CARD.std))
    for image in range(len(split)):
        outs = [np.empty((picture.crop, picture.crop, 3), np.uint8) for picture in pictures]
        pictures_into(outs, split.jpeg(image), pictures)
        shown = [torch.tensor((out.transpose(2, 0, 1) / 255 - mean) / std, dtype=torch.float32) for out in outs]
        shown += [hflip(picture) for picture in shown] if mirrored else []
        with torch.no_grad():
            found.append(np.stack([one.model(picture[None])[0].double().numpy() for picture in shown]))
    return np.stack(found)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).log_softmax(dim=-1).numpy()


FIVE = ["top-left", "top-right", "bottom-left", "bottom-right", "centre"]
EXPECTED: list[tuple[str, list[Any], bool]] = [
    ("none", [Picture(36, 32)], False),
    ("flip", [Picture(36, 32)], True),
    ("five-crop", [Picture(36, 32, place) for place in FIVE], False),  # type: ignore[arg-type]
    ("ten-crop", [Picture(36, 32, place) for place in FIVE], True),  # type: ignore[arg-type]
    ("scales=1,1.25,1.5", [Picture(36, 32), Picture(45, 40), Picture(54, 48)], False),
]


@pytest.mark.parametrize(("typed", "pictures", "mirrored"), EXPECTED, ids=[typed for typed, _, _ in EXPECTED])
def test_the_probabilities_of_the_views_are_averaged(
    split: PreparedSplit, tmp_path: Path, typed: str, pictures: list[Picture], mirrored: bool
) -> None:
    views, one = parse_views(typed), member()
    (found,) = predicted([one], split, views, tmp_path)
    logits = plain_loop(one, split, pictures, mirrored=mirrored)
    assert logits.shape == (15, views.count, 3)
    expected = np.log(np.exp(log_softmax(logits)).mean(axis=1))
    assert found == pytest.approx(expected, abs=2e-4)
    assert np.exp(found).sum(axis=1) == pytest.approx(1, abs=1e-5)
    if views.count > 1:
        assert np.abs(found - log_softmax(logits.mean(axis=1))).max() > 0.01  # not logits
        assert np.abs(found - log_softmax(logits[:, 0])).max() > 0.01  # not one view


def test_without_views_the_scores_are_those_of_validation_in_training(split: PreparedSplit, tmp_path: Path) -> None:
    one = member()
    (found,) = predicted([one], split, parse_views("none"), tmp_path)
    config = config_for(CARD, BASE)
    expected = means(evaluate({"val": one.model}, split, config, WORLD, lambda images: None), WORLD)
    losses = -found[np.arange(len(found)), split.labels]
    assert losses.mean() == pytest.approx(expected["val/loss"], rel=1e-5)
    assert (found.argmax(axis=1) == split.labels).mean() == expected["val/top1"]


def test_each_image_is_decoded_once_whatever_the_views_and_the_members(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode_once = list[int](), decode._decode

    def count_decoding(jpeg: Any, *, strict: bool) -> np.ndarray:
        decoded.append(len(jpeg))
        return decode_once(jpeg, strict=strict)

    monkeypatch.setattr(decode, "_decode", count_decoding)
    first, second = predicted([member(1), member(2)], split, parse_views("ten-crop"), tmp_path)
    assert len(decoded) == 15
    assert (first != second).any()


def test_a_batch_takes_the_memory_of_its_pictures_and_no_more(
    split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()

    def watched(*args: Any, **more: Any) -> Loader:
        loader = Loader(*args, **more)
        taken.extend(slot.pixels.nbytes for slot in loader.slots)
        return loader

    monkeypatch.setattr("trainer.scoring.forward.Loader", watched)
    with open_batches([Picture(32, 32), Picture(96, 96)], split, BASE, WORLD):
        pass
    assert taken == [4 * 3 * (32**2 + 96**2)] * Loader.DEPTH


def test_batches_are_smaller_where_many_pictures_would_fill_the_memory(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = predicted([member()], split, parse_views("five-crop"), tmp_path)
    sizes = list[int]()

    def watched(*args: Any, max_images: int, **more: Any) -> Loader:
        sizes.append(max_images)
        return Loader(*args, max_images=max_images, **more)

    monkeypatch.setattr("trainer.scoring.forward.Loader", watched)
    monkeypatch.setattr(forward, "MOST_BATCH_BYTES", 3 * 5 * 32 * 32 * 3 - 1)
    (found,) = predicted([member()], split, parse_views("five-crop"), tmp_path)
    assert sizes == [2]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_filter_of_a_card_is_the_one_that_resizes(split: PreparedSplit, tmp_path: Path, mode: ResizeMode) -> None:
    one = member(card=replace(CARD, resize_mode=mode))
    (found,) = predicted([one], split, Views(), tmp_path)
    logits = plain_loop(one, split, [Picture(36, 32, mode=mode)], mirrored=False)
    assert found == pytest.approx(log_softmax(logits[:, 0]), abs=2e-4)


@pytest.mark.parametrize(
    ("typed", "name", "count"),
    [
        ("none", "none", 1), ("flip", "flip", 2), ("five-crop", "five-crop", 5), ("ten-crop", "ten-crop", 10),
        ("scales 0.9 1 1.1", "scales=0.9,1,1.1", 3), ("scales=0.9,1.0", "scales=0.9,1", 2),
        ("scales 0.9,1,1.1", "scales=0.9,1,1.1", 3),
    ],
)  # fmt: skip
def test_views_are_typed_by_name(typed: str, name: str, count: int) -> None:
    views = parse_views(typed)
    assert (views.name, views.count, views.is_plain) == (name, count, typed == "none")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "--views  is unknown: it must be none, flip, five-crop, ten-crop, or scales=0.9,1,1.1"),
        ("mirror", "--views mirror is unknown"),
        ("flip 2", "--views flip 2 is unknown"),
        ("scales", "has 0 scales: type 2 to 10 different ones"),
        ("scales=1", "has 1 scales"),
        ("scales=1,1", "has 2 scales: type 2 to 10 different ones"),
        ("scales=1,big", "'big' is not a scale: use numbers from 0.1 to 10"),
        ("scales=1,nan", "'nan' is not a scale"),
        ("scales=1,-1", "'-1' is not a scale"),
    ],
)
def test_views_that_do_not_exist_are_refused(typed: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_views(typed)
    assert message in str(refusal.value)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"val_resize": 28}, "five-crop", "--views five-crop: a crop of 32 px does not fit into an image whose short "
     "side is resized to 28 px: use --crop 28 at most, or --resize 32 at least"),
    ({}, "scales=0.5,1", "--views scales=0.5,1: resnet18 takes crops of 32 to 2048 px, and this is 16 px"),
    ({"network": "vit_b_16", "val_resize": 256, "val_crop": 224}, "scales=1,1.1",
     "vit_b_16 takes 224 px and no other size, and this is 246 px"),
    ({"val_resize": 2000}, "scales=1,2.1", "images are resized to 4096 px at most, and this is 4200 px"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "typed", "message"), REFUSED)
def test_pictures_that_a_network_or_an_image_does_not_take_are_refused(
    changes: dict[str, Any], typed: str, message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        parse_views(typed).pictures(replace(CARD, **changes))
    assert message in str(refusal.value)


def test_sizes_of_a_card_that_do_not_fit_together_are_refused_with_or_without_options() -> None:
    small = replace(CARD, val_resize=24)
    with pytest.raises(UserError, match=r"^a crop of 32 px does not fit .* resized to 24 px: use --crop 24 at most"):
        with_sizes(small, 0, 0)
    assert with_sizes(small, 36, 0) == replace(small, val_resize=36)
    with pytest.raises(UserError, match=r"^--resize 28 --crop 0: a crop of 32 px does not fit"):
        with_sizes(small, 28, 0)


def test_what_a_card_says_of_its_own_weights_is_true() -> None:
    large = replace(CARD, network="vit_b_16", val_resize=384, val_crop=384)
    check_pictures(Views().pictures(large), large)
