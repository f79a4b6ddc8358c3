"""What `make compare` prints of runs, and what it says of those that are not alike."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.compare import comparison_key, main
from trainer.contract import Exit, manifest_key, metrics_key, run_key
from trainer.recipes.config import Config, OptimConfig
from trainer.recipes.fields import to_json
from trainer.store import ObjectStore, open_store

TOP1 = {0: (0.9812, 0.9850), 1: (0.9844, 0.9861), 2: (0.9790, 0.9822)}  # seed -> model, average


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = open_store(str(tmp_path / "out"))
    for seed in TOP1:
        put_run(store, seed)
    return store


def put(store: ObjectStore, key: str, value: object) -> None:
    store.put(key, json.dumps(value).encode())


def put_run(
    store: ObjectStore, seed: int, name: str = "", *, config: Config | None = None, data: str = "d", **scores: float
) -> None:
    """A finished run, as a trainer leaves it."""
    name = name or f"digits-{seed}"
    put(store, run_key(name, "config.json"), to_json(config or Config(recipe="digits", seed=seed)))
    put(store, manifest_key(name, 10, 1), {"data": {"sha256": data}})
    model, average = TOP1.get(seed, (0.5, 0.6))
    last = {"val/top1": model, "val_ema/top1": average} | {f"{model}/top1": top1 for model, top1 in scores.items()}
    body: dict[str, Any] = {"recipe": "digits", "steps": 10, "seconds": 100.0 + seed, "last": last}
    body |= {"best": {"top1": average + 0.001, "step": 9, "weights": "ema"}, "checkpoint": manifest_key(name, 10, 1)}
    put(store, run_key(name, "result.json"), body)


def compare(store: ObjectStore, runs: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main([runs, "--store", store.uri]) == Exit.FINISHED
    return capsys.readouterr().out.splitlines()


def spaced(line: str) -> str:
    """The cells of a line with one space between them."""
    return " ".join(line.split())


def test_the_mean_and_the_deviation_of_a_sample_stand_below_the_runs(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = compare(store, "digits-0, digits-1,digits-2", capsys)
    assert spaced(lines[0]) == "seed top-1 best top-1 last top-1 last, EMA training"
    assert spaced(lines[1]) == "digits-0 0 98.60 % 98.12 % 98.50 % 1 min 40 s"
    mean = spaced(lines[4])
    for values in ([one for one, _ in TOP1.values()], [one for _, one in TOP1.values()]):
        assert f"{100 * statistics.fmean(values):.2f} ± {100 * statistics.stdev(values):.2f} %" in mean
    assert mean.startswith("mean of 3 98.54 ± 0.20 %")
    assert mean.endswith("1 min 41 s ± 1 s")
    assert len(lines) == 5  # nothing to say of runs that are alike
    assert len({len(line) for line in lines[1:]}) == 1


def test_an_average_that_only_some_runs_have_has_a_column(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(store, 3, val_swa=0.7)
    lines = compare(store, "digits-0,digits-3", capsys)
    assert "top-1 last, SWA" in lines[0]
    assert " - " in lines[1]
    assert "70.00 %" in lines[2]
    assert "70.00 %" in lines[3]  # a mean of one has no deviation


def test_what_makes_runs_unequal_is_said(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    put_run(store, 3, config=Config(recipe="digits", seed=3, optim=OptimConfig(peak_lr=0.1)))
    put_run(store, 4, data="other")
    put_run(store, 0, "digits-again")
    put_run(store, 5)
    old = to_json(Config()) | {"gone": 1}
    put(store, run_key("digits-5", "config.json"), old)
    lines = compare(store, "digits-0,digits-1,digits-3,digits-4,digits-again,digits-5", capsys)[8:]
    assert lines == [
        "digits-3 differs from digits-0 in more than the seed: optim.peak_lr: 0.5 -> 0.1",
        "digits-4 was trained on other images than digits-0",
        "digits-again has seed 0, as digits-0 has: they differ by chance of the hardware",
        "the config of digits-5 cannot be compared: it was written by another version",
    ]


def test_a_run_that_is_not_finished_is_shown_and_is_no_part_of_the_mean(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    put(store, run_key("half", "config.json"), to_json(replace(Config(recipe="digits"), seed=7)))
    rows = [
        {"step": 0, "time": 5.0, "event": "start", "attempt": 1, "origin": 0},
        {"step": 5, "time": 9.0, "val/top1": 0.4, "val_ema/top1": 0.3},
        {"step": 10, "time": 65.0, "val/top1": 0.35, "val_ema/top1": 0.32},
    ]
    store.put(metrics_key("half", 1, "00000000-00000010.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
    lines = compare(store, "digits-0,digits-1,half", capsys)
    assert spaced(lines[3]) == "half 7 40.00 % 35.00 % 32.00 % 1 min 0 s not finished"
    assert lines[4].startswith("mean of 2 ")
    assert lines[5].startswith("half is not finished")


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        ("digits-0,nope,neither", ["no run 'nope', 'neither'", "digits-0, digits-1, digits-2", "STORE="]),
        (",", ["RUNS=','", "RUNS=digits-0,digits-1"]),
    ],
)
def test_runs_that_are_not_there_are_all_named(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], runs: str, named: list[str]
) -> None:
    assert main([runs, "--store", store.uri]) == Exit.USER
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [part for part in named if part not in printed.err] == []


def test_the_variables_of_make_stand_for_the_options(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", "digits-1,digits-2")
    monkeypatch.setenv("TRAINER_STORE", store.uri)
    assert main([]) == Exit.FINISHED
    assert "mean of 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x", "runs/digits-0", "Digits"])
def test_what_is_no_run_id_is_told_with_the_rule(
    store: ObjectStore, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"digits-0,{name}", "--store", store.uri]) == Exit.USER
    assert f"'{name}' is not a run id: use [a-z0-9]" in capsys.readouterr().err


def put_curves(store: ObjectStore, name: str, epoch_steps: int) -> None:
    """Rows of a run with an evaluation after each of two epochs."""
    rows: list[dict[str, Any]] = [{"step": 0, "time": 5.0, "event": "start", "attempt": 1, "origin": 0}]
    for epoch in (1, 2):
        at = {"step": epoch * epoch_steps, "time": 5.0 + epoch}
        rows += [at | {"train/epoch": epoch, "train/loss": 1 / epoch}, at | {"val/top1": 0.4 * epoch, "val/loss": 1.0}]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    store.put(metrics_key(name, 1, "00000000-00000010.jsonl"), body.encode())


def test_one_page_has_the_curves_of_all_runs_along_epochs_and_needs_nothing_else(
    store: ObjectStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_run(store, 3, config=Config(recipe="digits", seed=3, optim=OptimConfig(peak_lr=0.1)))
    for seed in (0, 3):
        put_curves(store, f"digits-{seed}", 10 + seed)
    assert main(["digits-0,digits-3,digits-1", "--store", store.uri]) == Exit.FINISHED
    key = "comparisons/digits-0,digits-3,digits-1.html"
    assert f"curves: {store.describe(key)}" in capfd.readouterr().err
    page = store.get(key).decode()
    for words in ("Top-1 on validation (%)", "Loss of training", ">epoch<", "mean of 3", "98.60 %", "peak_lr</td>"):
        assert words in page, words
    assert "EMA (%)" not in page, "a chart of nothing"
    for number, drawn in ((0, True), (1, True), (2, False)):  # beside the key, a line in each chart; in dark mode, too
        assert (page.count(f"stroke: var(--run-{number})") >= 3) == drawn
        assert page.count(f"--run-{number}:#") == 2
    assert not re.search(r"<script|src=|<link|https?://(?!www\.w3\.org)", page)
    assert main(["digits-0,digits-3", "--store", store.uri, "--output", str(tmp_path / "page.html")]) == Exit.FINISHED
    assert "Comparison of 2 runs" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_told_after_the_table(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits-0,digits-1", "--store", store.uri, "--output", str(tmp_path)]) == Exit.USER
    printed = capsys.readouterr()
    assert "mean of 2" in printed.out
    assert f"error: --output '{tmp_path}' cannot be written" in printed.err


def test_who_may_not_write_to_the_store_gets_the_table_and_is_told_how_to_get_the_page(
    store: ObjectStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out/comparisons").touch()  # where the folder would be
    assert main(["digits-0,digits-1", "--store", store.uri]) == Exit.FINISHED
    printed = capfd.readouterr()
    assert "mean of 2" in printed.out
    assert "the page of curves is not stored (" in printed.err
    assert "--output FILE" in printed.err


def test_the_page_of_many_runs_has_a_name_that_a_file_system_takes() -> None:
    names = [f"imagenet-with-a-long-name-{seed}" for seed in range(20)]
    key = comparison_key(names)
    assert len(key) < 255
    assert key.startswith("comparisons/imagenet-with-a-long-name-0 and 19 others, ")
    assert key != comparison_key([*names[:-1], "other"])
