"""The part of a report about what `make evaluate` found: what it shows, and that nothing in the store can break it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import forgeries
from tests.images import encode, photo
from trainer.contract import run_key
from trainer.report import charts, write_report
from trainer.report.scored import MOST_SHEET_BYTES, MOST_SHOWN
from trainer.store import ObjectStore, open_store

RECORD: dict[str, Any] = {
    "format": 1, "time": 1.7e9, "name": "digits", "model": {"step": 1200, "weights": "ema"},
    "data": {"name": "imagenet", "images": 50_000},
    "scores": {"val/top1": 0.76543, "val/loss": 0.9876, "val/ece": 0.0123, "val/temperature": 1.25},
    "speed": {"images_per_second": 3210.4, "latency_seconds": 0.0042},
    "classes": [
        {"name": "n01440764", "images": 50, "top1": 0.25, "taken_for": [{"name": "<b>odd</b>", "images": 30}]},
        {"name": "n01443537", "images": 50, "top1": 1.0, "taken_for": []},
    ],
    "mistakes": [{"image": i, "label": "n01440764", "answer": "n01443537", "probability": 0.99} for i in range(10)],
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(charts, "draw_charts", lambda *_: ({}, {}))
    store = open_store(str(tmp_path))
    store.put(run_key("run", "config.json"), b'{"recipe": "rn50"}')
    return store


def page(store: ObjectStore) -> str:
    write_report(store, "run")
    return store.get(run_key("run", "report/index.html")).decode()


def test_an_evaluation_stands_in_the_report_with_its_worst_classes_and_surest_mistakes(store: ObjectStore) -> None:
    assert "Scored on" not in page(store)
    sheet = encode(photo(0, 8 * 96, 2 * 96), quality=80)
    store.put(run_key("run", "evaluations/imagenet.json"), json.dumps(RECORD).encode())
    store.put(run_key("run", "evaluations/imagenet.jpg"), sheet)
    shown = page(store)
    for words in (
        "Scored on imagenet", "50,000 images, step 1,200, ema weights", "76.54 %", "0.9876", "1.23 %", "4.2 ms",
        "tench", "25.00 %", "&lt;b&gt;odd&lt;/b&gt; (30)", "goldfish", "99 %",
    ):  # fmt: skip
        assert words in shown, words
    assert "<b>odd" not in shown
    table = shown[shown.index("worst classes") :]
    assert "goldfish" not in table[: table.index("</table>")], "a class without mistakes"
    places = re.findall(r"background-position:([\d.]+)% ([\d.]+)%", shown)
    assert len(places) == 10
    assert (places[7], places[8]) == (("100.0000", "0.0000"), ("0.0000", "100.0000"))
    assert len(shown) < 2_000_000
    assert shown.count("data:image/jpeg;base64,") == 1
    assert not re.search(r"(?:src|href)=\"(?!#)", shown)


def test_the_newest_evaluations_come_first_and_a_large_picture_stays_out(store: ObjectStore) -> None:
    for number in range(9):
        body = json.dumps(RECORD | {"time": 1.7e9 + number}).encode()
        store.put(run_key("run", f"evaluations/set-{number}.json"), body)
        store.put(run_key("run", f"evaluations/set-{number}.jpg"), b"x" * (MOST_SHEET_BYTES + number % 2))
    shown = page(store)
    assert re.findall(r"Scored on set-(\d)", shown) == ["8", "7", "6", "5", "4", "3"]
    assert shown.count("data:image/jpeg") == 3
    assert len(shown) < 2_000_000


def test_the_speed_of_a_pass_that_others_shared_is_not_shown(store: ObjectStore) -> None:
    shared = RECORD | {"speed": RECORD["speed"] | {"members_in_pass": 3}}
    store.put(run_key("run", "evaluations/imagenet.json"), json.dumps(shared).encode())
    assert "images/s" not in page(store)
    assert "4.2 ms" in page(store)


def test_a_page_with_as_many_and_as_large_pictures_as_it_takes_is_below_2_mb(store: ObjectStore) -> None:
    for number in range(MOST_SHOWN):
        store.put(run_key("run", f"evaluations/set-{number}.json"), json.dumps(RECORD).encode())
        store.put(run_key("run", f"evaluations/set-{number}.jpg"), b"x" * MOST_SHEET_BYTES)
    shown = page(store)
    assert shown.count("data:image/jpeg") == MOST_SHOWN
    assert len(shown) < 2_000_000


def test_a_forged_evaluation_is_skipped_and_said(store: ObjectStore, capfd: pytest.CaptureFixture[str]) -> None:
    for body in forgeries(RECORD):
        store.put(run_key("run", "evaluations/imagenet.json"), body)
        assert "</html>" in page(store)
    assert (
        "imagenet.json is not what `make evaluate` writes (the file is None, not an object)" in capfd.readouterr().err
    )
