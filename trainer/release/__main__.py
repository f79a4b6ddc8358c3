"""The command: `python -m trainer.release digits --store out`. It reads a run, and changes nothing of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from trainer.contract import Exit, RunEnv, UserError
from trainer.text import filter_tracebacks, say, show_bytes, tell

if TYPE_CHECKING:
    from trainer.model_card import ModelCard
    from trainer.release.history import History, SeedScore
    from trainer.scoring.members import Member
    from trainer.store import ObjectStore

RELEASES = Path("releases")  # where a release is made by default
LICENSE_RULE = r"[a-z0-9][a-z0-9.+-]{0,60}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make a folder of weights, ready for the Hugging Face Hub; upload it where --push says so."""

    models: tyro.conf.Positional[str]
    """What to release: a run (its best checkpoint), RUN@newest, RUN@STEP, or a file of exported weights. Several runs
    with commas between them are seeds of one recipe: the best is released. Else $RUNS, $MODEL or
    $TRAINER_RUN_ID."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    to: str = ""
    """The folder to make; by default releases/RUN."""
    license: str = ""
    """Of the weights, as the hub writes it: apache-2.0, mit, cc-by-nc-4.0, …; by default unknown."""
    forms: str = ""
    """Files to make, with commas: torchvision (which timm loads, too), onnx, program (of torch.export); by default the
    first two."""
    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """Of a run: the model, its moving average, or the mean of its last epochs; auto: what scored best."""
    network: str = ""
    """Of a file that does not say it: torchvision's name, as resnet50; by default what its tensors fit."""
    resize: int = 0
    """Pixels of the short side before the crop; 0 = as the weights are used to."""
    crop: int = 0
    """Pixels of a side of what the network sees; 0 = as the weights are used to."""
    replace: bool = False
    """Make a release anew that is there."""
    push: str = ""
    """Upload to owner/name on the hub, private. A folder that is there is uploaded as it is, with your changes."""
    public: bool = False
    """Of --push: for everybody to see."""
    yes: bool = False
    """Of --push: overwrite what is there without a question."""
    secrets_dir: str = field(default_factory=lambda: os.environ.get(RunEnv.variable("secrets_dir"), ""))
    """Folder with the file hf_token, for --push; without it HF_TOKEN or `hf auth login` counts."""


def release_models(options: Options) -> None:
    """Make the folder, and upload it where that was asked for. Raises UserError, StoreError."""
    from trainer.compare import names_of
    from trainer.release.folder import read_released
    from trainer.release.history import read_seeds
    from trainer.release.push import agree_to_overwrite, find_destination, look_up, push_folder
    from trainer.scoring.members import open_member
    from trainer.scoring.views import with_sizes
    from trainer.store import open_store

    if options.license and not re.fullmatch(LICENSE_RULE, options.license):
        raise UserError(f"--license {options.license!r} is no name of a license: write for example apache-2.0 or mit")
    if not options.push and (options.public or options.yes):
        raise UserError("--public and --yes are about an upload: add --push owner/name")
    destination = find_destination(options.push, options.secrets_dir) if options.push else None
    store = open_store(options.store)
    seeds = read_seeds(store, names_of(options.models)) if "," in options.models else ()
    member = open_member(seeds[0].run_id if seeds else options.models, store, options.weights, options.network)
    if seeds:
        say(f"{member.name} is the best of {len(seeds)} seeds by validation: it is released, and all are told")
    history = history_of(store, member)
    member = replace(member, card=with_sizes(member.card, options.resize, options.crop))
    folder = Path(options.to).expanduser() if options.to else RELEASES / name_of_release(member)
    there = read_released(folder)
    if there is not None and not options.replace:
        check_kept(options, member, folder, there)
    present = look_up(destination) if destination else None
    if destination:
        agree_to_overwrite(destination, present, public=options.public, yes=options.yes)
    if there is None or options.replace:
        build_release(options, member, folder, history, seeds)
    else:
        say(f"{folder} is there: it is uploaded as it is; --replace makes it anew")
    if destination:
        commit = push_folder(folder, destination, present, public=options.public)
        shown = "private" if not options.public or (present and present.is_private) else "public"
        tell(f"pushed to {destination.page}, {shown}, as one commit: {commit}")


def check_kept(options: Options, member: Member, folder: Path, there: ModelCard) -> None:
    """Raises UserError unless a release that is there is what was asked for, to be uploaded as it is."""
    fix = "add --replace to make it anew, or --to ANOTHER"
    if not options.push:
        raise UserError(f"the release {str(folder)!r} is there: {fix}")
    if there != member.card:
        raise UserError(f"the release {str(folder)!r} has other weights than {member.name!r}, or other sizes: {fix}")
    if options.license or options.forms:
        raise UserError(f"the release {str(folder)!r} is there, so --license and --forms change nothing: {fix}")


def build_release(options: Options, member: Member, folder: Path, history: History, seeds: Sequence[SeedScore]) -> None:
    from trainer.release.making import Told, forms_of_release, make_release
    from trainer.release.readme import UNKNOWN_LICENSE

    forms = forms_of_release(options.forms, member.card)
    told = Told(
        name=folder.absolute().name, license=options.license or UNKNOWN_LICENSE,
        history=history, seeds=seeds,
    )  # fmt: skip
    release = make_release(member, forms, told, folder, replace=options.replace)
    for path in sorted(folder.iterdir()):
        tell(f"{path}  {show_bytes(path.stat().st_size)}")
    for form, reason in release.left_out.items():
        say(f"note: no file for {form}: {reason}")
    if not options.license:
        say("note: the card says that the license is unknown: --license apache-2.0, for example, states one")


def name_of_release(member: Member) -> str:
    """Of a run, its id; of a file, its name without the ending; torchvision's own."""
    from trainer.scoring.weight_files import ENDINGS

    path = Path(member.name)
    return member.card.run_id if is_of_run(member) else path.stem if path.suffix in ENDINGS else path.name


def is_of_run(member: Member) -> bool:
    return bool(member.card.run_id) and member.name.partition("@")[0] == member.card.run_id


def history_of(store: ObjectStore, member: Member) -> History:
    """Of the run; nothing is known of a file."""
    from trainer.release.history import History, read_history

    return read_history(store, member.card) if is_of_run(member) else History()


def main(arguments: list[str] | None = None) -> int:
    given: dict[str, Any] = {
        "models": os.environ.get("RUNS")
        or os.environ.get("MODEL")
        or os.environ.get(RunEnv.variable("run_id"))
        or tyro.MISSING,
        "store": os.environ.get(RunEnv.variable("store")) or tyro.MISSING,
    }
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.release", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED

    # These are heavy to import, and `--help` does not need them.
    from trainer.store import StoreError

    try:
        release_models(options)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except StoreError as error:
        tell(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        tell("stopped; run the same command again", sys.stderr)
        return 130
    return Exit.FINISHED


if __name__ == "__main__":
    filter_tracebacks()
    sys.exit(main())
