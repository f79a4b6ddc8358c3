"""Sweeps: each cell is what that geometry scores alone; chosen on one half of the images and told from the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.scoring.test_views import BASE, CARD, WORLD, member, predicted
from trainer.contract import UserError
from trainer.data.reading import decode
from trainer.data.reading.decode import Picture
from trainer.data.reading.split import PreparedSplit
from trainer.learning.world import World
from trainer.scoring.data import ScoredSet
from trainer.scoring.halves import CHOOSING, SCORING, Halves, split_halves
from trainer.scoring.members import Member
from trainer.scoring.sweep import (
    Sweep,
    SweepCell,
    parse_resolutions,
    run_sweeps,
    sweep_member,
    sweep_pictures,
    sweep_plans,
    sweep_text,
    usual_resolutions,
)
from trainer.scoring.views import ONE_VIEW


def swept(one: Member, split: PreparedSplit, *resolutions: int, world: World = WORLD) -> Sweep:
    pictures = sweep_pictures(one.card, resolutions)
    return sweep_member(one, pictures, split, split.labels, BASE, world, lambda images: None)


def test_every_cell_is_what_that_geometry_scores_alone(split: PreparedSplit, tmp_path: Path) -> None:
    found, scores = swept(member(2), split, 32, 40), set()
    sizes = [(cell.picture.resize, cell.picture.crop, cell.ratio) for cell in found.cells]
    assert sizes == [
        (36, 32, 0.875), (33, 32, 0.95), (32, 32, 1), (45, 40, 0.875), (42, 40, 0.95), (40, 40, 1),
    ]  # fmt: skip
    halves = split_halves(split.labels)
    for cell in found.cells:
        card = replace(CARD, val_resize=cell.picture.resize, val_crop=cell.picture.crop)
        (rows,) = predicted([member(2, card)], split, ONE_VIEW, tmp_path)
        hits = rows.argmax(axis=1) == split.labels
        by_half = [hits[halves == half].mean() for half in (CHOOSING, SCORING)]
        assert (cell.halves.choosing, cell.halves.scoring) == pytest.approx(tuple(by_half))
        assert cell.top1 == pytest.approx(hits.mean())
        scores.add(cell.top1)
    assert len(scores) > 1


def test_all_sizes_are_made_of_one_decoded_image(split: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode_once = list[int](), decode._decode

    def count_decoding(jpeg: Any, *, strict: bool) -> Any:
        decoded.append(len(jpeg))
        return decode_once(jpeg, strict=strict)

    monkeypatch.setattr(decode, "_decode", count_decoding)
    swept(member(), split, 32, 40, 48)
    assert len(decoded) == 15


def test_the_processes_together_count_every_image_once(split: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list[Tensor]()

    def keep(right: Tensor, world: World) -> Tensor:
        parts.append(right.clone())
        return right

    monkeypatch.setattr("trainer.scoring.sweep.all_sum", keep)
    swept(member(2), split, 32, 40)
    for rank in range(2):
        swept(member(2), split, 32, 40, world=World(rank, 0, 2, torch.device("cpu")))
    assert torch.equal(parts[1] + parts[2], parts[0])
    assert all(part.sum() > 0 for part in parts)


def cell(resize: int, crop: int, ratio: float, choosing: float, scoring: float) -> SweepCell:
    return SweepCell(Picture(resize, crop), ratio, (choosing + scoring) / 2, Halves(choosing, scoring))


def test_the_best_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    own, lucky, other = cell(36, 32, 0, 0.5, 0.6), cell(36, 36, 1, 0.7, 0.55), cell(40, 40, 1, 0.6, 0.9)
    found = Sweep((own, lucky, other))
    assert found.best is lucky
    record = found.to_json()
    assert record["best"] == {
        "resolution": 36, "resize": 36, "crop_ratio": 1, "top1": 0.625, "choosing_top1": 0.7,
        "scoring_top1": 0.55,
    }  # fmt: skip
    assert (record["chosen_on"], record["scored_on"]) == ("the choosing half", "the scoring half")
    assert record["own"]["scoring_top1"] == 0.6
    assert Sweep((own, cell(40, 40, 1, 0.5, 0.9))).best is own  # a draw is no reason to change
    (line,) = sweep_text(Sweep((own,)))[-1:]
    assert line == "  on the choosing half nothing is better than the weights' own: 50.00 %"


def test_the_table_says_which_half_chose_and_which_scored(split: PreparedSplit) -> None:
    own, better = cell(40, 32, 0, 0.5, 0.6), [cell(36, 32, 0.875, 0.7, 0.55), cell(33, 32, 0.95, 0.1, 0.2)]
    assert sweep_text(Sweep((own, *better, cell(32, 32, 1, 0.3, 0.3)))) == [
        "top-1 of all images, by test resolution and its ratio to the resized short side",
        "  pixels     0.875      0.95         1",
        "      32   62.50 %   15.00 %   30.00 %",
        "  the weights' own, --resize 40 --crop 32: 55.00 %",
        "  best on the choosing half: --resize 36 --crop 32 (70.00 %, the weights' own 50.00 %)",
        "  on the scoring half, which had no say: 55.00 %, the weights' own 60.00 % (-5.00 points)",
    ]
    own_is_tried = replace(CARD, val_resize=32)
    one = member(2, own_is_tried)
    found = swept(one, split, 32)
    assert [found.cells[0].ratio, len(found.cells)] == [1, 3]
    assert len(found.to_json()["cells"]) == 3
    assert sweep_text(found)[2].startswith("      32 ")


@pytest.mark.parametrize(
    ("trained", "crop", "expected"),
    [
        (176, 224, (152, 176, 200, 224, 248)), (224, 224, (192, 224, 256, 288, 320)), (32, 32, (32, 40, 48, 56)),
        (0, 224, (192, 224, 256, 288, 320)), (160, 256, (136, 160, 184, 208, 232, 256)),
    ],
)  # fmt: skip
def test_the_usual_resolutions_lie_around_the_one_of_training(
    trained: int, crop: int, expected: tuple[int, ...]
) -> None:
    card = replace(CARD, train_pixels=trained, val_crop=crop)
    assert usual_resolutions(card) == parse_resolutions("auto", card) == expected


def test_resolutions_are_typed_with_commas() -> None:
    assert parse_resolutions("160,192, 224,160", CARD) == (160, 192, 224)
    vit = replace(CARD, network="vit_b_16", val_resize=256, val_crop=224)
    assert usual_resolutions(vit) == (224,)
    assert len(sweep_pictures(vit, usual_resolutions(vit))) == 3
    for text in ("", "large", "1.5", "-32", ",".join(map(str, range(32, 45)))):
        with pytest.raises(UserError, match="use auto, or 1 to 12 resolutions in pixels with commas between them"):
            parse_resolutions(text, CARD)


def test_sizes_are_not_chosen_on_the_images_of_a_robustness_set(split: PreparedSplit, tmp_path: Path) -> None:
    scored = ScoredSet(
        name="imagenet-a", prefix="imagenet-a", identity={}, classes=split.classes, labels=split.labels,
        open=lambda pixels: split,
    )  # fmt: skip
    plans = sweep_plans([member()], "32")
    with pytest.raises(UserError, match="chooses sizes on validation images, and imagenet-a has none"):
        run_sweeps(plans, scored, BASE, WORLD, tmp_path)


@pytest.mark.parametrize(
    ("network", "pixels", "message"),
    [
        ("resnet18", 16, "--sweep: resnet18 takes crops of 32 to 2048 px, and this is 16 px"),
        ("resnet18", 4000, "--sweep: resnet18 takes crops of 32 to 2048 px, and this is 4000 px"),
        ("vit_b_16", 256, "--sweep: vit_b_16 takes 224 px and no other size, and this is 256 px"),
    ],
)
def test_resolutions_that_the_network_does_not_take_are_refused(network: str, pixels: int, message: str) -> None:
    card = replace(CARD, network=network, val_resize=256, val_crop=224)
    with pytest.raises(UserError) as refusal:
        sweep_pictures(card, [pixels])
    assert str(refusal.value) == message
