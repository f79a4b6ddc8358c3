"""The command: `python -m trainer.export digits --store out`. Parses, writes, and says what was written.

`make export RUN=digits` is the same. Nothing of a run is changed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.text import forgive_output, show_bytes, tell

if TYPE_CHECKING:
    from trainer.export.forms import Exported
    from trainer.scoring.members import Member

DEFAULT_FOLDER = "exports"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write weights for torchvision, timm, torch.export and ONNX, with class names and preprocessing in each file.

    Each file is read back, and its logits are compared with those of the weights: what differs is not handed on.
    """

    model: tyro.conf.Positional[str]
    """What to write: a run (its best checkpoint), RUN@newest, RUN@STEP, a file, or torchvision's name of weights (as
    ResNet50_Weights.IMAGENET1K_V2); else $TRAINER_RUN_ID."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    to: str = ""
    """The folder to write to; else exports/RUN."""
    forms: str = ""
    """Which forms, with commas: torchvision,timm,program,onnx; else all that the network has."""
    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """Of a run: the model, its moving average, or the mean of its last epochs; auto: what scored best."""
    network: str = ""
    """Of a file that does not say it: torchvision's name of the network; else what its tensors fit."""
    resize: int = 0
    """Pixels of the short side before the crop; 0 = as the weights are used to."""
    crop: int = 0
    """Pixels of a side of what the network sees; 0 = as the weights are used to."""
    replace: bool = False
    """Replace files that are there already."""


def write(options: Options) -> None:
    """Write the files, and say what each is. Raises UserError, StoreError."""
    from trainer.export.forms import choose_forms, refused_forms, write_forms
    from trainer.scoring.members import open_member
    from trainer.scoring.views import with_sizes
    from trainer.store import open_store

    member = open_member(options.model, open_store(options.store), options.weights, options.network)
    member = replace(member, card=with_sizes(member.card, options.resize, options.crop))
    forms = choose_forms(options.forms, member.card)
    folder = Path(options.to or Path(DEFAULT_FOLDER, member.card.run_id or member.card.network)).expanduser()
    written = write_forms(member, folder, forms, replace=options.replace)
    tell("\n".join(lines_about(member, written)))
    if not options.forms:
        for form, reason in refused_forms(member.card).items():
            tell(f"no file for {form}: {reason}")


def lines_about(member: Member, written: tuple[Exported, ...]) -> list[str]:
    """What was written, for the terminal."""
    from trainer.export.preprocessing import preprocessing_in_words

    card = member.card
    step = f", step {card.step:,}" if card.step else ""
    lines = [f"{member.name}: {card.network}{step}{f', {card.weights} weights' if card.weights else ''}"]
    for one in written:
        size = show_bytes(one.file.stat().st_size)
        lines.append(
            f"{one.file}: {one.form.what}, {size}; read back, its logits differ by at most {one.difference.in_words()}"
        )
    return [*lines, f"preprocessing, which each file says, too: {preprocessing_in_words(card)}"]


def main(arguments: list[str] | None = None) -> int:
    names = {"model": "run_id", "store": "store"}
    given: dict[str, Any] = {
        name: os.environ.get(RunEnv.variable(field)) or tyro.MISSING for name, field in names.items()
    }
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.export", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError

    try:
        write(options)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except StoreError as error:
        tell(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        tell("stopped: only files that are named above were written", sys.stderr)
        return 130
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
