"""`--set` and plain folders: small data in the form of each set, scored as the authors of the set score it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from tests.images import encode, image_folder, photo, prepared
from tests.trainer.scoring.made import CONFIG, environment, prepare_images, put_run, tensors
from trainer.contract import Exit
from trainer.data.format import Copies, read_index
from trainer.evaluate import main
from trainer.imagenet import english_names, wnids, wnids_of_a, wnids_of_r
from trainer.learning.model import build_model

WIDE = replace(CONFIG, model=replace(CONFIG.model, num_classes=1000))
SHOWN = Compose([Resize(32), CenterCrop(32), ToTensor(), Normalize(CONFIG.data.mean, CONFIG.data.std)])


TURNED = np.random.default_rng(0).permutation(1000)  # an order of ImageNet's classes


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Those of nearly all runs: they take as long as the tests."""
    torch.set_num_threads(1)  # as `one_thread` does in a moment: two wait for each other
    return tensors(WIDE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """A store with runs that know ImageNet's classes, by other names or in another order, and one of four classes."""
    made = tmp_path_factory.mktemp("runs")
    index = prepare_images(made)
    turned = weights | {name: weights[name][TURNED] for name in ("fc.weight", "fc.bias")}
    put_run(made, index, "wide", config=WIDE, classes=wnids(), weights=weights)
    put_run(made, index, "enlarging", config=WIDE, classes=wnids(), weights=weights, val_resize=48)
    put_run(made, index, "named", config=WIDE, classes=english_names(), weights=weights)
    put_run(made, index, "turned", config=WIDE, classes=[wnids()[i] for i in TURNED], weights=turned)
    put_run(made, index, "small", weights=weights | {name: weights[name][:4] for name in ("fc.weight", "fc.bias")})
    return made


@pytest.fixture
def root(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A folder for data; the store and the scratch folder are those of all tests."""
    for name, value in environment(runs, "wide").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "store").symlink_to(runs / "store")
    return tmp_path


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> nn.Module:
    """That of the run."""
    model = build_model(WIDE.model, initialise=False).eval()
    model.load_state_dict(weights)
    return model


@torch.inference_mode()
def logits_of(network: nn.Module, number: int, side: int = 50) -> Tensor:
    """(1000,) for photo `number`, as PIL and torchvision show it."""
    return network(SHOWN(Image.open(body_of(number, side)))[None])[0]


def body_of(number: int, side: int = 50) -> Any:
    return io.BytesIO(encode(photo(number, side, side), quality=95))


def put_image(folder: Path, number: int, name: str = "", side: int = 50) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name or f"{number}.jpg")).write_bytes(body_of(number, side).getvalue())


def scores_of(root: Path, *arguments: str) -> dict[str, Any]:
    """What the command finds and writes."""
    assert main([*arguments, "--output", str(root / "found.json")]) == Exit.FINISHED
    (record,) = json.loads((root / "found.json").read_text())["evaluations"]
    return record


@pytest.mark.parametrize(
    ("name", "classes"), [("imagenet-a", wnids_of_a()), ("imagenet-r", wnids_of_r()), ("imagenet-sketch", wnids())]
)
def test_only_the_classes_of_a_set_can_be_answered(
    name: str, classes: Sequence[str], root: Path, network: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = [wnids().index(wnid) for wnid in classes]
    losses = []
    for number in range(6):
        logits = logits_of(network, number)[outputs]
        label = int(logits.argmax() if number % 3 else logits.argmin())  # two of three are right
        put_image(root / "data" / name / classes[label], number)
        losses.append(-float(logits.log_softmax(0)[label]))
    record = scores_of(root, "--set", name, "--data", str(root / "data"))
    assert record["scores"][f"{name}/top1"] == pytest.approx(4 / 6)
    assert record["scores"][f"{name}/loss"] == pytest.approx(np.mean(losses), rel=0.02)
    assert all(key.startswith(f"{name}/") for key in record["scores"])
    assert (root / "store" / "runs" / "wide" / "evaluations" / f"{name}.json").is_file()
    told = capfd.readouterr().out
    assert f"{name}/top1" in told
    assert ("classes of the set can be answered" in told) == (len(classes) == 200)


@pytest.mark.parametrize("variant", ["matched-frequency", "threshold0.7"])
def test_the_folders_of_imagenet_v2_are_class_numbers(variant: str, root: Path, network: nn.Module) -> None:
    folder = root / f"imagenetv2-{variant}-format-val"
    answers = [int(logits_of(network, number).argmax()) for number in range(4)]
    for number, answer in enumerate(answers):
        put_image(folder / str(answer), number)
    for label in (2, 10, 100):  # sorted as text, 10 and 100 come before 2
        put_image(folder / str(label), 50 + label)
    record = scores_of(root, "--set", "imagenet-v2", "--data", str(folder))
    name = "imagenet-v2" if variant == "matched-frequency" else "imagenet-v2-threshold0.7"
    more = sum(int(logits_of(network, 50 + label).argmax()) == label for label in (2, 10, 100))
    assert record["scores"][f"{name}/top1"] == pytest.approx((4 + more) / 7)


def test_a_network_that_knows_names_or_another_order_gets_the_same_score(root: Path, network: nn.Module) -> None:
    put_image(root / "sketch" / wnids()[int(logits_of(network, 1).argmax())], 1)
    put_image(root / "sketch" / wnids()[7], 2)
    found = [
        scores_of(root, name, "--set", "imagenet-sketch", "--data", str(root / "sketch"))["scores"]
        for name in ("wide", "named", "turned")
    ]
    assert found[0]["imagenet-sketch/top1"] >= 0.5
    assert all(scores == pytest.approx(found[0], rel=1e-4) for scores in found)


def right_answers(root: Path, lists: dict[int, list[int]]) -> str:
    """real.json, whose first image has the number 1."""
    (root / "real.json").write_text(json.dumps([lists.get(number, []) for number in range(1, 50_001)]))
    return str(root / "real.json")


def test_an_answer_is_right_if_it_is_one_of_the_labels_of_imagenet_real(
    root: Path, network: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = [int(logits_of(network, number).argmax()) for number in range(4)]
    lists = {1: [(answers[0] + 1) % 1000, answers[0]], 2: [(answers[1] + 1) % 1000], 3: [], 49_999: [answers[3]]}
    for number, image in enumerate((1, 2, 3, 49_999)):
        put_image(root / "val" / ("a" if number % 2 else "b"), number, f"ILSVRC2012_val_{image:08d}.JPEG")
    record = scores_of(
        root, "--set", "imagenet-real", "--data", str(root / "val"), "--labels", right_answers(root, lists)
    )
    assert record["scores"] == {"imagenet-real/top1": pytest.approx(2 / 3)}
    assert record["data"]["images"] == 3
    assert "1 images without any are left out" in capfd.readouterr().out


@pytest.fixture
def validation(root: Path) -> Path:
    """Four images with the names of ImageNet's, prepared with short sides of 32 and of 36 px."""
    folder = image_folder(root / "named", classes=wnids()[:2], train=1, val=2)
    for image, file in enumerate(sorted((folder / "val").rglob("*.JPEG")), 1):
        file.rename(file.with_name(f"ILSVRC2012_val_{image:08d}.JPEG"))
    return root / "store" / prepared(folder, root / "store", copies=Copies((32,), (32, 36), 90)).prefix


def test_imagenet_real_reads_prepared_validation_images(
    root: Path, validation: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lists = {1: list(range(1000)), 2: list(range(1000)), 3: [], 4: list(range(1000))}
    real = ["--set", "imagenet-real", "--data", str(validation), "--labels", right_answers(root, lists)]
    record = scores_of(root, *real)
    assert record["scores"] == {"imagenet-real/top1": 1.0}
    assert record["data"]["images"] == 3
    right_answers(root, {})
    assert main(real) == Exit.USER
    assert "none of the 4 images has a right answer" in capfd.readouterr().err


def test_imagenet_real_stages_the_sizes_that_its_views_want(
    root: Path, validation: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (size,) = [one for one in read_index(validation).splits["val"].sizes if one.short_side == 36]
    shard = validation / size.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1])
    real = ["--set", "imagenet-real", "--data", str(validation), "--labels", right_answers(root, {1: [1]})]
    assert main(real) == Exit.FINISHED
    assert main([*real, "--views", "scales=1,1.1"]) == Exit.USER
    told = capfd.readouterr().err
    assert str(shard) in told
    assert "every shard must be as index.json says" in told


def put_corruption(folder: Path, network: nn.Module, number: int, is_right: bool) -> None:
    logits = logits_of(network, number, 32)  # it is not resized
    put_image(folder / wnids()[int(logits.argmax() if is_right else logits.argmin())], number, side=32)


def test_corruptions_are_scored_part_by_part_and_not_enlarged(
    root: Path, network: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    put_corruption(root / "c" / "fog" / "1", network, 1, True)
    put_corruption(root / "c" / "fog" / "4", network, 2, False)
    put_image(root / "c" / "fog" / "4" / wnids()[3], 4, side=32)
    (root / "c" / "fog" / "4" / wnids()[3] / "4.jpg").write_bytes(b"<html>")
    put_corruption(root / "c" / "noise" / "shot_noise" / "2", network, 3, False)
    put_corruption(root / "c" / "speckle_noise" / "1", network, 1, True)  # of the extra ones, which do not count
    record = scores_of(root, "enlarging", "--set", "imagenet-c", "--data", str(root / "c"))
    found = record["corruptions"]
    assert {name: one["error"] for name, one in found.items()} == {"shot_noise": 1, "fog": 0.5}
    assert found["fog"] == {"error": 0.5, "severities": {"1": 0, "4": 1}, "alexnet_error": 0.819324}
    assert record["scores"] == {"imagenet-c/error": 0.75, "imagenet-c/top1": 0.25}
    assert record["data"]["images"] == 3
    assert record["data"]["left_out"] == [f"fog/4: {wnids()[3]}/4.jpg (it is a web page)"]
    told = capfd.readouterr().out
    assert "3 in 3 of 75 parts" in told
    assert "reduced from 224 px to the crop of 32 px" in told
    assert "imagenet-c/mce    none: it takes all parts" in told


def test_a_folder_of_classes_is_scored_where_it_lies(root: Path, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("cat", "ant", "dog")):
        put_image(root / "pets" / name, number)
    (root / "pets" / "cat" / "broken.jpg").write_bytes(b"<html>")
    (root / "pets" / "LICENSE").write_text("free")
    record = scores_of(root, "small", "--data", str(root / "pets"))
    assert not list((runs / "scratch").glob("datasets/pets"))
    assert record["data"]["images"] == 3
    assert [one.partition(" (")[0] for one in record["data"]["left_out"]] == ["cat/broken.jpg"]
    assert {one["name"]: one["images"] for one in record["classes"]} == {"ant": 1, "cat": 1, "dog": 1}
    told = capfd.readouterr()
    assert (
        "1 of 4 images cannot be read, and are left out of every score: cat/broken.jpg (it is a web page)" in told.err
    )
    assert "3 of 4 classes have images" in told.out
    put_image(root / "pets" / "emu", 9)
    assert main(["small", "--data", str(root / "pets")]) == Exit.USER
    assert "the class folder 'emu' is none of the 4 classes of small" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "imagenet-a"], "--set imagenet-a needs its images: DATA="),
        (["--set", "imagenet-c"], "--set imagenet-c needs its images: DATA="),
        (["--set", "imagenet-c", "--data", "."], "DATA=. has no corruption (looked for folders such as"),
        (["--set", "imagenet-c", "--data", ".", "--resize", "48"], "as its authors do: leave out --resize"),
        (["--set", "imagenet-c", "--data", ".", "--crop", "32"], "as its authors do: leave out --crop"),
        (["--set", "imagenet-real"], "--set imagenet-real needs --labels FILE"),
        (["--set", "imagenet-real", "--labels", "real.json"], "--labels real.json is not real.json of ImageNet-ReaL"),
        (["--set", "imagenet-real", "--labels", "none.json"], "--labels none.json cannot be read"),
        (["small", "--set", "imagenet-r", "--data", "pets"], "small has 4 classes (such as 'ant'), which are not"),
        (["--set", "imagenet-r", "--data", "pets"], "class 'cat' is none of the 200 of imagenet-r"),
        (
            ["--set", "imagenet-r", "--data", "broken"],
            "none of the 1 images of imagenet-r can be read: n01443537/1.jpg",
        ),
    ],
)
def test_what_is_no_set_is_said(
    arguments: list[str], said: str, root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(root / "pets" / "cat", 1)
    (root / "real.json").write_text("[[1], [1000]]")
    (root / "broken" / "n01443537").mkdir(parents=True)
    (root / "broken" / "n01443537" / "1.jpg").write_bytes(encode(photo(1))[:200])
    monkeypatch.chdir(root)
    assert main(arguments) == Exit.USER
    assert said in capfd.readouterr().err
