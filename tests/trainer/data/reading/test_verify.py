"""Which shards are whole is known after one reading, until a file changes or the machine restarts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.shards import COPIES, WANTED, bytes_read, bytes_wanted, flip_a_bit, noise
from trainer.contract import UserError
from trainer.data.reading import verify
from trainer.data.stage import stage


def test_a_whole_shard_is_read_once_until_it_changes(tmp_path: Path, s3_uri: str) -> None:
    for place, index in (noise(tmp_path), noise(s3_uri)):
        scratch = tmp_path / "scratch"
        assert bytes_read(place, scratch) == bytes_wanted(index)
        assert bytes_read(place, scratch) == 0
        folder = Path(place) if not place.startswith("s3") else scratch / "datasets/noise/v1"
        (folder / "val-32px-00000.arrow").touch()
        assert bytes_read(place, scratch) == 5000
        assert bytes_read(place, scratch) == 0


def test_every_shard_is_read_again_after_a_restart_of_the_machine(tmp_path: Path) -> None:
    place, index = noise(tmp_path)
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    known, shard = tmp_path / "verified/noise-v1.json", Path(place) / "train-32px-00000.arrow"
    stamp = shard.stat()
    flip_a_bit(shard)
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as if its last pages had never reached the disk
    known.write_text(json.dumps(json.loads(known.read_text()) | {"boot": "an earlier one"}))
    with pytest.raises(UserError, match=r"train-32px-00000.arrow has checksum"):
        stage(place, tmp_path, COPIES, WANTED)


TORN = ["", "{", "[]", '{"boot": "x"}', '{"boot": BOOT}', *[f'{{"boot": BOOT, "files": {x}}}' for x in ("[]", "null")]]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_list_of_what_is_known_costs_another_read_and_no_more(tmp_path: Path, content: str) -> None:
    place, index = noise(tmp_path)
    stage(place, tmp_path, COPIES, WANTED)
    known = tmp_path / "verified/noise-v1.json"
    known.write_text(content.replace("BOOT", json.dumps(json.loads(known.read_text())["boot"])))
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    assert bytes_read(place, tmp_path) == 0


def test_where_a_restart_cannot_be_told_every_shard_is_read_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, index = noise(tmp_path)
    assert bytes_read(place, tmp_path) == bytes_wanted(index)
    monkeypatch.setattr(verify, "BOOT_ID", tmp_path / "missing")
    assert [bytes_read(place, tmp_path) for _ in range(2)] == [bytes_wanted(index)] * 2
