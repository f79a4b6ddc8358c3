"""The command for a run's checkpoints: `python -m trainer.checkpoints list | verify | export | rewind | undelete`.

Only `rewind` and `undelete` write to the store. Exit code 0: all is well. 76: a trainer owns the run, which must be
stopped first. 78: nothing can be used, or the bytes are not those that were saved.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from trainer.contract import Exit, Lease, LostRunError, RunEnv, UserError, checkpoint_key, parse_manifest_key, run_key
from trainer.process.scratch import open_scratch
from trainer.text import filter_tracebacks, say, show_sha256, tell

if TYPE_CHECKING:
    from trainer.store import ObjectStore
    from trainer.upload.rewind import OldCheckpoint


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the checkpoints of a run, the newest first: step, attempt, age, size, and what HEAD.json says of each."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read checkpoints and compare every byte with the checksums; also whether the metrics have every step."""

    every: bool = False
    """All that are there, not only those that HEAD.json names."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write plain weights for torchvision's or timm's model of the same name, as safetensors.

    model.load_state_dict(safetensors.torch.load_file(FILE))
    """

    file: tyro.conf.Positional[str]
    """The file to write, for example resnet50.safetensors."""

    which: Literal["best", "newest"] = "best"
    """The checkpoint: the best by validation (of the weights that scored it), or the newest."""

    step: int | None = None
    """The checkpoint of this step instead."""

    weights: Literal["auto", "model", "ema", "swa"] = "auto"
    """The model itself, its moving average, or the mean of its last epochs (--average.late-epochs).

    auto: what scored best, else the moving average where there is one.
    """


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Go back to an older step, after a divergence for example: its checkpoint becomes the newest one.

    Nothing is deleted. The checkpoints of later steps stay in the store, and `rewind` leads to them, too. The run must
    not be training meanwhile. Afterwards, start it again as before. For another learning rate, start it with
    --checkpoint.accept-changes --optim.peak-lr 0.05, for example.
    """

    step: tyro.conf.Positional[int]
    """The step to go back to. `list` shows which there are."""

    attempt: int | None = None
    """The attempt that saved it, where several have saved this step; else the last one, on the present line if it can
    be."""


@dataclass(frozen=True, kw_only=True)
class Undelete:
    """Bring back checkpoints that somebody has deleted, overwritten or tagged as superseded, from the bucket's old
    versions.

    What the run itself had superseded is left alone. Nothing that is there is removed.
    """

    every: bool = False
    """Also what the run itself had superseded and the bucket's lifecycle has hidden, for a `rewind` to it."""

    dry_run: bool = False
    """Only say what would be brought back."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at the checkpoints of a run, check them, export weights, go back to an older one, bring lost ones back."""

    command: Annotated[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Rewind, tyro.conf.subcommand("rewind")]
        | Annotated[Undelete, tyro.conf.subcommand("undelete")],
        tyro.conf.arg(name=""),
    ]
    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run; else $TRAINER_RUN_ID."""


def print_list(store: ObjectStore, run_id: str) -> None:
    """Print a table of the checkpoints."""
    from trainer.checkpoint.line import Checkpoints
    from trainer.checkpoint.restore import DamagedError, Digests, read_digest

    found = Checkpoints.find(store, run_id)
    digests = Digests(found.lease)
    tell(f"{'step':>9}  {'attempt':>7}  {'saved':<20} {'MB':>7}  {'SHA-256':<16}  what")
    for key in found.keys:
        attempt, step = parse_manifest_key(key) or (0, 0)
        try:
            manifest, sha256 = read_digest(store, run_id, key, digests)
        except DamagedError as error:
            tell(f"{step:>9}  {attempt:>7}  {'':<20} {'':>7}  {'':<16}  damaged: {error}")
        else:
            saved = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(manifest["time"]))
            size = manifest["object"]["bytes"] / 1e6
            tell(f"{step:>9}  {attempt:>7}  {saved:<20} {size:>7.1f}  {sha256[:16]:<16}  {found.role(key)}")


def verify(store: ObjectStore, run_id: str, *, every: bool) -> bool:
    """Whether all bytes and metrics are right. Prints a line for each checkpoint."""
    from trainer.checkpoint.line import Checkpoints
    from trainer.checkpoint.restore import DamagedError, Digests, read_digest, read_object
    from trainer.telemetry.metrics import read_metrics

    found = Checkpoints.find(store, run_id)
    digests = Digests(found.lease)
    wanted = found.keys if every or found.lease is None else found.lease.keys() | {found.newest}
    newest, good = 0, True
    for key in found.keys:
        if key not in wanted:
            continue
        try:
            manifest, sha256 = read_digest(store, run_id, key, digests)
            doubt = "" if digests.vouch(key, manifest) else ", which no newer checkpoint has"
            body = read_object(store, manifest)
        except DamagedError as error:
            tell(f"DAMAGED  {store.describe(key)}: {error}")
            good = False
        else:
            tell(f"ok       {store.describe(key)}: {len(body):,} bytes, {show_sha256(sha256)}{doubt}")
            newest = max(newest, manifest["step"] if found.line.has(key) else 0)
    steps = {row["step"] for row in read_metrics(store, run_id) if "train/loss" in row}
    missing = sorted(set(range(1, newest + 1)) - steps)
    tell(
        f"{'MISSING ' if missing else 'ok      '} metrics of steps 1 to {newest:,}" + f": {missing[:9]}" * bool(missing)
    )
    return good and not missing


def go_back(store: ObjectStore, run_id: str, options: Rewind) -> None:
    """Make an older checkpoint the newest. Raises UserError, LostRunError."""
    from trainer.checkpoint.line import Checkpoints, read_lease, read_line
    from trainer.checkpoint.restore import DamagedError, read_known, read_object
    from trainer.telemetry.metrics import put_rewind
    from trainer.upload.rewind import OldCheckpoint, rewind

    run = {RunEnv.variable("store"): store.uri, RunEnv.variable("run_id"): run_id}
    env = RunEnv.from_environ({RunEnv.variable("scratch_dir"): ".scratch"} | os.environ | run)
    open_scratch(env.scratch_dir)
    if (done := run_key(run_id, "done.json")) in (info.key for info in store.list(done)):
        raise UserError(
            f"run {run_id!r} is finished, and no step of it is left to train: start a new run (RUN=another)"
        )
    found = Checkpoints.find(store, run_id)
    of = "" if options.attempt is None else f" of attempt {options.attempt}"
    key = found.of_step(options.step, options.attempt, asked=f"step {options.step}{of}")
    if found.lease is not None and key == found.newest == found.lease.newest:
        tell(f"step {options.step} is the newest checkpoint of run {run_id!r} already: start the run to go on from it")
        return
    try:
        manifest, sha256, digest = read_known(store, found, key)
        body = read_object(store, manifest)
    except DamagedError as error:
        raise UserError(f"{store.describe(key)} is damaged ({error}): choose another step") from error
    say(f"the checkpoint has {digest}")
    for lack in store.probe(checkpoint_key(run_id, "probe"), for_checkpoints=True):
        say(f"note: {lack}")
    line = read_line(store, run_id, key)
    on_line = [one for one in found.keys if line.has(one)]
    target = OldCheckpoint(key=key, sha256=sha256, manifest=manifest, body=body, line=on_line)
    origin = int(manifest["attempt"])
    new = rewind(store, env, target, lambda attempt: put_rewind(store, run_id, attempt, options.step, origin), say)
    tell_rewound(target, store.describe(new), read_lease(store, run_id))


def tell_rewound(target: OldCheckpoint, new: str, lease: Lease | None) -> None:
    """Say what was done, and how to go on. `new` is where the manifest is."""
    manifest, best = target.manifest, target.manifest["counters"].get("best", {})
    tell(f"step {target.step} of attempt {manifest['attempt']} is the newest checkpoint again, as {new}")
    tell('nothing was deleted: `list` calls what is beside the new line "left", and `rewind` leads there, too')
    if lease is not None and not lease.best and best.get("step"):
        tell(f"the weights of the best validation so far, of step {best['step']}, are not kept: a better one will be")
    peak_lr = manifest["config"].get("optim", {}).get("peak_lr", "its own")
    tell(
        "to go on, start the run with the command that it was started with; for another learning rate than "
        f"{peak_lr}, add --checkpoint.accept-changes --optim.peak-lr VALUE to its options"
    )


def main(arguments: list[str] | None = None) -> int:
    given = {name: os.environ.get(RunEnv.variable(name)) or tyro.MISSING for name in ("store", "run_id")}
    default = Options(command=tyro.MISSING, **given)
    try:
        options = tyro.cli(Options, default=default, prog="python -m trainer.checkpoints", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError, naming_the_fix, open_store

    try:
        store = open_store(options.store)
        with naming_the_fix(f"the store {store.uri}"):
            match options.command:
                case List():
                    print_list(store, options.run_id)
                case Verify(every=every):
                    return Exit.FINISHED if verify(store, options.run_id, every=every) else Exit.USER
                case Export() as asked:
                    from trainer.checkpoint.export import export

                    export(store, options.run_id, asked.file, which=asked.which, step=asked.step, weights=asked.weights)
                case Rewind() as asked:
                    go_back(store, options.run_id, asked)
                case Undelete() as asked:
                    from trainer.checkpoint.undelete import undelete

                    undelete(store, options.run_id, every=asked.every, dry_run=asked.dry_run, say=tell)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except LostRunError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.HELD
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
