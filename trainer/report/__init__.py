"""The report of a run: curves as PNGs, one self-contained HTML page, a summary for the terminal.

It reads what the run wrote to its store, measures nothing, and writes `report/…`. `summary` says what the rows of a run
mean; `charts` and `page` show them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.line import list_manifests
from trainer.contract import RUN_ID_RULE, UserError, run_key
from trainer.report.drawing import draw_here
from trainer.report.outlook import check_budget, check_spend, look_ahead
from trainer.report.summary import Summary, check_result, check_shown_config, summarise, summary_text
from trainer.telemetry.metrics import Row, read_metrics
from trainer.telemetry.samples import alerts_of, read_samples
from trainer.text import say
from trainer.values import as_object, as_text, parse_object

if TYPE_CHECKING:
    from trainer.report.drawing import Charts
    from trainer.report.plotted import Plotted
    from trainer.report.scored import Scored
    from trainer.store import ObjectStore

    Draw = Callable[[Plotted], Charts]

__all__ = ["Report", "Summary", "build_report", "summary_text", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of a run, in memory: its main facts, and its files by name, index.html and a PNG for each chart."""

    summary: Summary
    files: Mapping[str, bytes]


def write_report(store: ObjectStore, run_id: str, kept: Path | None = None, draw: Draw = draw_here) -> Summary:
    """Read the run, put `report/index.html` and `report/*.png` beside it, return the summary."""
    report = build_report(store, run_id, kept, draw)
    for name, body in report.files.items():
        store.put(run_key(run_id, f"report/{name}"), body)
    return report.summary


def build_report(store: ObjectStore, run_id: str, kept: Path | None = None, draw: Draw = draw_here) -> Report:
    """Read the run, which may still go on, and make the files of its report. Nothing is written to the store.

    `draw` draws the charts.
    Segments in the folder `kept` are not read from the store, and those that are read are kept there.
    Raises UserError if there is no such run, StoreError if the store fails.
    """
    from trainer.report.scored import read_scored

    if not re.fullmatch(RUN_ID_RULE, run_id):
        raise UserError(f"{run_id!r} is not a run id: use {RUN_ID_RULE}, for example --run-id digits")
    config = read_shown(store, run_key(run_id, "config.json"), check_shown_config)
    result = read_shown(store, run_key(run_id, "result.json"), check_result)
    rows: Sequence[Row] = read_metrics(store, run_id, kept)
    if not rows and not config and not result:
        raise UserError(no_such_run(store, run_id))
    samples = read_samples(store, run_id, kept=kept)
    newest = str(result.get("checkpoint") or next(iter(list_manifests(store, run_id)[1]), ""))
    summary = summarise(
        run_id,
        rows,
        config,
        result,
        checkpoint=store.describe(newest) if newest else "",
        metrics=store.describe(run_key(run_id, "metrics")),
        report=store.describe(run_key(run_id, "report/index.html")),
    )
    spend = read_shown(store, run_key(run_id, "spend.json"), check_spend)
    spec = read_shown(store, run_key(run_id, "spec.json"), check_budget)
    steps_left = max(0, summary.total_steps - summary.steps) if summary.total_steps else None
    outlook = look_ahead(rows, samples, config, spend, spec, steps_left=0 if summary.is_finished else steps_left)
    versions = read_shown(store, newest, check_versions).get("versions", {}) if newest else {}
    summary, scored = replace(summary, outlook=outlook), read_scored(store, run_id)
    return draw_report(summary, rows, samples, config, versions, scored, draw)


def draw_report(
    summary: Summary, rows: Sequence[Row], samples: Sequence[Row], config: Mapping[str, Any],
    versions: Mapping[str, str], scored: Sequence[Scored], draw: Draw,
) -> Report:  # fmt: skip
    # These are heavy to import, and `--help` does not need them.
    from trainer.report.machine_facts import machine_facts
    from trainer.report.page import Shown, render_page
    from trainer.report.plan import plan_of
    from trainer.report.plotted import plotted_of

    plan = plan_of(config, summary.steps_per_epoch)
    training, machine = draw(plotted_of(rows, samples, plan, summary.steps_per_epoch))
    page = render_page(
        summary,
        rows,
        Shown(
            config=config,
            versions=versions,
            training=training,
            machine=machine,
            machine_facts=machine_facts(samples, rows),
            alerts=alerts_of(samples),
            scored=scored,
        ),
    )
    files = {f"{name}.png": chart.png for name, chart in training.items() if chart.png}
    return Report(summary=summary, files=files | {"index.html": page.encode()})  # the page last: it is what people open


def check_versions(manifest: dict[str, Any]) -> None:
    """Raises ValueError if a manifest's versions are not text by name. It may have none."""
    for name, version in as_object("versions", manifest.get("versions", {})).items():
        as_text(f"versions.{name}", version)


def read_shown(store: ObjectStore, key: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The object; {} if there is none, or with a message if no trainer wrote it."""
    from trainer.store import NotFoundError, StoreError

    try:
        found = parse_object(store.get(key))
        check(found)
        return found
    except NotFoundError:
        return {}
    except ValueError as error:
        say(f"{store.describe(key)} is not what a trainer writes ({error}): skipped")
        return {}
    except StoreError as error:
        if error.code in ("ENOENT", "ENOTDIR", "NoSuchBucket"):
            raise UserError(
                f"there is no store {store.uri}; start a run, `make train`, or name another with --store"
            ) from error
        raise


def no_such_run(store: ObjectStore, run_id: str) -> str:
    known = sorted({info.key.split("/")[1] for info in store.list("runs/")})
    fix = f"it has {', '.join(known)}: choose one with --run-id" if known else "it has no runs: start one, `make train`"
    return f"there is no run {run_id!r} in the store {store.uri}; {fix}, or name another store with --store"
