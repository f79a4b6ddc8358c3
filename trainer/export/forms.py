"""The forms that weights are handed on in, and the function that writes them: all of them, or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from trainer.contract import UserError
from trainer.export.agreement import Difference, Sample, take_sample
from trainer.export.placement import check_targets, place
from trainer.export.programs import OPSET, why_not_onnx, write_onnx, write_program
from trainer.export.state_dicts import write_timm, write_torchvision
from trainer.export.twins import why_not_timm, why_not_torchvision
from trainer.model_card import ModelCard
from trainer.scoring.members import Member

Writer = Callable[[Member, Sample, Path], Difference]
Reason = Callable[[ModelCard], str]


@dataclass(frozen=True)
class WeightForm:
    """A kind of file."""

    name: str  # as --forms has it
    what: str  # for the terminal
    ending: str  # of the file's name, behind the network's
    write: Writer  # returns the largest difference of logits; raises UserError
    why_not: Reason  # why weights with a card have no such file; "" where they have


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    form: WeightForm
    file: Path
    difference: Difference


WEIGHT_FORMS = (
    WeightForm(
        "torchvision", "state dict for torchvision", ".torchvision.safetensors", write_torchvision, why_not_torchvision
    ),
    WeightForm("timm", "state dict for timm", ".timm.safetensors", write_timm, why_not_timm),
    WeightForm("program", "program of torch.export", ".pt2", write_program, lambda card: ""),
    WeightForm("onnx", f"ONNX, opset {OPSET}", ".onnx", write_onnx, why_not_onnx),
)


def refused_forms(card: ModelCard) -> dict[str, str]:
    """The forms that weights with this card do not have, each with the reason."""
    return {form.name: reason for form in WEIGHT_FORMS if (reason := form.why_not(card))}


def choose_forms(asked: str, card: ModelCard) -> tuple[WeightForm, ...]:
    """The forms of `torchvision,onnx`; of "" every form that weights with this card have. Raises UserError."""
    refused = refused_forms(card)
    if not asked:
        return tuple(form for form in WEIGHT_FORMS if form.name not in refused)
    known = {form.name: form for form in WEIGHT_FORMS}
    wanted = [name.strip() for name in asked.split(",")]
    for name in wanted:
        if name not in known:
            raise UserError(f"--forms {asked!r}: {name!r} is no form; choose from {','.join(known)}")
        if name in refused:
            raise UserError(f"--forms {name}: {refused[name]}")
    return tuple(known[name] for name in dict.fromkeys(wanted))


def write_forms(
    member: Member, folder: Path, forms: Sequence[WeightForm], *, replace: bool = False
) -> tuple[Exported, ...]:
    """Write weights into a folder, one file a form. Each is read back and compared with the member.

    The files appear when all of them are right; else none does, and those of before stay. One that is there already is
    only replaced where that was asked for. Raises UserError.
    """
    files = {form: folder / f"{member.card.network}{form.ending}" for form in forms}
    check_targets(files.values(), replace=replace)
    sample, is_new = take_sample(member), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as beside:
            written = [(form, file, Path(beside) / file.name) for form, file in files.items()]
            found = [Exported(form, file, form.write(member, sample, unfinished)) for form, file, unfinished in written]
            place({file: unfinished for _, file, unfinished in written}, replace=replace)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error}): name another folder with --to") from error
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return tuple(found)
