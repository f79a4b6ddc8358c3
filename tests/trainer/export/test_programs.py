"""Programs of torch.export and ONNX: they compute what the weights compute, blur too, for any number of images."""

from __future__ import annotations

import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor

import tests
import trainer
from tests.checkpoints import RUN
from tests.trainer.export.weights import CLASSES, SIDE, card, member, put_run, random_model
from trainer.contract import Exit, UserError
from trainer.export.__main__ import main
from trainer.export.agreement import OTHER_LIBRARY, Sample, check_agreement, largest_difference, take_sample
from trainer.model_card import ModelCard

pytestmark = pytest.mark.usefixtures("one_thread")


def check_card(about: dict[str, Any], expected: ModelCard) -> None:
    found = ModelCard.from_json(about["card"])
    assert (found.classes, found.mean, found.val_resize, found.blur_pool) == (
        expected.classes, expected.mean, expected.val_resize, expected.blur_pool,
    )  # fmt: skip
    assert f"({found.resize_mode}, antialiased). Cut out its centre of {SIDE} x {SIDE} pixels" in about["preprocessing"]


def test_a_program_and_onnx_compute_what_the_weights_do_for_any_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, about = random_model("resnet18", "all"), card("resnet18", "all", resize_mode="bicubic")
    store = put_run(tmp_path, model, about)
    monkeypatch.setenv("TRAINER_STORE", store.uri)
    monkeypatch.setenv("TRAINER_RUN_ID", RUN)
    assert main(["--to", str(tmp_path / "exported")]) == Exit.FINISHED  # without --forms: all that they have
    said = capsys.readouterr().out
    program, graph = (tmp_path / f"exported/resnet18.{ending}" for ending in ("pt2", "onnx"))
    assert sorted((tmp_path / "exported").iterdir()) == sorted([program, graph])
    assert f"{graph}: ONNX, opset 18, " in said
    for form in ("torchvision", "timm"):
        assert f"no file for {form}: trained with --model.blur-pool all" in said
    texts = {"card": "", "preprocessing": ""}
    loaded = torch.export.load(program, extra_files=texts).module()
    check_card(texts, about)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    check_card(session.get_modelmeta().custom_metadata_map, about)
    assert [(one.domain, one.version) for one in onnx.load(graph).opset_import] == [("", 18)]
    for count in (1, 2, 5):
        images = torch.randn(count, 3, SIDE, SIDE)
        with torch.inference_mode():
            expected = model(images)
            assert (loaded(images) - expected).abs().max() <= 1e-4
        (answer,) = session.run(["logits"], {"images": images.numpy()})
        assert answer.shape == (count, len(CLASSES))
        assert (torch.from_numpy(answer) - expected).abs().max() <= 1e-3
    with zipfile.ZipFile(program) as packed:
        bodies = [graph.read_bytes(), *map(packed.read, packed.namelist())]
    sources = [str(Path(module.__file__ or "").parent) for module in (torchvision, torch, trainer, tests)]
    for path in (*sources, sys.prefix, str(Path.home()), str(tmp_path), tempfile.gettempdir() + "/"):
        assert not any(path.encode() in body for body in bodies), path


def test_a_graph_that_computes_something_else_is_not_handed_on() -> None:
    blurred = member("resnet18", "convs")
    sample = take_sample(blurred)
    with pytest.raises(UserError, match=r"computes other logits .* differ by up to .*, and 0.001 is allowed; nothing"):
        check_agreement(largest_difference(sample, torch.no_grad()(random_model("resnet18"))), OTHER_LIBRARY, "x.onnx")

    def broken(images: Tensor) -> Tensor:
        return torch.full((len(images), len(CLASSES)), float("nan"))

    with pytest.raises(UserError, match="differ by up to nan"):
        check_agreement(largest_difference(sample, broken), OTHER_LIBRARY, "x.onnx")


@pytest.mark.parametrize(
    ("logit", "other", "words", "agrees"),
    [
        (0.5, 0.5004, "0.0004", True),
        (0.5, 0.5021, "0.002", False),
        (32.0, 32.015625, "0.02 (0.0005 of the largest logit)", True),
        (32.0, 31.0, "1 (0.03 of the largest logit)", False),
    ],
)
def test_a_difference_is_told_as_it_is_and_beyond_1_also_in_parts_of_the_largest_logit(
    logit: float, other: float, words: str, agrees: bool
) -> None:
    sample = Sample(torch.zeros(1, 3, 1, 1), torch.tensor([[logit, 0.25]]))
    difference = largest_difference(sample, lambda images: torch.tensor([[other, 0.25]]))
    assert difference.in_words() == words
    if agrees:
        check_agreement(difference, OTHER_LIBRARY, "x.onnx")
    else:
        with pytest.raises(UserError, match=re.escape(f"differ by up to {words}, and 0.001 is allowed")):
            check_agreement(difference, OTHER_LIBRARY, "x.onnx")
