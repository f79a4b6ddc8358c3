"""What the user types to answer a question about the data, and what the command prints then."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import image_folder, rows, write_parquet
from trainer.contract import Exit
from trainer.prepare import main


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(monkeypatch: pytest.MonkeyPatch, data: object, tmp_path: Path, *arguments: str) -> int:
    small = ("--train-sides", "32", "--val-sides", "32")
    words = ["prepare", "--data", str(data), "--store", str(tmp_path / "store"), *small, *arguments]
    monkeypatch.setattr(sys, "argv", words)
    return main()


def test_every_option_that_a_question_names_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "photos"
    for size in ("160px", "320px"):
        for split, count in (("train-00000-of-00002", 6), ("test-00000-of-00001", 3)):
            content = [{"img": row["image"], "fine": row["label"]} for row in rows(count)]
            write_plain(data / size / f"{split}.parquet", content)
    answers = [
        "--data-config 160px",
        "--val-split test",
        "--accept-incomplete",
        "--image-column img",
        "--label-column fine",
    ]
    given: list[str] = []
    for answer in answers:
        assert run(monkeypatch, data, tmp_path, *given) == Exit.USER
        message = capfd.readouterr().err
        assert message.startswith("error: DATA=")
        assert f'make prepare DATA=… STORE=… ARGS="{answer}"' in message
        given += answer.split()
    assert run(monkeypatch, data, tmp_path, *given) == Exit.FINISHED
    said = capfd.readouterr().err
    assert "photos: 6 train and 3 val images of 3 classes" in said
    assert "  1 of 2 shards of train are missing (160px/train-00001-of-00002), which is accepted\n" in said
    assert "  not read: 2, config 320px is not used (320px/test-00000-of-00001.parquet, 320px/train-000" in said


def write_plain(path: Path, content: list[dict[str, object]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content), path)


def test_another_choice_makes_another_version_and_strict_data_is_refused_with_78(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "photos")
    (folder / "val").rename(folder / "test")
    assert run(monkeypatch, folder, tmp_path, "--val-split", "test") == Exit.FINISHED
    assert run(monkeypatch, folder, tmp_path, "--val-split", "test", "--train-split", "test") == Exit.USER
    assert run(monkeypatch, folder, tmp_path, "--train-split", "test", "--val-split", "train") == Exit.FINISHED
    assert len(list((tmp_path / "store" / "datasets" / "photos").iterdir())) == 2
    leak = next((folder / "train").glob("*/*"))
    (folder / "test" / leak.parent.name / "leak.JPEG").write_bytes(leak.read_bytes())
    capfd.readouterr()
    assert run(monkeypatch, folder, tmp_path, "--val-split", "test", "--strict-data") == Exit.USER
    assert "error: photos: 1 images of val are in train, too: test/" in capfd.readouterr().err


def test_training_says_how_to_prepare_data_that_needs_a_choice(tmp_path: Path) -> None:
    from trainer.contract import UserError
    from trainer.data.format import Copies
    from trainer.data.stage import stage

    write_parquet(tmp_path / "data" / "train.parquet", rows(6))
    write_parquet(tmp_path / "data" / "test.parquet", rows(3))
    with pytest.raises(UserError, match=r'make prepare DATA=… STORE=… ARGS="--val-split test"'):
        stage(str(tmp_path / "data"), tmp_path / "scratch", Copies((32,), (32,), 90), {})
