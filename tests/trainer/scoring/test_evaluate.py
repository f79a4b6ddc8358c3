"""`python -m trainer.evaluate` on runs that were never trained: what it prints, stores and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.images import decode
from tests.trainer.scoring.made import CLASSES, CONFIG, environment, prepare_images, put_run, tensors
from trainer.contract import Exit
from trainer.data import stage
from trainer.data.format import read_index
from trainer.data.reading.split import PreparedSplit
from trainer.evaluate import main
from trainer.imagenet import english_names, wnids
from trainer.learning.model import build_model
from trainer.scoring.data import same_classes


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_run_is_scored_on_its_own_images_as_a_plain_loop_scores_it(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = prepare_images(root)
    store = put_run(root, index)
    monkeypatch.setattr(stage, "prepare", lambda *arguments, **options: pytest.fail("its data is prepared already"))
    assert main(["--output", str(root / "all.json"), "--batch-size", "5"]) == Exit.FINISHED
    model = build_model(CONFIG.model, initialise=False).eval()
    model.load_state_dict(tensors())
    folder = next((root / "store/datasets").glob("*/*"))
    split = PreparedSplit(folder, read_index(folder), "val", 32)
    assert len(split) == 16
    mean, std = np.array(CONFIG.data.mean), np.array(CONFIG.data.std)
    right, losses = [], []
    for i, label in enumerate(split.labels):
        image = decode(split.jpeg(i))
        left, top = round((image.shape[1] - 32) / 2), round((image.shape[0] - 32) / 2)
        pixels = (image[top : top + 32, left : left + 32] / 255 - mean) / std
        with torch.no_grad():
            logits = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])[0].double()
        right.append(int(logits.argmax()) == label)
        losses.append(float(logits.logsumexp(0) - logits[label]))
    told = capfd.readouterr().out
    assert f"{100 * np.mean(right):.2f} %" in told
    record = json.loads(store.get(f"runs/made/evaluations/{index.name}.json"))
    assert json.loads((root / "all.json").read_text()) == {"evaluations": [record]}
    assert record["scores"]["val/top1"] == np.mean(right)
    assert record["scores"]["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert record["data"]["images"] == 16
    assert (record["model"]["step"], record["model"]["weights"]) == (7, "model")
    assert sorted(one["name"] for one in record["classes"]) == sorted(CLASSES)
    shares = [one["top1"] for one in record["classes"]]
    assert shares == sorted(shares)
    assert record["speed"]["images_per_second"] > 0
    assert record["speed"]["latency_seconds"] > 0


def test_checkpoints_and_ways_to_score_a_run_have_records_of_their_own_beside_that_of_the_run_alone(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index = prepare_images(root)
    store = put_run(root, index)
    assert main(["made,made@7", "--batch-size", "16"]) == Exit.FINISHED
    own = store.get(f"runs/made/evaluations/{index.name}.json")
    assert json.loads(own)["name"] == "made"
    for options in (["--weights", "model"], ["--precision", "bf16"], ["made@newest", "--precision", "bf16"]):
        assert main(options) == Exit.FINISHED
    again = prepare_images(root, val=5)
    assert main(["--data", str(root / "store/datasets" / again.name / again.version)]) == Exit.FINISHED
    put_run(root, replace(index, name=again.name), "renamed")  # as if it were an older version of the same data
    assert main(["renamed", "--data", str(root / "store/datasets" / again.name / again.version)]) == Exit.FINISHED
    stored = {info.key for info in store.list("runs/") if "evaluations" in info.key and info.key.endswith(".json")}
    assert stored == {
        *(
            f"runs/made/evaluations/{index.name}{other}.json"
            for other in ("", "-step-7", "-model", "-bf16", "-step-7-bf16")
        ),
        f"runs/made/evaluations/{again.name}.json", f"runs/renamed/evaluations/{again.name}-{again.version}.json",
    }  # fmt: skip
    assert store.get(f"runs/made/evaluations/{index.name}.json") == own


def test_members_of_other_sizes_are_scored_each_by_its_own(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = prepare_images(root)
    store = put_run(root, index, "one", seed=1)
    put_run(root, index, "two", seed=2, val_resize=40)
    put_run(root, index, "three", seed=3)
    found: dict[str, list[dict[str, float]]] = {}
    for names in ("one,two,three", "one", "two", "three"):
        assert main([names, "--output", str(root / "all.json")]) == Exit.FINISHED
        for record in json.loads((root / "all.json").read_text())["evaluations"]:
            found.setdefault(record["name"], []).append(record["scores"])
    assert list(found) == ["one", "two", "three"]
    assert all(together == pytest.approx(alone, rel=1e-5) for together, alone in found.values())
    assert len({scores[0]["val/loss"] for scores in found.values()}) == 3
    assert {info.key.split("/")[1] for info in store.list("runs/") if "evaluations" in info.key} == set(found)


def test_the_speed_of_a_member_is_only_told_where_it_was_alone_in_its_pass(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index = prepare_images(root)
    store = put_run(root, index, "one", seed=1)
    put_run(root, index, "two", seed=2, val_resize=40)
    put_run(root, index, "three", seed=3)
    assert main(["one,two,three"]) == Exit.FINISHED
    rows = {line.split()[0]: line.split()[-1] for line in capfd.readouterr().out.splitlines() if "%" in line}
    assert rows["one"] == rows["three"] == "-"
    assert float(rows["two"].replace(",", "")) > 0
    records = {
        name: json.loads(store.get(f"runs/{name}/evaluations/{index.name}.json"))["speed"]["members_in_pass"]
        for name in ("one", "two", "three")
    }
    assert records == {"one": 2, "two": 1, "three": 2}


def test_images_that_are_enlarged_are_said_whatever_asks_for_it(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put_run(root, prepare_images(root, side=40))
    for options in (["--resize", "64", "--crop", "64"], ["--views", "scales=1,2"]):
        assert main(options) == Exit.FINISHED
        said = capfd.readouterr().err
        assert said.count("is stored with 40 px, so what is resized to more, up to 64 px, is enlarged") == 1
    assert main(["--resize", "40"]) == Exit.FINISHED
    assert "enlarged" not in capfd.readouterr().err


def test_other_classes_are_refused_by_name_and_by_number(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = prepare_images(root)
    put_run(root, index, "mixed", classes=("bee", "ant", "cat", "dog"))
    assert main(["mixed"]) == Exit.USER
    assert "output 0 is 'bee', there it is 'ant'" in capfd.readouterr().err
    more = replace(CONFIG, model=replace(CONFIG.model, num_classes=6))
    put_run(root, index, "more", config=more)
    assert main(["more"]) == Exit.USER
    assert "6 classes" in capfd.readouterr().err
    put_run(root, index, "unnamed", classes=())
    assert main(["unnamed"]) == Exit.FINISHED
    assert "order" in capfd.readouterr().err


def test_images_that_the_weights_do_not_come_from_are_said(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = prepare_images(root)
    put_run(root, index)
    other = prepare_images(root, val=5)
    put_run(root, other, "fresh")
    place = root / "store/datasets" / other.name / other.version
    assert main(["--data", str(place)]) == Exit.FINISHED
    told = capfd.readouterr()
    assert "compare scores with care" in told.err
    assert index.sha256[:16] in told.err
    assert other.sha256[:16] in told.err
    assert "20 of 4 classes" in told.out
    assert main([]) == Exit.FINISHED
    assert "care" not in capfd.readouterr().err
    assert main(["fresh,made", "--data", str(place)]) == Exit.FINISHED
    said = capfd.readouterr().err
    assert said.count("compare scores with care") == 1
    assert "note: the weights of made were trained with" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"), (["made@12"], "12"), ([","], "names nothing"),
        (["made", "--output", "no/such/folder/all.json"], "--output 'no/such/folder/all.json': that is a folder, or"),
        (["made", "--output", "/"], "--output '/': that is a folder, or"),
        (["made", "--batch-size", "0"], "1 image"), (["made", "--device", "cuda"], "--device cuda: torch finds no GPU"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_said_with_its_name(
    root: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    put_run(root, prepare_images(root))
    assert main(arguments) == Exit.USER
    assert said in capfd.readouterr().err
    assert not list((root / "store/runs/made").glob("evaluations/*"))


def test_ctrl_c_leaves_nothing_behind(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(root, prepare_images(root))

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.scoring.forward.log_probabilities", interrupt)
    assert main([]) == Exit.INTERRUPTED
    assert "stopped: nothing was stored" in capfd.readouterr().err
    assert not list((root / "scratch").glob("predictions-*"))
    assert not list((root / "store/runs/made").glob("evaluations/*"))


def test_imagenets_classes_are_the_same_as_ids_and_as_words_and_no_other_order_is() -> None:
    long = [f"{name}, Latinus {name}" for name in english_names()]
    long[134] = "crane(bird)"
    assert same_classes(wnids(), long)
    assert same_classes(english_names(), wnids())
    assert not same_classes(wnids(), sorted(long))
    assert not same_classes(wnids(), [*wnids()[1:], wnids()[0]])
    assert not same_classes(wnids()[:200], english_names()[:200][::-1])
