"""The command that says what is on images: `python -m trainer.predict cat.jpg --model digits --store out`.

`make predict IMAGE=cat.jpg RUN=digits` is the same. What takes seconds is imported after the images were found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.predict.sources import Sources, find_sources
from trainer.text import forgive_output, show_name, show_share, tell, tell_json

if TYPE_CHECKING:
    from trainer.predict.answers import ImageAnswer, Unread
    from trainer.scoring.members import Member

MOST_CLASSES_TOLD = 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Say what is on images: the most probable classes of each, by the weights of a run."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Images: files, folders, patterns such as 'photos/*.jpg', https:// addresses, or - for standard input."""
    model: str
    """Whose answers: a run (its best checkpoint), RUN@newest, RUN@STEP, a file of weights, or
    ResNet50_Weights.IMAGENET1K_V2; else $TRAINER_RUN_ID."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    scratch: str
    """Local folder for the contact sheet; else $TRAINER_SCRATCH_DIR."""
    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """Of a run: the model, its moving average, or the mean of its last epochs; auto: what scored best."""
    network: str = ""
    """Of a file of weights: torchvision's name, where the file does not say it; else what its tensors fit."""
    resize: int = 0
    """Pixels of the short side before the crop; 0 = as the weights are used to."""
    crop: int = 0
    """Pixels of a side of what the network sees; 0 = as the weights are used to."""
    top: int = 5
    """How many classes to tell of each image."""
    json: bool = False
    """Print one JSON object in place of lines."""
    sheet: str = ""
    """The contact sheet of a folder or a pattern: a PNG; by default predictions-NAME.png in the scratch folder."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute."""


def predict(options: Options) -> int:
    """The exit code. Raises UserError, StoreError."""
    if not 1 <= options.top <= MOST_CLASSES_TOLD:
        raise UserError(f"--top {options.top}: tell 1 to {MOST_CLASSES_TOLD} classes")
    sources = find_sources(options.images)
    path = sheet_path(options, sources)
    if sources.left_out:
        tell(f"{sources.left_out:,} other files are left out: they are hidden, or do not end as images do", sys.stderr)
    from trainer.predict.startup import import_torchvision

    import_torchvision()
    from trainer.learning.device import device_for
    from trainer.predict.answers import answer_images
    from trainer.recipes.config import Config
    from trainer.scoring.members import open_member
    from trainer.scoring.views import with_sizes
    from trainer.store import open_store

    config = Config(precision="fp32", device=options.device)
    device = device_for(config, 0)
    if device.type != options.device != "auto":
        raise UserError(f"--device {options.device}: torch finds no such device here; leave it out, or mend the driver")
    member = open_member(options.model, open_store(options.store), options.weights, options.network)
    member = replace(member, card=with_sizes(member.card, options.resize, options.crop))
    tell(describe_member(member), sys.stderr)
    return tell_answers(member, answer_images(member, sources.images, config, device, options.top), options.json, path)


def sheet_path(options: Options, sources: Sources) -> Path | None:
    """Where the contact sheet goes; None without one. Raises UserError where that is no place for it."""
    if not options.sheet and not sources.folder:
        return None
    from trainer.predict.sheet import check_place
    from trainer.process.scratch import open_scratch

    if options.sheet:
        path = Path(options.sheet).expanduser().absolute()
        if path.suffix.lower() != ".png" or not path.parent.is_dir() or path.is_dir():
            raise UserError(f"--sheet {show_name(options.sheet)}: name a .png file in a folder that exists")
    else:
        name = Path(sources.folder).absolute().name
        words = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
        path = open_scratch(options.scratch) / f"predictions-{words or 'images'}.png"
    check_place(path, [one.address for one in sources.images if one.kind == "file"])
    return path


def describe_member(member: Member) -> str:
    """Which weights answer, and what they see."""
    card = member.card
    of = f"{card.weights} weights of step {card.step:,}, " if card.run_id else ""
    classes = f"{len(card.classes):,} classes" if card.classes else "classes whose names nobody knows"
    return (
        f"{member.name}: {card.network}, {of}{classes}; the short side becomes {card.val_resize} pixels, and the "
        f"network sees the {card.val_crop} x {card.val_crop} in the middle"
    )


def tell_answers(member: Member, found: Iterable[ImageAnswer | Unread], as_json: bool, path: Path | None) -> int:
    """Print the answers as they come, or all as JSON, and write the contact sheet. The exit code."""
    from trainer.imagenet import class_names
    from trainer.predict.answers import Unread
    from trainer.predict.sheet import ContactSheet

    classes, sheet = member.card.classes, ContactSheet()
    names = class_names(classes)
    images: list[dict[str, Any]] = []
    unread: list[dict[str, str]] = []
    answered = 0
    for one in found:
        if isinstance(one, Unread):
            unread.append({"image": one.source.name, "why": one.why})
            tell(f"{one.source.name} cannot be read: {one.why}", sys.stderr)
            continue
        answered += 1
        top = [
            {"class": classes[number] if classes else str(number), "probability": share}
            | {"name": names[number] if classes else f"class {number}"}
            for number, share in one.top
        ]
        if as_json:
            images.append({"image": one.source.name, "odd": list(one.seen.odd), "top": top})
        else:
            tell(answer_text(one, top))
        if path:
            sheet.add(one.seen.pixels, f"{top[0]['name']}  {show_share(one.top[0][1], 1)}", Path(one.source.name).name)
    if as_json:
        tell_json({"model": member.name, "network": member.card.network, "images": images, "unread": unread})
    if path and answered:
        sheet.write(path)
        part = f" (the first {len(sheet.tiles)} of {answered:,} images)" if len(sheet.tiles) < answered else ""
        tell(f"contact sheet: {show_name(path)}{part}", sys.stderr)
    if unread:
        tell(f"{len(unread):,} of {len(unread) + answered:,} images could not be read", sys.stderr)
    return Exit.USER if unread else Exit.FINISHED


def answer_text(answer: ImageAnswer, top: list[dict[str, Any]]) -> str:
    """The image and its classes, one a line."""
    odd = f"  ({', '.join(answer.seen.odd)})" if answer.seen.odd else ""
    lines = [f"{show_share(one['probability'], 1):>9}  {show_name(one['name'])}" for one in top]
    return "\n".join([f"{answer.source.name}{odd}", *lines])


def main(arguments: list[str] | None = None) -> int:
    names = {"model": "run_id", "store": "store", "scratch": "scratch_dir"}
    given: dict[str, Any] = {
        name: os.environ.get(RunEnv.variable(field)) or tyro.MISSING for name, field in names.items()
    }
    try:
        options = tyro.cli(
            Options, default=Options(images=(), **given), prog="python -m trainer.predict", args=arguments
        )  # fmt: skip
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError

    try:
        return predict(options)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except StoreError as error:
        tell(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        tell("stopped", sys.stderr)
        return 130


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
