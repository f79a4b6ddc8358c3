"""`python -m trainer.evaluate` with views, sweeps and other sizes: what it prints and stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.scoring.made import environment, prepare_images, put_run
from trainer.contract import Exit
from trainer.evaluate import main
from trainer.store import ObjectStore


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def store(root: Path) -> ObjectStore:
    return put_run(root, prepare_images(root, side=40))


def stored(store: ObjectStore) -> set[str]:
    """The names of the evaluations. Each is a record, with a picture of its mistakes beside it."""
    files = {info.key.rpartition("/")[2] for info in store.list("runs/made/evaluations/")}
    records = {name for name in files if name.endswith(".json")}
    assert {name.removesuffix(".jpg") + ".json" for name in files - records} <= records
    return records


def test_scores_of_views_have_names_of_their_own(
    root: Path, store: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    records = {}
    for views in ("none", "flip", "scales=1,1.25"):
        assert main(["--views", views, "--output", str(root / "all.json")]) == Exit.FINISHED
        (records[views],) = json.loads((root / "all.json").read_text())["evaluations"]
    assert all(name.startswith("val/") for name in records["none"]["scores"])
    for views in ("flip", "scales=1,1.25"):
        assert all(name.startswith("val_tta/") for name in records[views]["scores"])
        assert records[views]["views"] == {"name": views, "count": 2, "averaged": "probabilities"}
        assert records[views]["scores"]["val_tta/loss"] != records["none"]["scores"]["val/loss"]
    name = records["none"]["data"]["name"]
    assert stored(store) == {f"{name}.json", f"{name}-flip.json", f"{name}-scales-1-1.25.json"}
    told = capfd.readouterr().out
    assert "the mean probability of 2 views (flip)" in told
    assert "val_tta/top1" in told


def test_a_sweep_stands_beside_the_plain_scores(
    root: Path, store: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--sweep", "32,48", "--output", str(root / "all.json")]) == Exit.FINISHED
    (record,) = json.loads((root / "all.json").read_text())["evaluations"]
    sweep = record["sweep"]
    assert sweep["own"]["top1"] == record["scores"]["val/top1"]
    assert [(cell["resolution"], cell["crop_ratio"]) for cell in sweep["cells"]] == [
        (32, 0.875), (32, 0.95), (32, 1.0), (48, 0.875), (48, 0.95), (48, 1.0)
    ]  # fmt: skip
    told = capfd.readouterr()
    assert "top-1 of all images, by test resolution" in told.out
    assert "on the choosing half" in told.out
    assert "is stored with 40 px, so what is resized to more, up to 54 px, is enlarged" in told.err


def test_other_sizes_are_scored_and_stored_beside_the_plain_ones(root: Path, store: ObjectStore) -> None:
    for sizes in ([], ["--resize", "40"], ["--resize", "40", "--crop", "36"]):
        assert main([*sizes, "--output", str(root / "all.json")]) == Exit.FINISHED
    (record,) = json.loads((root / "all.json").read_text())["evaluations"]
    assert (record["model"]["val_resize"], record["model"]["val_crop"]) == (40, 36)
    name = record["data"]["name"]
    assert stored(store) == {f"{name}.json", f"{name}-resize-40.json", f"{name}-resize-40-crop-36.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "mirror"], "--views mirror is unknown: it must be none, flip, five-crop, ten-crop"),
        (["--views", "scales=0.5,1"], "takes crops of 32 to 2048 px, and this is 16 px"),
        (["--sweep", "16"], "--sweep: shufflenet_v2_x0_5 takes crops of 32 to 2048 px, and this is 16 px"),
        (["--sweep", "large"], "--sweep large: use auto, or 1 to 12 resolutions"),
        (["--crop", "40"], "--resize 0 --crop 40: a crop of 40 px does not fit into an image whose short side is "
         "resized to 32 px: use --crop 32 at most, or --resize 40 at least"),
        (["--crop", "-3"], "--resize 0 --crop -3: shufflenet_v2_x0_5 takes crops of 32 to 2048 px, and this is -3 px"),
        (["--views", "five-crop", "--resize", "40", "--crop", "48"], "a crop of 48 px does not fit into an image"),
    ],
)  # fmt: skip
def test_sizes_and_views_that_cannot_be_are_refused_before_a_pass(
    store: ObjectStore, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(options) == Exit.USER
    assert message in capfd.readouterr().err
    assert not stored(store)
