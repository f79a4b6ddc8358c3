"""The command that scores weights on validation images: `python -m trainer.evaluate digits --store out`.

`make evaluate RUN=digits` is the same. Members answer all images in passes, the answers wait on disk, and what follows
streams over them. `runs/<run>/evaluations/` gets the result; nothing else of a run is changed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from trainer.contract import Exit, MachineError, RunEnv, UserError
from trainer.process.scratch import open_scratch
from trainer.text import forgive_output, say, tell

if TYPE_CHECKING:
    from trainer.learning.world import World
    from trainer.recipes.config import Config
    from trainer.scoring.data import ScoredSet
    from trainer.scoring.members import Member
    from trainer.scoring.passes import Answers
    from trainer.scoring.record import Evaluation
    from trainer.scoring.selection import Soup
    from trainer.scoring.together import Together
    from trainer.scoring.views import Views
    from trainer.setup import Data
    from trainer.store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score weights on validation images, each once: accuracy, loss, calibration, the worst classes, speed.

    The result is printed, and stored with the run, whose report then shows it.
    """

    models: tyro.conf.Positional[str]
    """A run (its best checkpoint), RUN@newest, RUN@STEP, a file of weights, or ResNet50_Weights.IMAGENET1K_V2;
    several with commas; else $RUNS, $MODEL or $TRAINER_RUN_ID."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    scratch: str
    """Local folder for data and predictions; else $TRAINER_SCRATCH_DIR."""
    data: str = ""
    """Prepared data, or what `make prepare` takes; else $TRAINER_DATA, or the validation images of the run."""
    set: Literal["", "imagenet-v2", "imagenet-real", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c"] = ""
    """A robustness set of ImageNet, whose images --data names: a folder as unpacked, or an id of the hub."""
    labels: str = ""
    """Of imagenet-real: real.json of its authors. Its images are ImageNet's validation images."""
    output: str = ""
    """Write all results into this file, as JSON."""
    soup: Literal["none", "uniform", "greedy"] = "none"
    """Of several runs: also score the mean of their weights. greedy: of those that do no harm."""
    write: str = ""
    """Write the soup into this file, as .safetensors."""
    views: str = "none"
    """Average the probabilities of several views: flip, five-crop, ten-crop, or scales=0.9,1,1.1."""
    sweep: str = ""
    """Try other test resolutions and crops, too: auto, or for example 192,224,256."""
    resize: int = 0
    """Pixels of the short side before the crop; 0 = as the weights are used to."""
    crop: int = 0
    """Pixels of a side of what the network sees; 0 = as the weights are used to."""
    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """Of a run: the model, its moving average, or the mean of its last epochs; auto: what scored best."""
    network: str = ""
    """Of a file of weights: torchvision's name, where the file does not say it; else what its tensors fit."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute."""
    batch_size: int = 256
    """Images at a time on each device."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What there is to tell, on the main process alone. `together` are an ensemble and a soup, where there are any."""

    members: list[Evaluation]
    together: dict[str, Together]
    soup: Soup | None = None  # for --write


def score_models(options: Options, world: World) -> Results | None:
    """The whole story: members, one pass for each geometry, measures. Only the main process has results.

    Raises UserError, StoreError.
    """
    from trainer.scoring.data import without_unreadable
    from trainer.scoring.image_sets import narrowed
    from trainer.scoring.passes import predictions_folder, run_passes
    from trainer.scoring.record import evaluate_answers
    from trainer.scoring.selection import open_statistics
    from trainer.scoring.soups import check_soup
    from trainer.scoring.sweep import run_sweeps, sweep_plans
    from trainer.scoring.together import score_ensemble, score_soup
    from trainer.scoring.views import largest_side, parse_views
    from trainer.store import open_store

    store, base, views = open_store(options.store), base_config(options), parse_views(options.views)
    members = open_members(options, store)
    check_soup(options.soup, options.write, members)
    if options.set:
        members = narrowed(members, options)
    plans = sweep_plans(members, options.sweep)
    sides = [largest_side([*views.pictures(one.card), *plans.get(one, ())]) for one in members]
    scored, scratch = open_scored(options, store, members, world, sides), open_scratch(options.scratch)
    training = None if options.soup == "none" else open_statistics(
        members, options.data, bool(options.set), scratch, store, world, options.workers
    )  # fmt: skip
    with predictions_folder(scratch, world) as folder:
        answers = run_passes(members, scored, base, world, folder, views)
        scored = without_unreadable(scored, world)
        soup = stir(options, store, answers, scored, world, folder, views, training) if options.soup != "none" else None
        sweeps = run_sweeps(plans, scored, base, world, scratch)
        if not world.is_main:
            return None
        found = [
            replace(evaluate_answers(one, scored, base, world, views), sweep=sweeps.get(one.member)) for one in answers
        ]
        together = {}
        if len(members) > 1:
            together["ensemble"] = score_ensemble(answers, found, scored, folder)
        if soup is not None:
            together["soup"] = score_soup(soup, evaluate_answers(soup.answers, soup.scored, base, world, views))
        return Results(members=found, together=together, soup=soup)


def stir(
    options: Options, store: ObjectStore, answers: Sequence[Answers], scored: ScoredSet, world: World, folder: Path,
    views: Views, training: Data | None,
) -> Soup:  # fmt: skip
    """The soup of the members. Raises UserError, StoreError."""
    from trainer.scoring.data import run_config_of
    from trainer.scoring.selection import Kitchen, make_soup

    trained = run_config_of(store, answers[0].member.card)
    kitchen = Kitchen(scored, training, trained, base_config(options), world, folder, views)
    return make_soup(options.soup, answers, kitchen)


def open_members(options: Options, store: ObjectStore) -> list[Member]:
    """What the user names, each once, with the sizes that the user wants. Raises UserError."""
    from trainer.scoring.members import open_member
    from trainer.scoring.views import with_sizes

    names = [name for name in dict.fromkeys(part.strip() for part in options.models.split(",")) if name]
    if not names:
        raise UserError(f"{options.models!r} names nothing to score: write for example digits, or digits-0,digits-1")
    opened = [open_member(name, store, options.weights, options.network) for name in names]
    return [replace(one, card=with_sizes(one.card, options.resize, options.crop)) for one in opened]


def open_scored(
    options: Options, store: ObjectStore, members: Sequence[Member], world: World, sides: Sequence[int]
) -> ScoredSet:
    """The images, whose classes are the members'. Raises UserError, StoreError."""
    from trainer.scoring.data import check_outputs, open_prepared
    from trainer.scoring.plain_folders import is_plain_folder, open_plain_folder
    from trainer.scoring.robustness import SetRequest, open_set

    scratch = open_scratch(options.scratch)
    if options.set:
        scored = open_set(SetRequest.of(options), store, members, world, sides)
    elif is_plain_folder(options.data):
        scored = open_plain_folder(options.data, scratch, members[0])
    else:
        scored = open_prepared(options.data, scratch, store, members, world, options.workers, sides)
    for member in members:
        check_outputs(member, scored)
    return scored


def base_config(options: Options) -> Config:
    """What does not depend on the weights. Raises UserError."""
    from trainer.recipes.config import Config, DataConfig

    if options.batch_size < 1 or options.workers < 0:
        raise UserError(
            f"--batch-size {options.batch_size} --workers {options.workers}: at least 1 image at a time, and 0 or more "
            "threads"
        )
    return Config(
        precision=options.precision, device=options.device, val_batch_size=options.batch_size,
        data=DataConfig(workers=options.workers),
    )  # fmt: skip


def keep(found: Results, options: Options) -> None:
    """Print the results, write the files that were asked for, store each with its run. Raises UserError, StoreError."""
    from trainer.scoring.record import name_in_store, write_output
    from trainer.scoring.soups import write_soup
    from trainer.scoring.table import evaluation_text
    from trainer.scoring.together import members_text
    from trainer.store import open_store

    store, records = open_store(options.store), [one.to_json() for one in found.members]
    tell(members_text(found.members) if found.together else evaluation_text(found.members[0]))
    for several in found.together.values():
        tell(f"\n{several.text()}")
    if found.soup is not None and options.write:
        write_soup(found.soup.member, found.soup.chosen, options.write)
        tell(f"written: {options.write}")
    if options.output:
        together = {name: several.to_json() for name, several in found.together.items()}
        write_output(options.output, {"evaluations": records} | together)
        tell(f"written: {options.output}")
    for one, record in zip(found.members, records, strict=True):
        if one.card.run_id and one.name.partition("@")[0] == one.card.run_id:  # a run of this store
            name = name_in_store(one, options.resize, options.crop, options.weights)
            keep_with_run(one, name, record, store)


def keep_with_run(one: Evaluation, name: str, record: dict[str, Any], store: ObjectStore) -> None:
    """Store the result and the surest mistakes under this name, and draw the run's report again where it has one."""
    from trainer.contract import run_key
    from trainer.report import write_report
    from trainer.scoring.contact import mistakes_sheet
    from trainer.scoring.record import evaluation_key

    run_id = one.card.run_id
    if sheet := mistakes_sheet(one):
        store.put(evaluation_key(run_id, name, "jpg"), sheet)
    store.put(key := evaluation_key(run_id, name), json.dumps(record, indent=1).encode())
    tell(f"stored: {store.describe(key)}")
    if any(store.list(run_key(run_id, "report/index.html"))):  # else the end of the run draws it
        tell(f"report: {write_report(store, run_id).report}")


def main(arguments: list[str] | None = None) -> int:
    names = {"models": "run_id", "store": "store", "scratch": "scratch_dir", "data": "data"}
    given: dict[str, Any] = {
        name: os.environ.get(RunEnv.variable(field)) or ("" if name == "data" else tyro.MISSING)
        for name, field in names.items()
    }
    given["models"] = os.environ.get("RUNS") or os.environ.get("MODEL") or given["models"]
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.evaluate", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.learning.device import check_device
    from trainer.learning.world import join
    from trainer.scoring.corruption_record import score_imagenet_c
    from trainer.scoring.record import check_output
    from trainer.setup import set_backends
    from trainer.store import StoreError, open_store

    try:
        base = base_config(options)
        check_output(options.output)
        with join(base) as world:
            if options.device == "cuda" and world.device.type != "cuda":
                raise UserError(
                    "--device cuda: torch finds no GPU on this machine; leave the option out, or use another"
                )
            check_device(base, world.device, world.size)
            set_backends(base)
            if options.set == "imagenet-c":
                score_imagenet_c(options, open_members(options, open_store(options.store)), base, world)
            elif (found := score_models(options, world)) is not None:
                keep(found, options)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except (StoreError, MachineError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped: nothing was stored, and no run was changed")
        return Exit.INTERRUPTED
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
