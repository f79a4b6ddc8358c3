"""Soups: means of weights with statistics of their own, the greedy choice, what is refused, and the file."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.images import CLASSES, image_folder, prepared
from trainer.contract import UserError
from trainer.data.format import read_index
from trainer.learning.model import build_model
from trainer.learning.norms import norms_of
from trainer.learning.world import World
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.recipes.config import Config, DataConfig, ModelConfig
from trainer.scoring.members import Member
from trainer.scoring.selection import choose_greedily
from trainer.scoring.soups import (
    check_ingredients,
    check_soup_file,
    renew_statistics,
    soup_of,
    statistics_config,
    write_soup,
)
from trainer.setup import Data

WORLD = World(0, 0, 1, torch.device("cpu"))
NETWORK = "shufflenet_v2_x0_5"
CARD = ModelCard(
    network=NETWORK, classes=CLASSES, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), val_resize=32, val_crop=32,
    train_pixels=32, recipe="digits", seed=3, run_id="a", step=7, weights="model", data={"name": "folder"},
)  # fmt: skip
BASE = Config(precision="fp32", val_batch_size=4, data=DataConfig(workers=1))

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def random_network() -> nn.Module:
    return build_model(ModelConfig(name=NETWORK, num_classes=len(CLASSES)))


def member(name: str, seed: int = 0, **card: Any) -> Member:
    """Another random network for every seed."""
    torch.manual_seed(seed)
    model = copy.deepcopy(random_network())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=0.1)
    for norm in norms_of(model):
        norm.get_buffer("running_mean").uniform_(-1, 1)
        norm.get_buffer("num_batches_tracked").fill_(10 * (seed + 1))
    return Member(name, model.eval(), replace(CARD, **card))


def state(member: Member) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in member.model.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("soups")
    result = prepared(image_folder(root / "folder", train=4, val=1), root)
    folder = root / result.prefix
    return Data(folder, read_index(folder), DataConfig())


def test_a_soup_has_the_mean_of_the_weights_and_leaves_its_members_as_they_are() -> None:
    members = [member(name, seed) for seed, name in enumerate("abc")]
    before = [state(one) for one in members]
    soup = soup_of(members, "soup")
    for name, tensor in state(soup).items():
        ours = [one[name] for one in before]
        expected = ours[0] if not tensor.is_floating_point() else torch.stack(ours).double().mean(dim=0)
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=1e-7, atol=1e-9)
    for one, old in zip(members, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in state(one).items())
    assert not soup.model.training


def test_a_soup_of_one_is_that_member() -> None:
    alone = member("a")
    assert soup_of([alone], "soup") is alone


def test_the_statistics_of_a_soup_come_from_training_images_and_its_weights_stay(data: Data) -> None:
    soup = soup_of([member("a", 0), member("b", 1)], "soup")
    before = state(soup)
    config = statistics_config(soup.card, Config(), BASE, data.index, WORLD)
    seen: list[int] = []
    assert renew_statistics(soup, data, config, WORLD, seen.append) == 12
    assert sum(seen) == 12, "an epoch of the training images, in batches that are filled"
    after, first = state(soup), next(name for name in before if name.endswith("running_mean"))
    assert {name for name in after if not torch.equal(after[name], before[name]) and "num_batches" not in name} == {
        name for name in after if "running" in name
    }
    assert not soup.model.training

    images: list[Tensor] = []
    conv = soup.model.get_submodule(first.rpartition(".")[0].replace(".1", ".0"))
    assert isinstance(conv, nn.Conv2d)
    handle = conv.register_forward_hook(lambda module, given, out: images.append(out.mean(dim=(0, 2, 3))))
    renew_statistics(soup, data, config, WORLD, seen.append)
    handle.remove()
    torch.testing.assert_close(state(soup)[first], torch.stack(images).mean(dim=0))


def test_a_gpu_that_is_full_while_a_soup_gets_its_statistics_is_told_with_the_batch_to_try(data: Data) -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    soup = member("a")
    soup.model.forward = full
    config = statistics_config(soup.card, Config(), BASE, data.index, WORLD)
    with pytest.raises(UserError, match=r"no memory left for 4 image\(s\) at a time .*: pass --batch-size 2$"):
        renew_statistics(soup, data, config, WORLD, lambda images: None)


def test_the_images_that_statistics_took_are_counted_and_too_few_are_refused(data: Data) -> None:
    soup, five = soup_of([member("a", 0), member("b", 1)], "soup"), replace(BASE, val_batch_size=5)
    config = statistics_config(soup.card, Config(), five, data.index, WORLD)
    assert renew_statistics(soup, data, config, WORLD, lambda images: None) == 10, "two of 12 fill no batch"
    crowd = replace(WORLD, size=13)
    config = statistics_config(soup.card, Config(), five, data.index, crowd)
    with pytest.raises(UserError, match=r"the 12 training image\(s\) of folder are too few .* on 13 processes"):
        renew_statistics(soup, data, config, crowd, lambda images: None)


def test_the_training_images_are_shown_as_in_training_and_normalised_as_the_card_says(data: Data) -> None:
    trained = Config(
        global_batch_size=1024, epochs=16, data=DataConfig(resolution=192, start_resolution=128, crop_scale=(0.35, 1.0))
    )
    config = statistics_config(replace(CARD, train_pixels=160), trained, BASE, data.index, replace(WORLD, size=2))
    assert (config.data.resolution, config.data.start_resolution, config.data.crop_scale) == (160, 160, (0.35, 1.0))
    assert (config.data.mean, config.data.std) == (CARD.mean, CARD.std)
    assert (config.device_batch_size, config.global_batch_size, config.model.num_classes) == (4, 8, 3)
    roomy = statistics_config(CARD, trained, replace(BASE, val_batch_size=256), data.index, WORLD)
    assert roomy.global_batch_size == 12, "all there are"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"bc": 0.6, "bca": 0.9}, "bca"),  # no worse is enough
        ({"bc": 0.7, "bca": 0.65}, "bc"),  # better than a, b and c, but worse than the soup before
        ({"bc": 0.59, "ba": 0.61}, "ba"),
        ({"bc": 0.1, "ba": 0.1}, "b"),
    ],
)
def test_the_greedy_soup_goes_from_the_best_member_down_and_keeps_who_does_no_harm(
    found: dict[str, float], expected: str
) -> None:
    members = [Member(name, nn.Identity(), CARD) for name in "abc"]
    asked: list[str] = []

    def top1(candidate: tuple[Member, ...]) -> float:
        asked.append("".join(one.name for one in candidate))
        return found[asked[-1]]

    chosen = choose_greedily(members, [0.5, 0.6, 0.6], top1)
    assert asked == list(found), "each candidate once, in this order"
    assert "".join(one.name for one in chosen) == expected


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"network": "resnet18"}, "network is shufflenet_v2_x0_5 and resnet18"),
        ({"mean": (0.1, 0.1, 0.1)}, r"mean is \(0.5, 0.5, 0.5\) and \(0.1, 0.1, 0.1\)"),
        ({"val_crop": 64}, "val_crop is 32 and 64"),
        ({"blur_pool": "all"}, "blur_pool is none and all"),
        ({"classes": CLASSES[::-1]}, "other classes"),
    ],
)
def test_members_whose_weights_have_no_mean_are_refused_with_the_reason(other: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_ingredients([member("a"), member("b", **other)])


def test_one_member_alone_or_another_head_is_refused() -> None:
    with pytest.raises(UserError, match="two members or more, not 'a' alone"):
        check_ingredients([member("a")])
    nameless = [member(name, classes=()) for name in "ab"]
    nameless[1].model.get_submodule("fc").weight = nn.Parameter(torch.zeros(9, 1024))
    with pytest.raises(UserError, match="'a' and 'b' make no soup: their tensors have other shapes"):
        check_ingredients(nameless)
    check_ingredients([member("a"), member("b", 1, recipe="other", step=9)])


def test_a_soup_is_written_whole_with_a_card_that_names_what_it_is(tmp_path: Path) -> None:
    members = [member("a", 0), member("b", 1, recipe="mild", data={"name": "folder"})]
    soup, file = soup_of(members, "soup"), tmp_path / "soup.safetensors"
    write_soup(soup, ["a", "b"], str(file))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert all(torch.equal(tensor, state(soup)[name]) for name, tensor in safetensors.torch.load_file(file).items())
    with safetensors.safe_open(file, "pt") as opened:
        about = opened.metadata()
    card = ModelCard.from_json(about[METADATA_KEY])
    assert (about["ingredients"], card.weights, card.classes) == ("a,b", "soup", CLASSES)
    assert (card.recipe, card.run_id, card.step, card.data) == ("", "", 0, {"name": "folder"})


def test_a_file_that_cannot_be_written_is_refused_before_the_soup_is_made(tmp_path: Path) -> None:
    for bad in ("soup.pt", str(tmp_path / "none" / "soup.safetensors"), f"{tmp_path}/x/.safetensors"):
        with pytest.raises(UserError, match="--write"):
            check_soup_file(bad)
    check_soup_file(str(tmp_path / "soup.safetensors"))
    with pytest.raises(UserError, match="cannot be written"):
        write_soup(member("a"), ["a"], str(tmp_path / "none" / "soup.safetensors"))
