"""The report of a run: what it says, what it writes, and what a browser makes of it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import PATIENCE
from trainer.contract import Exit, UserError, manifest_key, metrics_key, run_key
from trainer.report import build_report, summary_text, write_report
from trainer.report.__main__ import main
from trainer.report.curves import MOST_POINTS, series
from trainer.report.page import DARK, LIGHT
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import Row
from trainer.text import show_duration

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH, EPOCHS = 25, 8
STEPS = STEPS_PER_EPOCH * EPOCHS
CHARTS = {"loss", "accuracy", "learning-rate", "throughput"}
CONFIG: dict[str, Any] = {"recipe": "digits", "epochs": EPOCHS, "optim": {"peak_lr": 0.4}}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "out"))


def attempt_rows(attempt: int, first: int, last: int) -> list[dict[str, Any]]:
    """One attempt as the trainer logs it: a step takes half a second, an evaluation ends every epoch."""
    begin = 1_700_000_000.0 + 3600 * attempt
    rows: list[dict[str, Any]] = [
        {"step": first, "time": begin, "event": "start", "attempt": attempt, "origin": attempt - 1}
    ]
    for step in range(first + 1, last + 1):
        learned = 1 - math.exp(-5 * step / STEPS)
        row: dict[str, Any] = {"step": step, "time": begin + (step - first) / 2, "train/epoch": step / STEPS_PER_EPOCH}
        row |= {"train/loss": 2.5 - 2 * learned, "train/top1": learned, "train/top5": 1.0, "train/lr": 0.01}
        row |= {"speed/images_per_second": 600.0, "speed/data_wait_fraction": 0.03}
        if step % STEPS_PER_EPOCH == 0:
            row |= {"val/loss": 2.6 - 2 * learned, "val/top1": 0.98 * learned, "val/top5": 0.999}
            row |= {"val_ema/loss": 2.7 - 2 * learned, "val_ema/top1": 0.97 * learned, "val_ema/top5": 0.998}
        rows.append(row)
    return rows


def put_attempt(store: ObjectStore, run_id: str, attempt: int, first: int, last: int) -> list[dict[str, Any]]:
    rows = attempt_rows(attempt, first, last)
    segment = "".join(json.dumps(row) + "\n" for row in rows).encode()
    store.put(metrics_key(run_id, attempt, f"{first:08d}-{last:08d}.jsonl"), segment)
    return rows


def put_json(store: ObjectStore, key: str, value: object) -> None:
    store.put(key, json.dumps(value).encode())


def put_finished_run(store: ObjectStore, run_id: str = "digits") -> None:
    """Interrupted at step 120, resumed, finished; its best weights are the EMA's of step 175."""
    put_json(store, run_key(run_id, "config.json"), CONFIG)
    put_attempt(store, run_id, 1, 0, 120)
    put_attempt(store, run_id, 2, 120, STEPS)
    manifest = manifest_key(run_id, 200, 2)
    put_json(store, manifest, {})
    result = {"run_id": run_id, "recipe": "digits", "steps": STEPS, "epochs": EPOCHS, "steps_per_epoch": 25}
    result |= {"seconds": 112.4, "images_per_second": 618.2, "attempts": 2, "parameters": 11_173_962}
    result |= {"best": {"top1": 0.98765, "step": 175, "weights": "ema"}, "checkpoint": manifest}
    put_json(store, run_key(run_id, "result.json"), result | {"last": {"val/top1": 0.9734}})


def read_page(store: ObjectStore, run_id: str = "digits") -> str:
    return store.get(run_key(run_id, "report/index.html")).decode()


class Links(HTMLParser):
    """The tags of a page, and every address that a browser would load from it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = {"src", "srcset", "href", "xlink:href", "data", "action", "poster"}
        self.addresses += [value or "" for name, value in attrs if name in loading]


def test_a_finished_run_is_told_by_its_result(store: ObjectStore) -> None:
    put_finished_run(store)
    summary = write_report(store, "digits")
    assert summary.is_finished
    assert summary.best is not None
    assert (summary.best.top1, summary.best.top5, summary.best.step) == (0.98765, 0.998, 175)
    assert summary.last is not None
    assert summary.last.step == STEPS
    text = summary_text(summary)
    for words in ("finished", "98.77 %", "step 175, EMA weights", "1 min 52 s", "618 images/s", "attempts     2"):
        assert words in text
    assert store.describe(manifest_key("digits", 200, 2)) in text
    assert store.describe(run_key("digits", "report/index.html")) in text
    assert all(line.isprintable() for line in text.splitlines())
    assert summary_text(write_report(store, "digits")) == text, "asking again tells the same"


def test_the_store_holds_the_page_and_real_pngs(store: ObjectStore) -> None:
    put_finished_run(store)
    write_report(store, "digits")
    folder = run_key("digits", "report/")
    names = {info.key.removeprefix(folder) for info in store.list(folder)}
    assert names == {"index.html"} | {f"{chart}.png" for chart in CHARTS}
    for chart in CHARTS:
        image = Image.open(io.BytesIO(store.get(f"{folder}{chart}.png"))).convert("RGB")
        assert image.width > 800
        assert len(image.getcolors(maxcolors=1 << 20) or []) > 20, "a curve was drawn"


def test_a_report_into_a_folder_is_the_same_and_leaves_the_store_as_it_is(store: ObjectStore, tmp_path: Path) -> None:
    put_finished_run(store)
    before = list(store.list(""))
    folder = tmp_path / "new" / "report"
    assert main(["--store", str(tmp_path / "out"), "--run-id", "digits", "--into", str(folder)]) == Exit.FINISHED
    assert list(store.list("")) == before
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == build_report(store, "digits").files
    assert b"</html>" in written["index.html"]


def test_a_folder_that_cannot_be_is_an_error_that_names_it(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_finished_run(store)
    (tmp_path / "file").write_text("")
    into = str(tmp_path / "file" / "report")
    assert main(["--store", str(tmp_path / "out"), "--run-id", "digits", "--into", into]) == Exit.USER
    assert f"cannot write the report into {into}: Not a directory" in capsys.readouterr().err


def test_the_page_needs_neither_network_nor_scripts(store: ObjectStore) -> None:
    put_finished_run(store)
    write_report(store, "digits")
    page = read_page(store)
    links = Links(page)
    assert links.tags.count("svg") == len(CHARTS)
    assert "script" not in links.tags
    assert all(address.startswith("#") for address in links.addresses)
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")
    assert "went on from step 120" in page


def test_an_interrupted_run_is_told_by_its_rows(store: ObjectStore) -> None:
    put_json(store, run_key("digits", "config.json"), CONFIG)
    rows = put_attempt(store, "digits", 1, 0, 90)
    put_attempt(store, "digits", 2, 90, 110)
    put_json(store, manifest_key("digits", 80, 1), {})
    put_json(store, manifest_key("digits", 105, 2), {})
    summary = write_report(store, "digits")
    assert not summary.is_finished
    assert (summary.steps, summary.total_steps, summary.attempts) == (110, STEPS, 2)
    assert summary.seconds == pytest.approx((90 + 20) / 2), "the hour between the attempts is no training"
    assert summary.best is not None
    assert summary.best.top1 == max(row.get("val/top1", 0) for row in rows + attempt_rows(2, 90, 110))
    assert summary.checkpoint.endswith("step-00000105.2.json")
    text = summary_text(summary)
    assert "NOT finished" in text
    assert "110 of 200" in text
    assert "not finished" in read_page(store)


def test_a_run_that_has_only_started_has_a_report(store: ObjectStore) -> None:
    put_json(store, run_key("digits", "config.json"), CONFIG)
    assert "no evaluation yet" in summary_text(write_report(store, "digits"))
    put_attempt(store, "digits", 1, 0, 0)
    assert "no evaluation yet" in summary_text(write_report(store, "digits"))
    assert "Nothing measured yet" in read_page(store)


def test_a_single_measured_step_is_drawn(store: ObjectStore) -> None:
    put_attempt(store, "digits", 1, 0, 1)
    summary = write_report(store, "digits")
    assert (summary.steps, summary.best, summary.recipe) == (1, None, "unknown")
    assert Links(read_page(store)).tags.count("svg") == len(CHARTS)


def test_names_from_the_run_can_neither_add_html_nor_steer_the_terminal(store: ObjectStore) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    put_json(store, run_key("digits", "config.json"), {"recipe": evil, "<img src=x>": {"a&b": [evil]}})
    put_attempt(store, "digits", 1, 0, 30)
    summary = write_report(store, "digits")
    page = read_page(store)
    assert {"script", "img"}.isdisjoint(Links(page).tags)
    assert "&lt;script&gt;" in page
    assert "&lt;img src=x&gt;.a&amp;b" in page
    assert "\x1b" not in summary_text(summary)


def test_a_missing_run_is_an_error_that_names_the_runs_there_are(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_finished_run(store, "digits-1")
    put_finished_run(store, "digits-2")
    assert main(["--store", str(tmp_path / "out"), "--run-id", "digits"]) == Exit.USER
    told = capsys.readouterr().err
    assert "'digits'" in told
    assert "digits-1, digits-2" in told
    assert "--run-id" in told
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no runs.*make train"):
        write_report(open_store(str(tmp_path / "empty")), "digits")
    with pytest.raises(UserError, match=r"no store .*nowhere.*make train"):
        write_report(open_store(str(tmp_path / "nowhere")), "digits")
    with pytest.raises(UserError, match="not a run id"):
        write_report(store, "../digits")


def test_the_command_reads_the_environment_and_prints_the_summary(store: ObjectStore, tmp_path: Path) -> None:
    put_finished_run(store)
    environ = {"TRAINER_STORE": str(tmp_path / "out"), "TRAINER_RUN_ID": "digits", "PATH": ""}
    environ |= {"HOME": str(Path.home()), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "trainer.report"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "98.77 %" in done.stdout
    del environ["TRAINER_RUN_ID"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == Exit.USER
    assert "--run-id" in done.stderr


def test_help_shows_every_option_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; from trainer.report.__main__ import main; code = main(['--help']); print(*sys.modules); exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "--store" in done.stdout
    assert "--run-id" in done.stdout
    assert {"matplotlib", "numpy", "torch", "boto3"}.isdisjoint(done.stdout.split())


def test_long_curves_are_averaged_down_to_what_a_chart_can_show() -> None:
    rows: list[Row] = [{"step": step, "time": 0.0, "train/loss": float(step % 2)} for step in range(10_000)]
    steps, values = series(rows, "train/loss")
    assert 200 < len(steps) <= MOST_POINTS
    assert steps == sorted(steps)
    assert all(0.4 < value < 0.6 for value in values)
    assert series([{"step": 1, "time": 0.0, "train/loss": math.nan}], "train/loss") == ([], [])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (112.4, "1 min 52 s"), (8_040, "2 h 14 min"), (273_700, "3 d 4 h")],
)
def test_durations_are_told_by_their_two_largest_units(seconds: float, words: str) -> None:
    assert show_duration(seconds) == words


@pytest.mark.browser
def test_a_browser_shows_the_result_the_charts_and_dark_mode(store: ObjectStore, tmp_path: Path, chromium: str) -> None:
    put_finished_run(store)
    address = Path(write_report(store, "digits").report).as_uri()

    def browse(*arguments: str) -> str:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [chromium, *quiet, profile, "--window-size=1280,2000", *arguments, address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    dom = browse("--dump-dom")
    for words in (">digits</h1>", "98.77<small>%</small>", ">Curves</h2>", ">Evaluations</h2>", "Accuracy (%)"):
        assert words in dom
    assert all(link.startswith("#") for link in Links(dom).addresses)
    for flags, paper in (([], LIGHT["paper"]), (["--blink-settings=preferredColorScheme=0"], DARK["paper"])):
        picture = tmp_path / "page.png"
        browse(f"--screenshot={picture}", *flags)
        image = Image.open(picture).convert("RGB")
        corner = image.getpixel((5, 5))
        assert isinstance(corner, tuple)
        assert "#{:02x}{:02x}{:02x}".format(*corner) == paper
        assert len(image.crop((600, 500, 1280, 1100)).getcolors(maxcolors=1 << 20) or []) > 20, "charts are visible"
