"""Files that others made, and folders that users name: neither chooses what a user did not mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.trainer.export.weights import card, member, random_model
from trainer.contract import Exit, UserError
from trainer.export.__main__ import main
from trainer.export.forms import choose_forms, write_forms
from trainer.model_card import METADATA_KEY, ModelCard

SMALL = "shufflenet_v2_x0_5"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user works in, below the home folder of the test."""
    (here := tmp_path / "home" / "project").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("HOME", str(here.parent))
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(here)
    return here


def save(about: dict[str, str]) -> str:
    safetensors.torch.save_file(random_model(SMALL).state_dict(), "theirs.safetensors", about)
    return "./theirs.safetensors"


def exported(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.torchvision.safetensors"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_id": "../../x"}, "run_id is '../../x', not"),
        ({"run_id": "/tmp/x"}, "run_id is '/tmp/x', not"),
        ({"val_crop": 0}, "val_crop is 0, and a side has at least 1 pixel"),
        ({"val_resize": 0}, "val_resize is 0, and a side has at least 1 pixel"),
    ],
)
def test_a_card_with_impossible_values_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {METADATA_KEY: json.dumps(card(SMALL).to_json() | changes)}
    assert main([save(about), "--forms", "torchvision"]) == Exit.USER
    assert f"is damaged ({reason}" in capsys.readouterr().err
    assert not exported(tmp_path)


def test_a_file_without_a_card_goes_where_its_network_says_whatever_run_it_names(tmp_path: Path) -> None:
    assert main([save({"run": "../../../x", "model": SMALL}), "--forms", "torchvision"]) == Exit.FINISHED
    assert exported(tmp_path) == [f"home/project/exports/{SMALL}/{SMALL}.torchvision.safetensors"]


def test_a_file_without_a_card_is_exported_with_the_sizes_that_the_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [save({"model": SMALL}), "--forms", "torchvision", "--to", "kept"]
    assert main([*command, "--resize", "40", "--crop", "48"]) == Exit.USER
    assert "use --crop 40 at most, or --resize 48 at least" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--resize", "48", "--crop", "40"]) == Exit.FINISHED
    with safetensors.safe_open(f"kept/{SMALL}.torchvision.safetensors", "pt") as opened:
        found = ModelCard.from_json(opened.metadata()[METADATA_KEY])
    assert (found.val_resize, found.val_crop) == (48, 40)


def test_a_tilde_is_the_home_folder(tmp_path: Path) -> None:
    about = {METADATA_KEY: card(SMALL).to_text()}
    assert main([save(about), "--forms", "torchvision", "--to", "~/kept"]) == Exit.FINISHED
    assert exported(tmp_path) == [f"home/kept/{SMALL}.torchvision.safetensors"]


def test_sizes_that_predict_would_refuse_are_not_written(tmp_path: Path) -> None:
    odd = member(SMALL, val_resize=24, val_crop=32)
    with pytest.raises(UserError, match=r"a crop of 32 px does not fit into an image .* resized to 24 px"):
        write_forms(odd, tmp_path / "new", choose_forms("torchvision", odd.card))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "what"), [("resnet18.pt2", "a program of torch.export"), ("resnet18.onnx", "an ONNX graph")]
)
def test_a_program_is_refused_as_what_it_is(name: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_bytes(b"PK\3\4")
    assert main([f"./{name}"]) == Exit.USER
    assert (
        f"'./{name}' is {what}, and weights are not read from one: name the run, or the .safetensors file that "
        "`make export` writes beside it"
    ) in " ".join(capsys.readouterr().err.split())
