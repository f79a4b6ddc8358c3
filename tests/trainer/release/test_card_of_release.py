"""The README of a release tells what is known of its weights, and nothing else, whatever is in the store or a file."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torchvision
import yaml
from safetensors.torch import save_file

from tests.checkpoints import RUN
from tests.trainer.release.finished import FINGERPRINT, SMALL, STEP, make_store, put_evaluation, release
from trainer.checkpoint.export import export
from trainer.contract import Exit, run_key
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.scoring.members import open_member
from trainer.store import ObjectStore
from trainer.telemetry.samples import samples_key

pytestmark = pytest.mark.usefixtures("one_thread")


def save_with_card(store: ObjectStore, file: Path, **changes: Any) -> str:
    """The weights of the run, with what a file says of itself changed."""
    member = open_member(RUN, store)
    card = replace(member.card, **changes)
    save_file(member.model.state_dict(), file, {METADATA_KEY: card.to_text()})
    return str(file)


def test_the_card_tells_what_the_store_knows_and_its_first_lines_are_the_hubs(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for told in (
        "| validation, while training | 81.25 % | 98.75 % | - |", "| tiny-imagenet | 81.00 % | 98.00 % | 4.50 % |",
        "| tiny-imagenet, views flip | 82.00 % | 99.00 % |", "| tiny-imagenet, val_resize 40 val_crop 32 | 70.00 % |",
        "| imagenet-c | 40.00 % | - | - | mce 76.70 % |",
        f"`ema`, of step {STEP}", "11,181,642", "0.037 for an image of 32 x 32 pixels", FINGERPRINT, "`digits`",
        "c" * 40,
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


def test_a_file_of_exported_weights_is_released_with_what_its_card_tells(
    small_store: ObjectStore, tmp_path: Path
) -> None:
    file = tmp_path / "best.safetensors"
    export(small_store, RUN, str(file), which="best", step=None, weights="auto")
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision", models=str(file)) == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert FINGERPRINT in text
    assert f"`ema`, of step {STEP}" in text
    assert f"| run | `{RUN}` |" in text  # whether it has finished, the file does not tell
    assert "Nobody has measured these weights" in text
    assert ModelCard.from_json((tmp_path / "tiny/model.json").read_bytes()) == open_member(RUN, small_store).card


HOSTILE = "`\n\n<script>alert(1)</script> [a](javascript:b) | c\n# `"


def test_what_a_foreign_file_says_of_itself_stays_text(small_store: ObjectStore, tmp_path: Path) -> None:
    said = dict.fromkeys(("recipe", "weights", "commit", "checkpoint_sha256"), HOSTILE)
    models = save_with_card(small_store, tmp_path / "theirs.safetensors", **said)
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision", models=models) == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert text.count("alert(1)") == 1 + len(said)  # the recipe twice
    assert not re.search(r"<script|\]\(|(?m:^# (?!tiny))", text)


def test_weights_of_torchvision_name_their_source_and_neither_run_nor_step(
    small_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = torchvision.models.squeezenet1_1().state_dict()
    entry = torchvision.models.SqueezeNet1_1_Weights
    monkeypatch.setattr(entry, "get_state_dict", lambda self, **options: tensors)
    models = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision", models=models) == Exit.FINISHED
    text = (tmp_path / "tiny/README.md").read_text()
    assert "| weights | `SqueezeNet1_1_Weights.IMAGENET1K_V1` |" in text
    assert "| source | torchvision" in text
    assert "Its weights are torchvision's." in text
    assert not re.search(r"of step|\| run \|", text)


def test_the_sheet_of_mistakes_beside_an_evaluation_is_no_evaluation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path, SMALL)
    about = {"step": STEP, "weights": "ema", "checkpoint_sha256": open_member(RUN, store).card.checkpoint_sha256}
    put_evaluation(store, "digits", about, {"val/top1": 0.81})
    store.put(run_key(RUN, "evaluations/digits.jpg"), b"\xff\xd8\xff")
    assert release(store, tmp_path / "tiny", "--forms", "torchvision") == Exit.FINISHED
    assert "is not what a trainer writes" not in capfd.readouterr().err
    assert "| tiny-imagenet | 81.00 % |" in (tmp_path / "tiny/README.md").read_text()


def test_energy_is_that_of_all_attempts_as_their_samples_tell_it(tmp_path: Path) -> None:
    store = make_store(tmp_path, SMALL)
    for attempt, totals in {1: (0.25, 1.0), 2: (0.234,), 3: (math.nan, -5.0)}.items():
        rows = [{"step": STEP, "time": float(i), "energy/kwh": kwh} for i, kwh in enumerate(totals)]
        store.put(samples_key(RUN, attempt, 1), "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert release(store, tmp_path / "tiny", "--forms", "torchvision") == Exit.FINISHED
    assert "| energy | 1.23 kWh |" in (tmp_path / "tiny/README.md").read_text()


def test_other_sizes_are_those_of_the_release_and_scores_say_theirs(small_store: ObjectStore, tmp_path: Path) -> None:
    sizes = ("--resize", "72", "--crop", "64")
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision", *sizes) == Exit.FINISHED
    card = ModelCard.from_json((tmp_path / "tiny/model.json").read_bytes())
    assert (card.val_resize, card.val_crop) == (72, 64)
    text = (tmp_path / "tiny/README.md").read_text()
    assert "| validation, while training, val_resize 36 val_crop 32 | 81.25 % |" in text
    assert "v2.Resize(72," in text


def test_a_crop_that_does_not_fit_into_its_image_is_refused(
    small_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = save_with_card(small_store, tmp_path / "odd.safetensors", val_resize=24)
    assert release(small_store, tmp_path / "tiny", models=models) == Exit.USER
    assert "a crop of 32 px does not fit into an image whose short side is resized to 24 px" in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists()
    sizes = ("--resize", "32")
    assert release(small_store, tmp_path / "tiny", "--forms", "torchvision", *sizes, models=models) == Exit.FINISHED
