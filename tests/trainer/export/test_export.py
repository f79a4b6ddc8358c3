"""The command that exports: weights that torchvision and timm load strictly, or the reason why they cannot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor

from tests.checkpoints import RUN
from tests.trainer.export.weights import CLASSES, SIDE, card, member, put_run, random_model
from trainer.contract import Exit, UserError, checkpoint_key
from trainer.export.__main__ import main
from trainer.export.agreement import Difference
from trainer.export.forms import WEIGHT_FORMS, WeightForm, choose_forms, write_forms
from trainer.export.twins import TIMM_NAMES
from trainer.model_card import ModelCard
from trainer.recipes.networks import is_resnet
from trainer.scoring.members import Member

SMALL = "shufflenet_v2_x0_5"
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        answer: Tensor = model.eval()(images)
        return answer


def test_torchvision_and_timm_load_what_is_exported_strictly_and_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = random_model("resnet18"), tmp_path / "exported"
    store = put_run(tmp_path, model, card("resnet18"))
    monkeypatch.setenv("TRAINER_STORE", store.uri)
    monkeypatch.setenv("TRAINER_RUN_ID", RUN)
    command = ["--to", str(folder), "--forms", "torchvision,timm"]
    assert main(command) == Exit.FINISHED
    said = capsys.readouterr().out
    (manifest,) = [info.key for info in store.list(checkpoint_key(RUN, "manifest/"))]
    sha256 = hashlib.sha256(store.get(manifest)).hexdigest()
    images = torch.randn(2, 3, SIDE, SIDE)
    theirs = {
        "torchvision": torchvision.models.resnet18(num_classes=len(CLASSES)),
        "timm": timm.create_model("resnet18", num_classes=len(CLASSES)),
    }
    for form, other in theirs.items():
        file = folder / f"resnet18.{form}.safetensors"
        assert f"{file}: " in said
        other.load_state_dict(safetensors.torch.load_file(file), strict=True)
        assert (logits(other, images) - logits(model, images)).abs().max() <= 1e-4
        with safetensors.safe_open(file, "pt") as opened:
            about = opened.metadata()
        assert ModelCard.from_json(about["card"]) == card("resnet18", checkpoint_sha256=sha256)
        assert "short side has 36 pixels (bilinear, antialiased)" in about["preprocessing"]
        assert "mean (0.5, 0.4, 0.3)" in about["preprocessing"]
        assert (about["format"], about["step"], about["blur_pool"]) == ("pt", "4", "none")
    assert main(command) == Exit.USER
    assert "there already; name another folder with --to, or add --replace" in capsys.readouterr().err
    assert main([*command, "--replace"]) == Exit.FINISHED


def test_every_twin_in_timm_has_the_tensors_of_torchvision() -> None:
    assert {name for name in TIMM_NAMES if is_resnet(name)} == {*filter(is_resnet, torchvision.models.list_models())}
    for name, twin in TIMM_NAMES.items():
        with torch.device("meta"):
            theirs = timm.create_model(twin).state_dict()
            ours = torchvision.models.get_model(name).state_dict()
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_a_densenet_of_timm_computes_what_torchvisions_does(tmp_path: Path) -> None:
    (written,) = write_forms(member("densenet121"), tmp_path, choose_forms("timm", card("densenet121")))
    assert written.difference.is_within(1e-4)
    assert written.file == tmp_path / "densenet121.timm.safetensors"


@pytest.mark.parametrize(
    ("asked", "about", "reason"),
    [
        ("torchvision", card("resnet18", "convs"), "a plain resnet18 loads these weights, and computes something else"),
        ("timm", card("resnet18", "all"), "trained with --model.blur-pool all"),
        ("timm", card("vit_b_16"), "timm has no network with the tensors of torchvision's vit_b_16"),
        ("torchvision,tflite", card("resnet18"), "'tflite' is no form; choose from torchvision,timm,program,onnx"),
        ("onnx", card("vit_h_14"), "vit_h_14 has more than 2 GB, which is the most of an ONNX file"),
        (",", card("resnet18"), "'' is no form"),
    ],
)
def test_a_form_that_the_weights_do_not_have_is_refused_with_the_reason(
    asked: str, about: ModelCard, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        choose_forms(asked, about)


def test_the_folder_is_as_before_where_one_form_fails(tmp_path: Path) -> None:
    def differ(member: Member, sample: object, file: Path) -> Difference:
        file.write_text("half")
        raise UserError("the logits differ")

    forms = (WEIGHT_FORMS[0], WeightForm("odd", "odd file", ".odd", differ, lambda card: ""))
    with pytest.raises(UserError, match="the logits differ"):
        write_forms(member(SMALL), tmp_path / "new", forms)
    assert not (tmp_path / "new").exists()
    (tmp_path / f"{SMALL}.odd").write_text("of before")
    with pytest.raises(UserError, match="the logits differ"):
        write_forms(member(SMALL), tmp_path, forms, replace=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]


def test_weights_that_answer_no_numbers_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    broken = member(SMALL)
    next(broken.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite, so nothing was written: take an earlier checkpoint"):
        write_forms(broken, tmp_path / "new", WEIGHT_FORMS[:1])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*: name another folder with --to"):
        write_forms(member(SMALL), tmp_path / "file", WEIGHT_FORMS[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
