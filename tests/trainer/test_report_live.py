"""The report of a run that goes on: what lies ahead, what the machine did, what was told, and what a browser shows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.hostile import forgeries
from tests.images import encode, photo
from tests.trainer.browsed import browse
from tests.trainer.made_run import BEGIN, STARVED, MadeRun, alert_row, put_rows
from tests.trainer.test_report_scored import RECORD
from trainer.contract import manifest_key, run_key
from trainer.learning.schedule import Clock
from trainer.recipes.fields import to_json
from trainer.report import Report, build_report, charts, summary_text
from trainer.report.alert_table import MOST_TOLD
from trainer.report.curves import MOST_POINTS, curve_of, curves_of, done_resolution, machine_seconds
from trainer.report.outlook import look_ahead
from trainer.report.plan import plan_of
from trainer.report.plotted import plotted_of
from trainer.report.scored import MOST_SHEET_BYTES, MOST_SHOWN
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import Row
from trainer.telemetry.samples import samples_key

pytestmark = pytest.mark.slow
MADE = MadeRun()
EVIL = '"><img src=x onerror="parent.hacked=1"><script>parent.hacked=1</script>'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    """The run, one evaluation of it whose classes have hostile names, and a hostile alert."""
    store = open_store(str(tmp_path_factory.mktemp("made")))
    MADE.put(store)
    answers = [{"name": EVIL, "images": 3}]
    odd = {"classes": [{"name": EVIL, "images": 50, "top1": 0.5, "taken_for": answers}]}
    odd |= {"mistakes": [{"image": 1, "label": EVIL, "answer": EVIL, "probability": 0.9}] * 10}
    store.put(run_key("made-up", "evaluations/imagenet.json"), json.dumps(RECORD | odd).encode())
    store.put(run_key("made-up", "evaluations/imagenet.jpg"), encode(photo(0, 8 * 96, 2 * 96), quality=80))
    told = alert_row({"step": 2_600, "time": BEGIN + 1.03e4}, "hung", "error", f"no step for 5 min {EVIL}")
    store.put(samples_key("made-up", 3, 2), json.dumps(told).encode())
    return store


@pytest.fixture(scope="module")
def report(made: ObjectStore) -> Report:
    return build_report(made, "made-up")


def page_of(report: Report) -> str:
    return report.files["index.html"].decode()


def test_a_run_that_goes_on_says_what_is_left_and_what_it_costs(report: Report) -> None:
    ahead = report.summary.outlook
    seconds = (MADE.total - MADE.done) * MADE.seconds_per_step * (160 / 192) ** 2
    assert ahead.seconds_left == pytest.approx(seconds, rel=0.05)
    assert (ahead.spent_usd, ahead.budget_usd) == (0.455, 8.0)
    assert ahead.projected_usd == pytest.approx(0.455 + 0.45 * seconds / 3600, rel=0.05)
    assert ahead.kwh == pytest.approx(0.24, rel=0.1)
    text = summary_text(report.summary)
    for words in (r"time left +about 2\d min", r"spent +\$0\.4[56]", r"projected +\$0\.6", r"budget +\$8\.00", "kWh"):
        assert re.search(words, text), words
    page = page_of(report)
    for words in ("<b>65 %</b> done", "left · ends about 2026-05-", "if nothing interrupts it · as of 2026-05-"):
        assert words in page, words
    assert 'value="0.6500" aria-label="65 percent of the steps are done"' in page


def test_a_run_without_speed_budget_or_machine_promises_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    rows = MADE.rows(Random(0), 0, 15, BEGIN)
    put_rows(store, "bare", 1, [{"step": 0, "time": BEGIN, "event": "start", "attempt": 1, "origin": 0}, *rows])
    report = build_report(store, "bare")
    ahead = report.summary.outlook
    assert (ahead.seconds_left, ahead.spent_usd, ahead.projected_usd, ahead.budget_usd, ahead.kwh) == (None,) * 5
    assert not {"Machine", "Alerts", "Versions"} & set(re.findall(r"<(?:h2|summary)>(\w+)<", page_of(report)))


def test_dollars_count_from_the_last_count_on_and_only_while_a_machine_runs() -> None:
    rows: list[Row] = [{"step": 10, "time": BEGIN + 600, "speed/images_per_second": 256.0}]
    config, machine = {"global_batch_size": 256}, {"usd_per_hour": 1.2, "ended": 0.0}
    spend: dict[str, Any] = {"at": BEGIN, "usd": 2.0, "machines": [machine, {"usd_per_hour": 9.0, "ended": BEGIN}]}
    ahead = look_ahead(rows, [], config, spend, {}, steps_left=3000)
    assert ahead.seconds_left == 3000
    assert ahead.projected_usd == pytest.approx(2.0 + 1.2 * (600 + 3000) / 3600)
    ended = look_ahead(rows, [], config, spend | {"machines": [machine | {"ended": BEGIN}]}, {}, steps_left=3000)
    assert (ended.spent_usd, ended.projected_usd) == (2.0, None)


def test_all_is_done_only_at_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "draw_charts", lambda *_: ({}, {}))
    store = open_store(str(tmp_path))
    begin: Row = {"step": 0, "time": BEGIN, "event": "start", "attempt": 1, "origin": 0}
    put_rows(store, "made-up", 1, [begin, *MADE.rows(Random(0), MADE.total - 20, MADE.total - 1, BEGIN)])
    MADE.put_documents(store, BEGIN)
    page = page_of(build_report(store, "made-up"))
    assert "<b>99 %</b> done" in page
    assert 'aria-label="99 percent of the steps are done"' in page


def test_the_resolution_as_done_is_the_measured_one() -> None:
    plan = plan_of(json.loads(json.dumps(to_json(MADE.config))), float(MADE.steps_per_epoch))
    planned = MADE.config.resolution_at(0)
    old = list(MADE.rows(Random(0), 0, 10, BEGIN))
    new = [row | {"train/resolution": 96 if row["step"] < 16 else 64} for row in MADE.rows(Random(0), 10, 20, BEGIN)]
    along_steps, _ = charts.draw_charts(plotted_of([*old, *new], [], plan, float(MADE.steps_per_epoch)))
    words = along_steps["learning-rate"].words
    assert f"pixels 64 at the end, lowest 64 at step 16, highest {planned} at step 1." in words
    curve = done_resolution([*old, *new], plan["plan/resolution"])
    assert curve is not None
    stretches = [(place, size) for place, size in zip(curve.at, curve.mean, strict=True) if place >= 10]
    assert stretches == [(10, planned), (11, 96), (15, 96), (16, 64), (20, 64)]


def test_what_the_machine_did_and_what_was_told_stand_in_the_page(report: Report) -> None:
    page = page_of(report)
    assert "GPU utilisation, mean" in page
    assert "hottest GPU" in page
    assert STARVED in page
    first = page.index("<h2>Alerts</h2>")
    assert page.index("no step for 5 min", first) < page.index(STARVED, first) < page.index("attempt 2 goes on", first)
    assert page.count('<li class="info">') == 3, "they are folded, since others are worse"
    for name in ("torch</th><td>2.11.0", "commit</th><td>0123abc"):
        assert name in page


def test_every_chart_says_in_numbers_what_it_shows(report: Report, made: ObjectStore) -> None:
    words = re.findall(r'<figure role="img" aria-label="([^"]+)"', page_of(report))
    assert len(words) == 10
    titles = ("Loss", "Accuracy", "Learning rate", "Images per second", "Step time", "Work that no", "GPU utilisation",
              "GPU power", "Processors", "Scratch disk")  # fmt: skip
    for said, title in zip(words, titles, strict=True):
        assert said.startswith(title)
        assert re.search(r"\d at the end, lowest .+ at .+, highest .+ at (?:step [\d,]+|[\d.]+ min)", said), said
    assert "pixels 160 at the end" in words[2]


def test_the_plan_is_that_of_the_clock_and_what_is_done_ends_where_the_run_is() -> None:
    config = json.loads(json.dumps(to_json(MADE.config)))
    plan = plan_of(config, float(MADE.steps_per_epoch))
    clock = Clock(config=MADE.config, steps_per_epoch=MADE.steps_per_epoch)
    for at, rate, pixels in zip(plan["plan/lr"].at, plan["plan/lr"].mean, plan["plan/resolution"].mean, strict=True):
        settings = clock.at(int(at) - 1)
        assert (rate, pixels) == (settings.lr, settings.resolution)
    assert (plan["plan/lr"].at[0], plan["plan/lr"].at[-1]) == (1, MADE.total)
    assert plan_of(config | {"unknown": 1}, 250.0) == {} == plan_of({}, 250.0) == plan_of(config, None)


def test_a_long_curve_keeps_its_minima_and_maxima() -> None:
    values = np.sin(np.arange(100_000) / 9_000)
    values[77_777], values[33_333], values[5] = 40.0, -30.0, math.nan
    rows: list[Row] = [{"step": step, "time": 0.0, "train/loss": value} for step, value in enumerate(values.tolist())]
    curve = curves_of(rows, ["train/loss", "val/loss"])["train/loss"]
    assert 200 < len(curve.at) <= MOST_POINTS
    assert (curve.high.max(), curve.low.min()) == (40.0, -30.0)
    assert (curve.highest.at, curve.lowest.at, curve.last) == (77_777, 33_333, values[-1])
    nearest = np.abs(curve.at - 77_777).argmin()
    assert curve.high[nearest] == 40.0, "it is where it was"
    assert np.all((curve.low <= curve.mean) & (curve.mean <= curve.high))
    assert curve_of([1.0], [math.nan]) is None


def test_a_clock_that_jumps_and_a_night_without_a_machine_take_no_room() -> None:
    times = [0, 10, 20, 9e8, 9e8 + 10, 30, 40]
    samples = [{"time": BEGIN + time, "step": 1, "attempt": 1} for time in times]
    samples += [{"time": BEGIN + 50_000 + time, "step": 1, "attempt": 2} for time in (0, 10)]
    assert machine_seconds(samples).tolist() == [0, 10, 20, 80, 90, 90, 100, 100, 110]
    assert machine_seconds([]).tolist() == []


def test_forged_spend_spec_and_manifest_are_skipped(made: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "draw_charts", lambda *_: ({}, {}))
    small = replace(MADE, run_id="forged", done=40, continues=())
    small.put(made)
    documents: dict[str, Any] = {
        run_key("forged", "spend.json"): {"at": 1.0, "usd": 2.0, "machines": [{"usd_per_hour": 1.0, "ended": 0.0}]},
        run_key("forged", "spec.json"): {"budget_usd": 5.0},
        manifest_key("forged", 40, 1): {"versions": {"torch": "2"}},
    }
    for key, honest in documents.items():
        before = made.get(key)
        for body in forgeries(honest):
            made.put(key, body)
            assert "</html>" in page_of(build_report(made, "forged"))
        made.put(key, before)


def test_forged_samples_and_alerts_are_left_out(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    small = replace(MADE, done=40, continues=())
    small.put(store)
    odd: list[Any] = [math.nan, math.inf, -1e100, 1e100, 0]
    rows = [{"step": 1, "time": BEGIN + i, "gpu/utilization": v, "energy/kwh": v} for i, v in enumerate(odd)]
    told: list[tuple[Any, Any]] = [("fatal", "of no level"), (["error"], "of no level"), ("error", 7)]
    for level, text in (*told, ("error", "a" * 10**5)):
        rows.append(alert_row({"step": 1, "time": BEGIN}, "hung", level, text))
    rows += [alert_row({"step": i, "time": BEGIN + i}, "best", "info", "b" * 300) for i in range(1_000)]
    store.put(samples_key("made-up", 1, 7), "\n".join(json.dumps(row) for row in rows).encode())
    page = page_of(build_report(store, "made-up"))
    assert "of no level" not in page
    assert f"All {MOST_TOLD} alerts" in page
    assert len(page) < 1_000_000
    assert not re.search(r"[ \"](?:nan|inf)\b", page[page.index("</style>") :])


def test_a_page_with_all_that_it_can_have_is_below_2_mb(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    long = replace(MADE, steps_per_epoch=750, done=11_900, continues=(4_000, 8_000), seconds_per_step=1.0)
    long.put(store)
    for number in range(MOST_SHOWN):
        store.put(run_key("made-up", f"evaluations/set-{number}.json"), json.dumps(RECORD).encode())
        store.put(run_key("made-up", f"evaluations/set-{number}.jpg"), b"x" * MOST_SHEET_BYTES)
    page = page_of(build_report(store, "made-up"))
    assert page.count("data:image/jpeg") == MOST_SHOWN
    ranges = set(re.findall(r'id="([^"]+)/range"', page))
    assert {"train/loss", "speed/images_per_second", "gpu/utilization", "disk/read_bytes_per_second"} <= ranges
    assert len(page) < 2_000_000


@pytest.mark.browser
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(report: Report, tmp_path: Path, chromium: str) -> None:
    found = browse(chromium, tmp_path / "profile", report.files["index.html"], (390, 1280))
    for width, page in found.items():
        assert page["width"] <= width, "nothing sticks out"
        assert (page["resources"], page["hacked"], page["odd"]) == ([], False, 0)
        assert (page["unnamed"], page["unreached"]) == (0, 0)
        assert page["reached"] == 5, "two tables, and what unfolds: alerts, configuration, versions"
        points = page["points"]
        assert points["train/loss"] == -(-MADE.done // (-(-MADE.done // MOST_POINTS)))
        assert points["val/top1"] == MADE.done // MADE.steps_per_epoch
        assert points["speed/images_per_second"] == MADE.done // 20
        assert {"plan/lr", "done/resolution", "gpu/utilization", "checkpoint/lag_seconds"} <= points.keys()
        assert "train/loss/range" in page["ranges"]
        assert page["letters"] >= 9, "the smallest text of a chart, in pixels"
        assert (page["tiles"], page["sheet"]) == (10, 8 * 96)
        for words in ("Scored on imagenet", "The surest mistakes", "Machine", EVIL, "data wait 23 %"):
            assert words in page["text"], words
    assert found[390]["narrow"] > found[1280]["narrow"] == 0, "tables scroll on a phone"
