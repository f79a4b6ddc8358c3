"""Where a soup's statistics come from: the data that its members were trained on, and nothing that is only scored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.images import image_folder
from tests.trainer.scoring.made import CLASSES, environment, prepare_images, put_run, tensors
from tests.trainer.scoring.test_views import BASE, WORLD, member
from trainer.contract import Exit
from trainer.data.reading.split import PreparedSplit
from trainer.evaluate import main
from trainer.recipes.config import Config
from trainer.scoring import passes
from trainer.scoring.data import ScoredSet
from trainer.scoring.passes import run_passes
from trainer.scoring.selection import Kitchen, make_soup, open_statistics, soup_json, soup_rows
from trainer.scoring.views import ONE_VIEW
from trainer.store import open_store


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """Two runs, whose data is in the store."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    index = prepare_images(tmp_path)
    for seed, name in enumerate("ab"):
        put_run(tmp_path, index, name, weights=tensors(seed=seed))
    return tmp_path


def soup_of_a_and_b(root: Path, name: str, *arguments: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record of their uniform soup, and its weights."""
    made, file = root / f"{name}.json", root / f"{name}.safetensors"
    assert main(["a,b", "--soup", "uniform", "--write", str(file), "--output", str(made), *arguments]) == Exit.FINISHED
    return json.loads(made.read_text())["soup"], safetensors.torch.load_file(file)


def test_statistics_come_from_the_data_of_the_card_whatever_is_scored(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (own,) = (root / "store/datasets").glob("*/*")
    record, plain = soup_of_a_and_b(root, "plain")
    assert (record["statistics_images"], record["statistics_data"]) == (4, record["data"]["name"])
    assert f"of BatchNorm, from 4 training images of {record['data']['name']}" in capfd.readouterr().out
    prepare_images(root, val=5)
    (other,) = (one for one in (root / "store/datasets").glob("*/*") if one != own)
    folder = image_folder(root / "folder", classes=CLASSES, train=1, val=6, side=40) / "val"
    for name, data in (("other", other), ("folder", folder)):
        record, found = soup_of_a_and_b(root, name, "--data", str(data))
        assert record["data"]["images"] in (10, 12)
        assert all(torch.equal(tensor, plain[key]) for key, tensor in found.items())


def test_a_folder_without_training_images_is_refused_before_a_pass_where_those_of_the_card_are_gone(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(root / "folder", classes=CLASSES, train=1, val=4, side=40) / "val"
    shutil.rmtree(root / "store/datasets")
    monkeypatch.setattr(passes, "predict_split", lambda *given: pytest.fail("it was scored"))
    assert main(["a,b", "--soup", "uniform", "--data", str(folder)]) == Exit.USER
    told = capfd.readouterr().err
    assert "--soup takes training images for the statistics of BatchNorm" in told
    assert f"DATA={folder} has none: name prepared data" in told


def test_networks_without_batchnorm_have_a_soup_without_statistics(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "outputs_of", lambda member: 3)
    members = [replace(member(seed), name=name) for seed, name in enumerate("ab")]
    store = open_store(str(tmp_path))
    assert open_statistics(members, "nowhere", False, tmp_path, store, WORLD, 1) is None, "nothing is staged"
    classes = tuple(split.classes)
    scored = ScoredSet(
        name="made", prefix="val", identity={}, classes=classes, labels=split.labels, open=lambda pixels: split
    )
    answers = run_passes(members, scored, BASE, WORLD, tmp_path)
    soup = make_soup("uniform", answers, Kitchen(scored, None, Config(), BASE, WORLD, tmp_path, ONE_VIEW))
    assert soup.chosen == ("a", "b")
    assert soup_json(soup, 0.5)["statistics_images"] == 0
    assert not any(name == "statistics" for name, _ in soup_rows(soup, 0.5))
