"""Validation against a plain loop over the same images; the models are left as they were found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.images import decode, image_folder, open_split, prepared
from trainer.data.augment.batch import to_input
from trainer.data.reading.decode import center_into
from trainer.data.reading.split import PreparedSplit
from trainer.learning.evaluation import evaluate, hits
from trainer.learning.evaluation import scores as means
from trainer.learning.world import World
from trainer.recipes.config import Config, DataConfig, ModelConfig

WORLD = World(0, 0, 1, torch.device("cpu"))
CONFIG = Config(
    precision="fp32", val_batch_size=4, model=ModelConfig(num_classes=8),
    data=DataConfig(resolution=32, start_resolution=32, val_resize=32, val_crop=32, workers=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    """21 square images of seven classes, stored at the size that validation crops: the whole image is the crop."""
    root = tmp_path_factory.mktemp("evaluate")
    classes = [f"class-{i}" for i in range(7)]
    result = prepared(image_folder(root / "folder", classes=classes, train=1, val=3, side=40), root)
    return open_split(root, result, "val")


def network(outputs: int = 8, seed: int = 0) -> nn.Module:
    """Small, with the layers that behave differently in training."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(294, outputs)
    )  # fmt: skip


def scores(models: dict[str, nn.Module], split: PreparedSplit, config: Config = CONFIG) -> dict[str, float]:
    return means(evaluate(models, split, config, WORLD, lambda images: None), WORLD)


def plain(model: nn.Module, split: PreparedSplit) -> dict[str, float]:
    """One image at a time, in numpy, without anything of the trainer but the stored bytes."""
    model.eval()
    losses, firsts, fives = [], [], []
    mean, std = np.array(CONFIG.data.mean), np.array(CONFIG.data.std)
    for i, label in enumerate(split.labels):
        image = decode(split.jpeg(i))
        left, top = round((image.shape[1] - 32) / 2), round((image.shape[0] - 32) / 2)
        image = (image[top : top + 32, left : left + 32] / 255 - mean) / std
        with torch.no_grad():
            logits = model(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None])[0].double().numpy()
        ranked = np.argsort(-logits)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        firsts.append(ranked[0] == label)
        fives.append(label in ranked[:5])
    model.train()
    return {"val/loss": float(np.mean(losses)), "val/top1": float(np.mean(firsts)), "val/top5": float(np.mean(fives))}


@pytest.fixture(scope="module")
def model(split: PreparedSplit) -> nn.Module:
    """A network that is right about some images and wrong about others."""
    for seed in range(100):
        found = plain(candidate := network(seed=seed), split)
        if 0 < found["val/top1"] < found["val/top5"] < 1:
            return candidate
    raise AssertionError("no such network")


def test_the_scores_are_those_of_a_plain_loop(split: PreparedSplit, model: nn.Module) -> None:
    assert min(decode(split.jpeg(0)).shape[:2]) == 32
    expected = plain(model, split)
    assert scores({"val": model}, split) == pytest.approx(expected, rel=1e-5)
    assert expected["val/top1"] * 21 == pytest.approx(round(expected["val/top1"] * 21))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 21, 10**12])
def test_the_scores_do_not_depend_on_the_batch_size(split: PreparedSplit, model: nn.Module, batch_size: int) -> None:
    counted: list[int] = []
    config = replace(CONFIG, val_batch_size=batch_size)
    found = means(evaluate({"val": model}, split, config, WORLD, counted.append), WORLD)
    reference = scores({"val": model}, split)
    assert found == pytest.approx(reference, rel=1e-5)
    assert found["val/top1"] == reference["val/top1"]
    assert sum(counted) == 21
    assert max(counted) == min(batch_size, 21)


def test_several_models_are_scored_each_by_its_own(split: PreparedSplit) -> None:
    first, second = network(seed=1), network(seed=2)
    both = scores({"val": first, "val_ema": second}, split)
    assert list(both) == [f"{name}/{kind}" for name in ("val", "val_ema") for kind in ("loss", "top1", "top5")]
    assert {k: v for k, v in both.items() if k.startswith("val/")} == scores({"val": first}, split)
    assert {k: v for k, v in both.items() if k.startswith("val_ema/")} == scores({"val_ema": second}, split)
    assert both["val/loss"] != both["val_ema/loss"]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_with_few_classes_the_first_five_are_all(tmp_path: Path, classes: int) -> None:
    names = [f"class-{i}" for i in range(classes)]
    result = prepared(image_folder(tmp_path / "folder", classes=names, train=1, val=2), tmp_path)
    found = scores({"val": network(outputs=classes)}, open_split(tmp_path, result, "val"))
    assert found["val/top5"] == 1.0
    assert found["val/top1"] <= 1.0


def test_hits_count_first_and_first_five() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 0]] * 4)
    assert [int(n) for n in hits(logits, torch.tensor([0, 5, 2, 6]))] == [1, 3]
    assert [int(n) for n in hits(logits, torch.tensor([1, 1, 6, 6]))] == [0, 0]
    assert [int(n) for n in hits(logits[:, :3], torch.tensor([0, 1, 2, 0]))] == [2, 4]


def test_validation_changes_nothing_in_the_models_and_leaves_them_training(split: PreparedSplit) -> None:
    models = {"val": network(seed=1), "val_ema": network(seed=2)}
    before = {name: {k: t.clone() for k, t in model.state_dict().items()} for name, model in models.items()}
    first = scores(models, split)
    for name, model in models.items():
        assert all(module.training for module in model.modules())
        assert all(torch.equal(t, before[name][k]) for k, t in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert scores(models, split) == first  # no dropout, no statistics of the batch
    models["val"](torch.randn(4, 3, 32, 32)).sum().backward()  # it still learns
    assert models["val"].get_submodule("0").weight.grad is not None


class Breaks(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ArithmeticError("in the forward pass")


def test_the_models_return_to_training_when_validation_fails_or_is_ended(split: PreparedSplit) -> None:
    models = {"val": network(), "val_ema": Breaks()}
    with pytest.raises(ArithmeticError):
        scores(models, split)
    assert all(module.training for model in models.values() for module in model.modules())

    def end(images: int) -> None:
        raise TimeoutError("ended early")

    with pytest.raises(TimeoutError):
        evaluate({"val": models["val"]}, split, CONFIG, WORLD, end)
    assert all(module.training for module in models["val"].modules())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_in_a_lower_precision_only_the_forward_pass_is_rounded(
    split: PreparedSplit, model: nn.Module, precision: Literal["bf16", "fp16"], dtype: torch.dtype
) -> None:
    config = replace(CONFIG, precision=precision, val_batch_size=21)
    found = scores({"val": model}, split, config)
    images, labels = torch.empty(21, 32, 32, 3, dtype=torch.uint8), torch.from_numpy(split.labels)
    for i in range(21):
        center_into(images[i].numpy(), split.jpeg(i), 32)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        logits = model(to_input(images, torch.zeros(21, dtype=torch.bool), config.data))
    model.train()
    assert logits.dtype == dtype
    expected = nn.functional.cross_entropy(logits.double(), labels)
    assert found["val/loss"] == pytest.approx(float(expected), rel=1e-6)
    assert found["val/loss"] == pytest.approx(scores({"val": model}, split)["val/loss"], rel=0.02)
