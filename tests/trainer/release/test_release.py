"""A release is a folder that torchvision, timm and ONNX load by the lines of its own README."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor

from tests.checkpoints import RUN
from tests.images import photo
from tests.trainer.release.finished import CONFIG, FINGERPRINT, SMALL, STEP, make_store, put_outcome
from trainer.checkpoint.export import export
from trainer.contract import Exit, run_key
from trainer.imagenet import english_names, wnids
from trainer.model_card import ModelCard
from trainer.release.__main__ import main
from trainer.release.timm_config import crop_share
from trainer.scoring.members import open_member
from trainer.store import ObjectStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a run of which the store knows all that it can."""
    store.put(run_key(RUN, "spend.json"), json.dumps({"usd": 3.456, "machines": []}).encode())
    card = open_member(RUN, store).card
    model = {"step": STEP, "weights": "ema", "checkpoint_sha256": card.checkpoint_sha256}
    put_evaluation(store, "tiny-imagenet", model, {"val/top1": 0.81, "val/top5": 0.98, "val/ece": 0.045, "val/loss": 1})
    put_evaluation(store, "imagenet-c", model, {"imagenet-c/top1": 0.4, "imagenet-c/mce": 0.767})
    flips = {"val_tta/top1": 0.82, "val_tta/top5": 0.99}
    put_evaluation(store, "tiny-imagenet-flip", model, flips, views="flip")
    put_evaluation(store, "tiny-imagenet-resize-40", model | {"val_resize": 40, "val_crop": 32}, {"val/top1": 0.7})
    put_evaluation(store, "older", model | {"step": 4}, {"val/top1": 0.123})
    folder = tmp_path_factory.mktemp("releases") / "tiny"
    assert release(store, folder, "--license", "apache-2.0", "--forms", "torchvision") == Exit.FINISHED
    return folder


def put_evaluation(
    store: ObjectStore, file: str, model: dict[str, Any], scores: dict[str, float], views: str = "none"
) -> None:
    """As `make evaluate` does."""
    data = {"name": "tiny-imagenet"}
    record = {"format": 1, "model": model, "data": data, "scores": scores, "views": {"name": views}}
    store.put(run_key(RUN, f"evaluations/{file}.json"), json.dumps(record).encode())


def release(store: ObjectStore, folder: Path, *arguments: str, models: str = RUN) -> int:
    return main([models, "--store", store.uri, "--to", str(folder), *arguments])


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


def test_a_file_of_exported_weights_is_released_with_what_its_card_tells(store: ObjectStore, tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    export(store, RUN, str(file), which="best", step=None, weights="auto")
    assert release(store, tmp_path / "tiny", "--forms", "torchvision", models=str(file)) == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert FINGERPRINT in text
    assert f"`ema`, of step {STEP}" in text
    assert "Nobody has measured these weights" in text
    assert ModelCard.from_json((tmp_path / "tiny/model.json").read_bytes()) == open_member(RUN, store).card


def test_timm_prepares_an_image_as_the_lines_for_torchvision_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    image = Image.fromarray(np.asarray(photo(3, 70, 50)))
    timms = run_block(folder, "timm", {})["transform"](image)
    lines = run_block(folder, "torch\n", {})["transform"](image)
    assert timms.shape == (3, 32, 32)
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


def test_the_card_tells_what_the_store_knows_and_its_first_lines_are_the_hubs(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for told in (
        "| validation, while training | 81.25 % | 98.75 % | - |", "| tiny-imagenet | 81.00 % | 98.00 % | 4.50 % |",
        "| tiny-imagenet, views flip | 82.00 % | 99.00 % |", "| tiny-imagenet, val_resize 40 val_crop 32 | 70.00 % |",
        "| imagenet-c | 40.00 % | - | - | mce 76.70 % |",
        f"`ema`, of step {STEP}", "11,181,642", FINGERPRINT, "`digits`", "c" * 40,
        "| speed of training | 1,234 images/s |", "| hours of training | 1.5 |", "| machines | $3.46 on AWS |",
        "| license | apache-2.0 |",
    ):  # fmt: skip
        assert told in text, told
    assert "12.30 %" not in text  # of other weights
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "timm"
    assert head["datasets"] == ["tiny-imagenet"]
    results = {one["dataset"]["name"]: one["metrics"] for one in head["model-index"][0]["results"]}
    assert results.keys() >= {"tiny-imagenet", "imagenet-c", "tiny-imagenet-views-flip"}
    assert [one["value"] for one in results["tiny-imagenet"]] == [0.81, 0.98]
    card = ModelCard.from_json((folder / "model.json").read_bytes())
    assert (card.run_id, card.step, card.weights) == (RUN, STEP, "ema")


def test_what_nobody_has_measured_or_stated_is_not_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path, SMALL)
    (Path(store.uri) / run_key(RUN, "result.json")).unlink()
    assert release(store, tmp_path / "tiny", "--forms", "torchvision") == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert "license: unknown" in text
    assert "not finished" in text
    assert not re.search(r"\$|hours|images/s|kWh|import timm|library_name", text)
    assert not (tmp_path / "tiny/config.json").exists()
    assert "timm has no network with the tensors of torchvision's squeezenet1_1" in text
    assert "--license" in capfd.readouterr().err


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
    tmp_path: Path, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    put_outcome(store, "longer", replace(CONFIG, seed=1, epochs=99))
    assert release(store, tmp_path / "tiny", models=f"{RUN},longer") == Exit.USER
    assert "differs from job in more than the seed: epochs" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
