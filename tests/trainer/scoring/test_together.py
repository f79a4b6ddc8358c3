"""Several models on one command line: one pass, an ensemble, a soup, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.images import decode, encode, photo
from tests.trainer.scoring.made import CLASSES, CONFIG, environment, prepare_images, put_run, tensors
from trainer.contract import Exit
from trainer.data.format import read_index
from trainer.data.reading.split import PreparedSplit
from trainer.evaluate import main
from trainer.learning.model import build_model
from trainer.model_card import ModelCard
from trainer.scoring import passes, speed, sweep
from trainer.scoring.forward import predict_split
from trainer.scoring.halves import CHOOSING, SCORING, split_halves
from trainer.scoring.members import Member
from trainer.scoring.memory import fitting_groups, weight_bytes
from trainer.scoring.predictions import Predictions

NAMES = "abc"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with random weights on the same 16 images."""
    torch.set_num_threads(1)  # as `one_thread` does in a moment: two wait for each other
    made = tmp_path_factory.mktemp("together")
    index = prepare_images(made)
    for seed, name in enumerate(NAMES):
        put_run(made, index, name, weights=weights(seed))
    put_run(made, index, "other", weights=weights(0), classes=CLASSES[::-1])
    return made


@cache
def weights(seed: int) -> dict[str, Tensor]:
    return tensors(seed=seed)


@pytest.fixture(autouse=True)
def surroundings(root: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    for name, value in (environment(root) | {"RUNS": "a,b,c"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(speed, "TRIES", 1)


def score(root: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--output", str(root / "all.json")]) == Exit.FINISHED
    found: dict[str, Any] = json.loads((root / "all.json").read_text())
    return found


def val_split(root: Path) -> PreparedSplit:
    folder = next((root / "store/datasets").glob("*/*"))
    return PreparedSplit(folder, read_index(folder), "val", 32)


def probabilities(split: PreparedSplit, model: nn.Module) -> np.ndarray:
    """(N, classes) float64, one image at a time."""
    mean, std = np.array(CONFIG.data.mean), np.array(CONFIG.data.std)
    found = []
    for i in range(len(split)):
        image = decode(split.jpeg(i))
        left, top = round((image.shape[1] - 32) / 2), round((image.shape[0] - 32) / 2)
        pixels = (image[top : top + 32, left : left + 32] / 255 - mean) / std
        with torch.no_grad():
            logits = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])[0].double()
        found.append(logits.softmax(0).numpy())
    return np.stack(found)


def test_an_ensemble_scores_the_mean_of_probabilities_and_decodes_each_image_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read: list[int] = []
    jpeg = PreparedSplit.jpeg

    def read_image(split: PreparedSplit, i: int) -> np.ndarray:
        read.append(i)
        return jpeg(split, i)

    def predict(*given: Any) -> None:  # what is read for the report comes later
        with monkeypatch.context() as patch:
            patch.setattr(PreparedSplit, "jpeg", read_image)
            predict_split(*given)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "predict_split", predict)
        found = score(root)
    split = val_split(root)
    assert sorted(read) == list(range(len(split))) == list(range(16))
    each = []
    for seed in range(len(NAMES)):
        model = build_model(CONFIG.model, initialise=False).eval()
        model.load_state_dict(weights(seed))
        each.append(probabilities(split, model))
    mean, answers = np.mean(each, axis=0), [one.argmax(axis=1) for one in each]
    right = mean.argmax(axis=1) == split.labels
    scores = found["ensemble"]["scores"]
    assert scores["val_ensemble/top1"] == right.mean()
    assert scores["val_ensemble/loss"] == pytest.approx(-np.log(mean[range(16), split.labels]).mean(), rel=1e-4)
    assert not any(name.startswith("val/") for name in scores)
    agreement = found["ensemble"]["agreement"]
    assert agreement["all"] == np.mean([len(set(column)) == 1 for column in np.stack(answers).T.tolist()])
    assert [one["members"] for one in agreement["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert [one["share"] for one in agreement["pairs"]] == [
        (answers[a] == answers[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    hits, halves = [one == split.labels for one in answers], split_halves(split.labels)
    scoring = halves == SCORING
    best = max(range(3), key=lambda number: hits[number][halves == CHOOSING].mean())
    gain = found["ensemble"]["gain"]
    assert gain["best_member"] == NAMES[best]
    assert gain["gain"] == pytest.approx(right[scoring].mean() - hits[best][scoring].mean())
    told = capfd.readouterr().out
    assert "the best member on the choosing half" in told
    assert "all give the same class for" in told


def test_one_model_has_no_ensemble(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(score(root, "a")) == {"evaluations"}
    assert "val_ensemble" not in capfd.readouterr().out


def test_members_that_do_not_fit_together_take_turns_and_score_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = score(root)
    shown: list[int] = []

    def predict_few(members: dict[Member, Predictions], *others: Any) -> None:
        shown.append(len(members))
        predict_split(members, *others)

    monkeypatch.setattr(passes, "predict_split", predict_few)
    monkeypatch.setattr(passes, "free_memory", lambda device: 0)
    assert score(root)["ensemble"]["scores"] == once["ensemble"]["scores"]
    assert shown == [1, 1, 1]


def test_members_are_on_the_device_together_as_far_as_they_fit_with_room_for_their_work() -> None:
    card = ModelCard(
        network="resnet18", classes=(), mean=(0.5,) * 3, std=(0.5,) * 3, val_resize=32, val_crop=32,
    )  # fmt: skip
    members = a, b, c = [Member(name, nn.Linear(10, 10, bias=False), card) for name in "abc"]
    assert weight_bytes(a) == 400
    assert list(fitting_groups(members, lambda: float("inf"))) == [(a, b, c)]
    assert list(fitting_groups(members, lambda: 2 * 800)) == [(a, b), (c,)]
    assert list(fitting_groups(members, lambda: 0)) == [(a,), (b,), (c,)], "one is tried, and torch says if it fails"


def hits_of_file(root: Path, file: Path) -> np.ndarray:
    """(N,) whether each image is recognised by these weights."""
    model = build_model(CONFIG.model, initialise=False).eval()
    model.load_state_dict(safetensors.torch.load_file(file))
    split = val_split(root)
    right: np.ndarray = probabilities(split, model).argmax(axis=1) == split.labels
    return right


def assert_chosen_greedily(root: Path, soup: dict[str, Any]) -> None:
    """Each candidate is made again as a uniform soup, and scored by hand on the half that chooses."""
    halves, split = split_halves(val_split(root).labels), val_split(root)
    own = {}
    for seed, name in enumerate(NAMES):
        model = build_model(CONFIG.model, initialise=False).eval()
        model.load_state_dict(weights(seed))
        own[name] = probabilities(split, model).argmax(axis=1) == split.labels
    ranked = sorted(NAMES, key=lambda name: -own[name][halves == CHOOSING].mean())
    chosen, best, differ = ranked[:1], own[ranked[0]][halves == CHOOSING].mean(), False
    assert [one["added"] for one in soup["tried"]] == ranked[1:]
    for one in soup["tried"]:
        candidate = [*chosen, one["added"]]
        score(root, ",".join(candidate), "--soup", "uniform", "--write", str(root / "candidate.safetensors"))
        right = hits_of_file(root, root / "candidate.safetensors")
        assert one["choosing_top1"] == right[halves == CHOOSING].mean()
        differ |= right[halves == CHOOSING].mean() != right[halves == SCORING].mean()
        if one["choosing_top1"] >= best:
            chosen, best = candidate, one["choosing_top1"]
    assert soup["chosen"] == chosen
    assert differ, "else nobody sees which half chose"
    assert soup["best_member"] == ranked[0]
    assert soup["best_member_top1"] == own[ranked[0]][halves == SCORING].mean()


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_a_soup_is_chosen_on_one_half_scored_on_the_other_and_its_file_scores_the_same(
    kind: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = root / "soup.safetensors"
    found = score(root, "--soup", kind, "--write", str(file))
    soup, told = found["soup"], capfd.readouterr().out
    assert (soup["kind"], soup["chosen_on"], soup["scored_on"]) == (kind, "the choosing half", "the scoring half")
    assert soup["data"]["images"] == 8
    if kind == "uniform":
        assert (soup["chosen"], soup["statistics_images"]) == (list(NAMES), 4)
    else:
        assert_chosen_greedily(root, soup)
    assert "chosen on the choosing half, and scored on the scoring half" in told
    right, split = hits_of_file(root, file), val_split(root)
    scoring = np.flatnonzero(split_halves(split.labels) == SCORING)
    assert sorted(one["image"] for one in soup["mistakes"]) == scoring[~right[scoring]].tolist()
    assert all(one["file"] == split.name(one["image"]) for one in soup["mistakes"]), "numbers in the whole split"
    assert "fitted on one half" in soup["calibration"]["temperature"], "the soup's scoring half has halves, too"
    assert soup["scores"]["val_soup/top1"] == right[split_halves(split.labels) == SCORING].mean()
    again = score(root, str(file))["evaluations"][0]
    assert again["scores"]["val/top1"] == right.mean()
    assert again["model"]["weights"] == ("soup" if len(soup["chosen"]) > 1 else "model")
    assert sorted(one["name"] for one in again["classes"]) == sorted(CLASSES)


def test_a_soup_is_written_after_everything_is_scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep_member", interrupt)
    file = tmp_path / "soup.safetensors"
    assert main(["a,b", "--soup", "uniform", "--write", str(file), "--sweep", "32"]) == Exit.INTERRUPTED
    assert "nothing was stored" in capfd.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("arguments", [["a", "--sweep", "32"], ["--soup", "greedy"]], ids=["sweep", "soup"])
def test_an_image_that_cannot_be_read_counts_in_no_half(arguments: list[str], root: Path, tmp_path: Path) -> None:
    for number in range(16):
        (folder := tmp_path / CLASSES[number % 4]).mkdir(exist_ok=True)
        (folder / f"{number:02}.jpg").write_bytes(encode(photo(number, 40, 40)))
    arguments = [*arguments, "--data", str(tmp_path), "--batch-size", "4"]
    whole = score(root, *arguments)
    (tmp_path / "dog" / "99.jpg").write_bytes(b"<html>")
    found = score(root, *arguments)
    assert [one["scores"]["val/top1"] for one in found["evaluations"]] == [
        one["scores"]["val/top1"] for one in whole["evaluations"]
    ]
    assert [len(one["data"]["left_out"]) for one in found["evaluations"]] == [1] * len(found["evaluations"])
    if "--sweep" in arguments:
        cells, before = (one["evaluations"][0]["sweep"]["cells"] for one in (found, whole))
        assert [one["top1"] for one in cells] == [one["top1"] for one in before]
        assert all(one["top1"] == (one["choosing_top1"] + one["scoring_top1"]) / 2 > 0 for one in cells)
    else:
        assert found["ensemble"]["scores"]["val_ensemble/top1"] == whole["ensemble"]["scores"]["val_ensemble/top1"]
        assert found["ensemble"]["agreement"] == whole["ensemble"]["agreement"]
        assert max(one["share"] for one in found["ensemble"]["agreement"]["pairs"]) > 0
        assert (found["soup"]["data"]["images"], found["soup"]["data"]["left_out"]) == (8, [])
        assert found["soup"]["statistics_images"] in (0, 4), "of training, which the folder has not"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a", "--soup", "greedy"], "a soup needs two members or more, not 'a' alone"),
        (["--write", "soup.safetensors"], "add --soup greedy or --soup uniform"),
        (["--soup", "uniform", "--write", "soup.pt"], "use a name that ends in .safetensors"),
        (["a,other"], "other has other classes than the data"),
        (["a,other", "--soup", "greedy"], "'a' and 'other' have other classes"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_scored(
    arguments: list[str], reason: str, root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "predict_split", lambda *given: pytest.fail("it was scored"))
    assert main(arguments) == Exit.USER
    assert reason in capfd.readouterr().err
