"""Networks as programs that need no code of ours: torch.export and ONNX. They hold BlurPool, too.

The number of images of a batch is open; the side of an image is the card's.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.export.agreement import (
    OTHER_LIBRARY,
    SAME_LIBRARY,
    Difference,
    Sample,
    check_agreement,
    largest_difference,
    needs_package,
)  # fmt: skip
from trainer.export.preprocessing import metadata_of
from trainer.learning.model import ExactLinear
from trainer.model_card import ModelCard
from trainer.scoring.members import Member

OPSET = 18  # of ONNX: what torch has its operators in, and onnxruntime reads since 1.14
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT, OPEN_AXIS = "images", "logits", "batch"  # their names in a program
BEYOND_ONNX = ("regnet_y_128gf", "vit_h_14")  # networks of more than 2 GB


def why_not_onnx(card: ModelCard) -> str:
    """Why there is no ONNX file of these weights; "" where there is."""
    return f"{card.network} has more than 2 GB, which is the most of an ONNX file" * (card.network in BEYOND_ONNX)


def trace(member: Member, sample: Sample) -> torch.export.ExportedProgram:
    """The program of a member's network, for any number of images. Takes seconds."""
    model = copy.deepcopy(member.model)
    exact: list[nn.Module] = [module for module in model.modules() if type(module) is ExactLinear]
    for linear in exact:
        linear.__class__ = nn.Linear  # the same sums: here everything is fp32
    with torch.no_grad():
        program = torch.export.export(
            model, (sample.images,), dynamic_shapes=({0: torch.export.Dim(OPEN_AXIS)},), strict=False
        )  # fmt: skip
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has the paths of this machine, and would travel in the file
    return program


def write_program(member: Member, sample: Sample, file: Path) -> Difference:
    """For `torch.export.load`. Returns the largest difference of logits. Raises UserError."""
    torch.export.save(trace(member, sample), file, extra_files=metadata_of(member.card))
    difference = largest_difference(sample, torch.export.load(file).module())
    check_agreement(difference, SAME_LIBRARY, file.name)
    return difference


def write_onnx(member: Member, sample: Sample, file: Path) -> Difference:
    """For any runtime of ONNX. Returns the largest difference of logits, by onnxruntime's CPU. Raises UserError."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ModuleNotFoundError as error:
        raise needs_package("onnx", ONNX_PACKAGES) from error
    program = torch.onnx.export(
        trace(member, sample), dynamic_shapes=({0: OPEN_AXIS},), input_names=[INPUT], output_names=[OUTPUT],
        opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None, "torch.onnx.export returns a program where it traces with torch.export"
    program.model.metadata_props.update(metadata_of(member.card))
    program.save(file, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    difference = largest_difference(sample, answer)
    check_agreement(difference, OTHER_LIBRARY, file.name)
    return difference
