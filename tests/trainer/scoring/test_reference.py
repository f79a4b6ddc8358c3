"""Evaluation beside what everybody does: PIL opens the original file, torchvision resizes, crops and normalises it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.images import encode, photo, prepared
from tests.trainer.scoring.made import CLASSES, CONFIG, environment, put_run, tensors
from trainer.contract import Exit
from trainer.evaluate import main
from trainer.learning.model import build_model

SIZES = ((61, 47), (33, 90), (64, 64), (120, 41), (41, 41), (77, 78))  # none is larger than what is stored


def drawn(number: int) -> Image.Image:
    """Photographs with borders, greys among them, of odd sizes."""
    image = photo(number, *SIZES[number % len(SIZES)])
    if number % 3 == 0:
        image = ImageOps.expand(image, border=(number % 7, 3, 2, number % 5), fill=(255, 255, 255))
    return image.convert("L") if number % 4 == 0 else image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 1), ("val", 6)):
        for label, name in enumerate(CLASSES):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                file = tmp_path / "images" / split / name / f"{name}_{i}.JPEG"
                file.write_bytes(encode(drawn(100 * label + i), quality=92))
    return tmp_path / "images"


def test_the_same_images_are_right_and_wrong_as_in_a_plain_loop_of_pil_and_torchvision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    config = replace(CONFIG, data=replace(CONFIG.data, val_resize=37, val_crop=32, val_side=128))
    store = put_run(tmp_path, prepared(folder, tmp_path / "store", 128).index, config=config)
    assert main([]) == Exit.FINISHED
    model = build_model(config.model, initialise=False).eval()
    model.load_state_dict(tensors())
    reference = transforms.Compose(
        [
            transforms.Resize(37), transforms.CenterCrop(32), transforms.ToTensor(),
            transforms.Normalize(config.data.mean, config.data.std),
        ]
    )  # fmt: skip
    images = ImageFolder(folder / "val", reference)
    with torch.no_grad():
        logits = torch.cat([model(image[None]) for image, _ in images])
    wrong = {
        Path(file).name: (CLASSES[label], CLASSES[answer])
        for (file, label), answer in zip(images.samples, logits.argmax(1).tolist(), strict=True) if answer != label
    }  # fmt: skip
    assert 0 < len(wrong) < len(images) == 24
    assert len(set(logits.argmax(1).tolist())) > 1
    record = json.loads(next((tmp_path / "store/runs/made/evaluations").glob("*.json")).read_text())
    found = {Path(one["file"]).name: (one["label"], one["answer"]) for one in record["mistakes"]}
    assert found == wrong
    assert record["scores"]["val/top1"] == (24 - len(wrong)) / 24
    labels = torch.tensor([label for _, label in images.samples])
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert record["scores"]["val/loss"] == pytest.approx(loss, rel=0.02), "a level of a pixel is the most that differs"
    assert store.get("runs/made/evaluations/images.jpg")[:2] == b"\xff\xd8"
