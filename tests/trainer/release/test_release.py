"""A release is a folder that torchvision, timm and ONNX load by the lines of its own README."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from tests.checkpoints import RUN
from tests.images import photo
from tests.trainer.release.finished import CONFIG, SMALL, make_store, put_outcome, release
from trainer.contract import Exit
from trainer.data.reading.decode import ResizeMode
from trainer.imagenet import english_names, wnids
from trainer.model_card import ModelCard
from trainer.release.readme import transforms_text
from trainer.release.timm_config import crop_share, timm_config
from trainer.scoring.members import open_member
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


def ours(store: ObjectStore, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = open_member(RUN, store).model(images)
    return logits


def blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def run_block(folder: Path, word: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the lines of the README that import this library, as they are."""
    (block,) = [block for block in blocks(folder) if f"import {word}" in block or f", {word}" in block]
    exec(block, names)
    return names


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_three_lines_of_the_readme_load_the_weights(
    library: str, folder: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    (block,) = [block for block in blocks(folder) if f"{library}." in block and "model =" in block]
    assert len(block.splitlines()) == 3
    with torch.inference_mode():
        logits = run_block(folder, library, {})["model"](images)
    assert (logits - ours(store, images)).abs().max() <= 1e-4


def test_weights_with_blur_pool_are_released_as_programs_that_hold_the_blur(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path, replace(CONFIG, model=replace(CONFIG.model, blur_pool="convs")))
    assert release(store, tmp_path / "tiny", "--forms", "torchvision") == Exit.USER
    assert "computes something else" in capfd.readouterr().err
    assert release(store, tmp_path / "tiny", "--forms", "onnx,program") == Exit.FINISHED
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert names == {"README.md", "model.json", "model.onnx", "model.pt2"}
    monkeypatch.chdir(tmp_path / "tiny")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    onnx = next(block for block in blocks(Path()) if "onnxruntime" in block)
    assert len(onnx.splitlines()) == 3
    found: dict[str, Any] = {"images": images.numpy()}
    exec(onnx, found)
    assert np.abs(found["logits"] - ours(store, images).numpy()).max() <= 1e-3
    exec(next(block for block in blocks(Path()) if "torch.export" in block), found)
    assert (found["model"](images) - ours(store, images)).abs().max() <= 1e-4
    assert "There is no file for timm: trained with --model.blur-pool convs" in Path("README.md").read_text()


def test_timm_prepares_an_image_as_the_lines_for_torchvision_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    timms = run_block(folder, "timm", {})["transform"]
    lines = run_block(folder, "torch\n", {})["transform"]
    for height, width in ((70, 50), (36, 90), (20, 31), (33, 33)):
        image = Image.fromarray(np.asarray(photo(3, height, width)))
        assert timms(image).shape == (3, 32, 32)
        assert (timms(image) - lines(image)).abs().max() <= 1e-5, (height, width)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (32, 32), (14, 9), (235, 224)])
def test_timm_prepares_any_size_and_mode_as_the_lines_for_torchvision_do(
    resize: int, crop: int, mode: ResizeMode
) -> None:
    about = ModelCard(
        network="resnet18", classes=(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), val_resize=resize, val_crop=crop,
        resize_mode=mode,
    )  # fmt: skip
    tensors = {"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.weight": torch.zeros(10, 512)}
    theirs: Any = timm.data
    known = theirs.resolve_data_config({}, pretrained_cfg=timm_config(about, tensors)["pretrained_cfg"])
    found: dict[str, Any] = {}
    exec(transforms_text(about).removeprefix("```python\n").removesuffix("```"), found)
    image = Image.fromarray(np.asarray(photo(4, 150, 71)))
    timms, lines = theirs.create_transform(**known, is_training=False)(image), found["transform"](image)
    assert timms.shape == (3, crop, crop)
    assert (timms - lines).abs().max() <= 1e-5


def test_timm_resizes_to_the_pixel_whatever_the_sizes_are() -> None:
    for resize in range(1, 400):
        for crop in range(1, resize + 1):
            assert math.floor(crop / crop_share(resize, crop)) == resize


def test_timm_knows_the_names_of_the_classes_and_makes_a_new_head(folder: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    config = model.pretrained_cfg
    assert tuple(config["label_names"]) == wnids()[:10]
    assert config["label_descriptions"][wnids()[1]] == english_names()[1]


def test_of_several_seeds_the_best_is_released_and_all_are_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, SMALL)
    put_outcome(store, "job-1", replace(SMALL, seed=1), 0.79)
    put_outcome(store, "job-2", replace(SMALL, seed=2), 0.80)
    forms = ("--forms", "torchvision")
    assert release(store, tmp_path / "tiny", *forms, models=f"job-1,{RUN},job-2") == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert "80.08 ± 1.13 %" in text
    assert [text.index(f"| `{name}` |") for name in (RUN, "job-2", "job-1")] == sorted(
        text.index(f"| `{name}` |") for name in (RUN, "job-1", "job-2")
    )
    assert ModelCard.from_json((tmp_path / "tiny/model.json").read_bytes()).run_id == RUN


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds(
    tmp_path: Path, small_store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    put_outcome(small_store, "longer", replace(SMALL, seed=1, epochs=99))
    assert release(small_store, tmp_path / "tiny", models=f"{RUN},longer") == Exit.USER
    assert "differs from job in more than the seed: epochs" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
