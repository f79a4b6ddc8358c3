"""The command that compares runs: `python -m trainer.compare a,b,c --store out`, or `make compare RUNS=a,b,c`.

Top-1 and time of each run, with their mean and standard deviation, and a page with their curves in the same charts.
It measures nothing.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from trainer.contract import RUN_ID_RULE, Exit, RunEnv, UserError, run_key
from trainer.text import forgive_output, say, show_duration, tell

if TYPE_CHECKING:
    from trainer.recipes.config import Config
    from trainer.store import ObjectStore
    from trainer.telemetry.metrics import Row

LAST = {"val": "last", "val_ema": "last, EMA", "val_swa": "last, SWA"}  # models that a validation scores

MOST_LETTERS_OF_A_NAME = 200  # of a file: file systems take 255


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs: top-1 and time of each, their mean and standard deviation, and where their configs differ."""

    runs: tyro.conf.Positional[str]
    """The runs, with commas between them: digits-0,digits-1,digits-2; else $RUNS."""
    store: str
    """Where the runs live: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    output: str = ""
    """The file for the page of curves; "" = comparisons/RUNS.html in the store."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run came to."""

    run_id: str
    config: Config | None  # None: of another version of this program
    data: str  # hash of the prepared images; "" where it is not known
    top1: dict[str, float]  # column -> share of the validation images
    seconds: float  # in training steps
    is_finished: bool
    rows: Sequence[Row]  # of its metrics
    steps_per_epoch: float | None


def names_of(runs: str) -> list[str]:
    """The run ids between the commas, each once. Raises UserError where there is none, or one that is no run id."""
    names = [name for name in dict.fromkeys(part.strip() for part in runs.split(",")) if name]
    if not names:
        raise UserError(f"RUNS={runs!r} names no run: write for example RUNS=digits-0,digits-1,digits-2")
    if odd := [name for name in names if not re.fullmatch(RUN_ID_RULE, name)]:
        raise UserError(f"RUNS={runs!r}: {odd[0]!r} is not a run id: use {RUN_ID_RULE}, for example digits-0")
    return names


def read_outcomes(store: ObjectStore, names: Sequence[str]) -> list[Outcome]:
    """The outcome of each run. Raises UserError that names all that are not there, StoreError."""
    found = {name: _read_outcome(store, name) for name in names}
    if missing := [name for name, outcome in found.items() if outcome is None]:
        known = sorted({info.key.split("/")[1] for info in store.list("runs/")})
        raise UserError(
            f"the store {store.uri} has no run {', '.join(map(repr, missing))}: choose from {', '.join(known)}, "
            "or name another store with STORE="
            if known
            else f"the store {store.uri} has no runs at all: name another with STORE="
        )
    return [outcome for outcome in found.values() if outcome is not None]


def _read_outcome(store: ObjectStore, run_id: str) -> Outcome | None:
    from trainer.recipes.config import Config
    from trainer.recipes.fields import from_json
    from trainer.report import read_shown
    from trainer.report.summary import check_shown_config, steps_in_epoch, training_seconds
    from trainer.telemetry.metrics import read_metrics

    told = read_shown(store, run_key(run_id, "config.json"), check_shown_config)
    result = read_shown(store, run_key(run_id, "result.json"), _check_outcome)
    if not told and not result:
        return None
    try:
        config = from_json(Config, told)
    except UserError:
        config = None
    rows = read_metrics(store, run_id)
    scored = [result["last"]] if result else [row for row in rows if "val/top1" in row]
    top1 = _top1_of(scored[-1]) if scored else {}
    every = [score for row in scored for score in _top1_of(row).values()]
    if every:
        top1 = {"best": result["best"]["top1"] if result else max(every)} | top1
    return Outcome(
        run_id=run_id, config=config, data=_data_of(store, result.get("checkpoint", "")), top1=top1,
        seconds=result["seconds"] if result else training_seconds(rows), is_finished=bool(result), rows=rows,
        steps_per_epoch=steps_in_epoch(result, rows),
    )  # fmt: skip


def _check_outcome(result: dict[str, Any]) -> None:
    """Raises ValueError if what is used of `result.json` is not what a trainer writes."""
    from trainer.report.summary import check_result
    from trainer.values import as_number, as_object, check_known

    check_result(result)
    for name in ("best", "seconds", "checkpoint"):
        check_known(result, name)
    for name, value in as_object("last", check_known(result, "last")).items():
        as_number(f"last.{name}", value)


def _top1_of(scores: dict[str, Any]) -> dict[str, float]:
    return {column: float(scores[f"{name}/top1"]) for name, column in LAST.items() if f"{name}/top1" in scores}


def _data_of(store: ObjectStore, manifest: str) -> str:
    """What the run was trained on, from the manifest of its last checkpoint."""
    from trainer.store import NotFoundError
    from trainer.values import as_object, parse_object

    try:
        data = as_object("data", parse_object(store.get(manifest)).get("data")) if manifest else {}
    except (NotFoundError, ValueError):
        return ""
    return str(data.get("sha256") or data.get("fingerprint") or "")


def unlike_runs(outcomes: Sequence[Outcome]) -> list[str]:
    """Why the mean may not be that of equal runs with different seeds: a line for each reason."""
    from trainer.recipes.fields import differences

    first, seeds, lines = outcomes[0], dict[int, str](), list[str]()
    for outcome in outcomes:
        name = outcome.run_id
        if not outcome.is_finished:
            lines.append(f"{name} is not finished: it is no part of the mean; the command that started it continues it")
        if outcome.data and first.data and outcome.data != first.data:
            lines.append(f"{name} was trained on other images than {first.run_id}")
        if outcome.config is None or first.config is None:
            if outcome is not first or first.config is None:
                lines.append(f"the config of {name} cannot be compared: it was written by another version")
            continue
        changed = [line for line in differences(first.config, outcome.config) if not line.startswith("seed: ")]
        if changed:
            lines.append(f"{name} differs from {first.run_id} in more than the seed: {'; '.join(changed)}")
        if not changed and (twin := seeds.setdefault(outcome.config.seed, name)) != name:
            lines.append(f"{name} has seed {outcome.config.seed}, as {twin} has: they differ by chance of the hardware")
    return lines


def table_of(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A head, each run, and the mean and the standard deviation of the finished ones."""
    columns = [name for name in ("best", *LAST.values()) if any(name in outcome.top1 for outcome in outcomes)]
    rows = [["", "seed", *(f"top-1 {name}" for name in columns), "training", ""]]
    for outcome in outcomes:
        top1 = [f"{100 * outcome.top1[name]:.2f} %" if name in outcome.top1 else "-" for name in columns]
        seed, state = str(outcome.config.seed) if outcome.config else "?", "" if outcome.is_finished else "not finished"
        rows.append([outcome.run_id, seed, *top1, show_duration(outcome.seconds), state])
    finished = [outcome for outcome in outcomes if outcome.is_finished]
    if finished:
        means = [_mean([outcome.top1[name] for outcome in finished if name in outcome.top1]) for name in columns]
        rows.append([f"mean of {len(finished)}", "", *means, _mean_time([outcome.seconds for outcome in finished]), ""])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The cells of a table as text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    )


def unlike_options(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A head, and a row for each option that is not the same in all runs whose config can be read."""
    from trainer.recipes.fields import flatten

    configs = [flatten(outcome.config, operational=False) if outcome.config else {} for outcome in outcomes]
    known = [config for config in configs if config]
    names = [name for name in (known[0] if known else ()) if any(one[name] != known[0][name] for one in known)]
    head = ["", *(outcome.run_id for outcome in outcomes)]
    return [head, *([name, *(str(config.get(name, "?")) for config in configs)] for name in names)]


def comparison_key(names: Sequence[str]) -> str:
    """`comparisons/<the names>.html` in the store; of many, the first and a checksum of all."""
    name = ",".join(names)
    if len(name) > MOST_LETTERS_OF_A_NAME:
        name = f"{names[0]} and {len(names) - 1} others, {zlib.crc32(name.encode()):08x}"
    return f"comparisons/{name}.html"


def write_page(store: ObjectStore, outcomes: Sequence[Outcome], output: str) -> str:
    """Write the page with the curves of all runs, and return where it is. Raises UserError, StoreError."""
    from trainer.report.comparison import render_comparison
    from trainer.report.overlay import RunCurves, draw_overlays

    names = [outcome.run_id for outcome in outcomes]
    curves = draw_overlays([RunCurves(rows=one.rows, steps_per_epoch=one.steps_per_epoch) for one in outcomes])
    page = render_comparison(
        names, table_of(outcomes), unlike_runs(outcomes), unlike_options(outcomes), curves, f"Store {store.uri}"
    ).encode()
    if output:
        try:
            Path(output).write_bytes(page)
        except OSError as error:
            raise UserError(f"--output {output!r} cannot be written ({error}): name another file") from error
        return output
    key = comparison_key(names)
    store.put(key, page)
    return store.describe(key)


def _mean(shares: Sequence[float]) -> str:
    """98.56 ± 0.12 %: mean and standard deviation of a sample, in percent; one alone has no deviation."""
    if not shares:
        return "-"
    deviation = f" ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.2f}{deviation} %"


def _mean_time(seconds: Sequence[float]) -> str:
    deviation = f" ± {show_duration(statistics.stdev(seconds))}" if len(seconds) > 1 else ""
    return show_duration(statistics.fmean(seconds)) + deviation


def main(arguments: list[str] | None = None) -> int:
    given = {
        "runs": os.environ.get("RUNS") or tyro.MISSING,
        "store": os.environ.get(RunEnv.variable("store")) or tyro.MISSING,
    }
    try:
        options = tyro.cli(Options, default=Options(**given), prog="python -m trainer.compare", args=arguments)
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import StoreError, open_store

    try:
        outcomes = read_outcomes(store := open_store(options.store), names_of(options.runs))
        tell(aligned(table_of(outcomes)))
        for line in unlike_runs(outcomes):
            tell(line)
        try:
            say(f"curves: {write_page(store, outcomes, options.output)}")
        except StoreError as error:  # who may only read the store has the table
            say(f"the page of curves is not stored ({error}): name a file for it with --output FILE")
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except StoreError as error:  # a fault of the store, not of the user
        tell(f"error: {error}", sys.stderr)
        return 1
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    sys.exit(main())
