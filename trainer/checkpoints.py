"""The command for a run's checkpoints: `python -m trainer.checkpoints list | verify | export FILE`.

It only reads. Exit code 0: all is well. 78: nothing can be used, or the bytes are not those that were saved.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from trainer.contract import Exit, Lease, RunEnv, UserError, parse_manifest_key
from trainer.text import show_bytes

if TYPE_CHECKING:
    from trainer.checkpoint.restore import Manifest
    from trainer.store import ObjectStore


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

    weights: Literal["auto", "model", "ema"] = "auto"
    """The model itself or its average; auto: what scored best, else the average where there is one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at the checkpoints of a run, check them, or export weights."""

    command: Annotated[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")],
        tyro.conf.arg(name=""),
    ]
    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run; else $TRAINER_RUN_ID."""


def found(store: ObjectStore, run_id: str) -> tuple[Lease | None, list[str]]:
    """The lease, and all manifests with the newest first. UserError if there is none."""
    from trainer.checkpoint.restore import list_manifests

    lease, keys = list_manifests(store, run_id)
    if not keys:
        raise UserError(f"run {run_id!r} has no checkpoint in {store.uri}: check the names (RUN=, STORE=)")
    return lease, sorted(keys, key=lambda key: parse_manifest_key(key) or (0, 0), reverse=True)


def print_list(store: ObjectStore, run_id: str) -> None:
    """Print a table of the checkpoints."""
    from trainer.checkpoint.restore import DamagedError, read_manifest

    lease, keys = found(store, run_id)
    print(f"{'step':>9}  {'attempt':>7}  {'saved':<20} {'MB':>7}  what")
    for key in keys:
        roles = [name for name in ("newest", "previous", "best") if lease and getattr(lease, name) == key]
        attempt, step = parse_manifest_key(key) or (0, 0)
        try:
            manifest = read_manifest(store, run_id, key)
        except DamagedError as error:
            print(f"{step:>9}  {attempt:>7}  {'':<20} {'':>7}  damaged: {error}")
        else:
            saved = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(manifest["time"]))
            size = manifest["object"]["bytes"] / 1e6
            print(f"{step:>9}  {attempt:>7}  {saved:<20} {size:>7.1f}  {', '.join(roles) or 'superseded'}")


def verify(store: ObjectStore, run_id: str, *, every: bool) -> bool:
    """Whether all bytes and metrics are right. Prints a line for each checkpoint."""
    from trainer.checkpoint.restore import DamagedError, read_manifest, read_object
    from trainer.telemetry.metrics import read_metrics

    lease, keys = found(store, run_id)
    wanted = keys if every or lease is None else lease.keys()
    newest, good = 0, True
    for key in keys:
        if key not in wanted:
            continue
        try:
            manifest = read_manifest(store, run_id, key)
            body = read_object(store, manifest)
        except DamagedError as error:
            print(f"DAMAGED  {store.describe(key)}: {error}")
            good = False
        else:
            print(f"ok       {store.describe(key)}: {len(body):,} bytes")
            newest = max(newest, manifest["step"])
    steps = {row["step"] for row in read_metrics(store, run_id) if "train/loss" in row}
    missing = sorted(set(range(1, newest + 1)) - steps)
    print(
        f"{'MISSING ' if missing else 'ok      '} metrics of steps 1 to {newest:,}" + f": {missing[:9]}" * bool(missing)
    )
    return good and not missing


def choose_checkpoint(store: ObjectStore, run_id: str, options: Export) -> tuple[str, Manifest]:
    """The key and the manifest of the checkpoint to export. Raises UserError."""
    from trainer.checkpoint.restore import DamagedError, read_manifest

    lease, keys = found(store, run_id)
    if options.step is not None:
        keys = [key for key in keys if (parse_manifest_key(key) or (0, 0))[1] == options.step]
        if not keys:
            raise UserError(f"--step {options.step}: run {run_id!r} has no checkpoint of it; `list` shows those it has")
    elif options.which == "best" and lease is not None and lease.best:
        keys = [lease.best]
    elif lease is not None and lease.newest:
        keys = [lease.newest]
    try:
        return keys[0], read_manifest(store, run_id, keys[0])
    except DamagedError as error:
        raise UserError(f"{store.describe(keys[0])} is damaged ({error}): choose another with --step") from error


def export(store: ObjectStore, run_id: str, options: Export) -> None:
    """Write the file. Raises UserError."""
    import safetensors.torch

    from trainer.checkpoint.restore import DamagedError, read_object, tensors_of

    key, manifest = choose_checkpoint(store, run_id, options)
    try:
        tensors = tensors_of(read_object(store, manifest))
    except DamagedError as error:
        raise UserError(f"{store.describe(key)} is damaged ({error}): choose another with --step") from error
    best, has_average = manifest["counters"]["best"], any(name.startswith("ema.") for name in tensors)
    scored = best["weights"] if best["step"] == manifest["step"] else "ema" if has_average else "model"
    weights = scored if options.weights == "auto" else options.weights
    plain = {name.removeprefix(f"{weights}."): tensor.contiguous() for name, tensor in tensors.items()
             if name.startswith(f"{weights}.")}  # fmt: skip
    if not plain:
        raise UserError(f"--weights {weights}: this run keeps no average of its weights; use --weights model")
    model = manifest["config"]["model"]["name"]
    about = {"format": "pt", "model": model, "run": run_id, "step": str(manifest["step"]), "weights": weights}
    try:
        safetensors.torch.save_file(plain, options.file, metadata=about)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{options.file!r} cannot be written: {error}; name another file") from error
    size = show_bytes(sum(tensor.nbytes for tensor in plain.values()))
    print(f"{options.file}: {model}, step {manifest['step']:,}, {weights} weights, {len(plain)} tensors, {size}")


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
                    export(store, options.run_id, asked)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
