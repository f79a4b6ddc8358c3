"""Prepared data against a forger, who can give other bytes the same CRC-32 and write what he likes into index.json."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.images import image_folder, prepared
from tests.shards import COPIES, WANTED, flip_a_bit, noise
from trainer.checkpoint.restore import Restored
from trainer.contract import RefusedError, UserError
from trainer.data.format import INDEX, Index, read_index
from trainer.data.stage import stage
from trainer.origin import check_data, lack_of
from trainer.store import open_store

SHARD = "train-32px-00001.arrow"


def with_crc32(body: bytes, wanted: int) -> bytes:
    """The body with other last four bytes, by which its CRC-32 is the wanted one."""
    steps, register = list[int](), wanted ^ 0xFFFFFFFF
    table = crc_table()
    for _ in range(4):
        step = next(n for n in range(256) if table[n] >> 24 == register >> 24)
        steps.insert(0, step)
        register = (register ^ table[step]) << 8 & 0xFFFFFFFF
    register, tail = zlib.crc32(body[:-4]) ^ 0xFFFFFFFF, bytearray()
    for step in steps:
        tail.append((register ^ step) & 0xFF)
        register = table[step] ^ register >> 8
    return body[:-4] + bytes(tail)


def crc_table() -> list[int]:
    table = []
    for number in range(256):
        entry = number
        for _ in range(8):
            entry = entry >> 1 ^ (0xEDB88320 if entry & 1 else 0)
        table.append(entry)
    return table


def forge(body: bytes) -> bytes:
    """Other bytes of the same length and CRC-32."""
    forged = with_crc32(b"forged" + body[6:], zlib.crc32(body))
    assert zlib.crc32(forged) == zlib.crc32(body)
    assert forged != body
    return forged


def test_a_shard_with_other_bytes_and_the_same_crc32_is_no_whole_shard(tmp_path: Path, s3_uri: str) -> None:
    for place, said in ((noise(tmp_path)[0], f"{SHARD} has checksum"), (noise(s3_uri)[0], "damaged in the store")):
        store = open_store(place)
        store.put(SHARD, forge(store.get(SHARD)))
        with pytest.raises(UserError, match=said):
            stage(place, tmp_path / "scratch", COPIES, WANTED)


def test_what_an_older_version_prepared_is_compared_by_crc32(tmp_path: Path, s3_uri: str) -> None:
    place, index = noise(s3_uri, is_old=True)
    assert index.sha256 == ""
    local = stage(place, tmp_path, COPIES, WANTED)
    assert read_index(local) == index
    flip_a_bit(local / SHARD)
    body = open_store(place).get(SHARD)
    assert (stage(place, tmp_path, COPIES, WANTED) / SHARD).read_bytes() == body


def test_the_index_has_the_sha256_of_every_shard(tmp_path: Path) -> None:
    result = prepared(image_folder(tmp_path / "folder"), tmp_path, images_per_shard=5)
    for shard in result.index.shards():
        body = (tmp_path / result.prefix / shard.file).read_bytes()
        assert (shard.sha256, shard.crc32) == (hashlib.sha256(body).hexdigest(), zlib.crc32(body))


def test_a_shard_that_an_older_version_made_before_it_was_stopped_is_read_for_its_sha256(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = prepared(image_folder(tmp_path / "folder"), tmp_path, images_per_shard=5)
    (tmp_path / result.prefix / INDEX).unlink()
    note = tmp_path / result.prefix / "val-32px-00000.arrow.json"
    old = {name: value for name, value in json.loads(note.read_text()).items() if name != "sha256"}
    note.write_text(json.dumps(old))
    assert prepared(tmp_path / "folder", tmp_path, images_per_shard=5).index == result.index
    assert "00000.arrow was made by an older version, without SHA-256: reading it" in capfd.readouterr().err
    assert json.loads(note.read_text()) == old, "what is prepared is not written again"


FIX = r"delete index\.json where it was prepared, then run `make prepare` for it again"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return replace(noise(tmp_path)[1], fingerprint="f")


def begun_on(index: Index, **data: str) -> Restored:
    """A checkpoint of a run on this data."""
    manifest: dict[str, Any] = {"data": {"fingerprint": index.fingerprint, "sha256": index.sha256, "commit": ""} | data}
    return Restored("checkpoints/job/manifest/step-00000001.1.json", manifest)


def forged(index: Index, **changes: Any) -> Index:
    """An index whose first shard of training differs, but not its fingerprint."""
    value = json.loads(index.to_json())
    value["splits"]["train"]["sizes"][0]["shards"][0] |= changes
    return Index.from_json(json.dumps(value), "here")


def test_a_run_goes_on_only_with_the_shards_that_it_began_with(index: Index) -> None:
    folder = Path("data")
    check_data(begun_on(index), folder, replace(index, name="other", version="v2"))
    for other in (forged(index, sha256="0" * 64), forged(index, crc32=5), replace(index, classes=("another",))):
        assert other.fingerprint == index.fingerprint
        with pytest.raises(RefusedError, match=f"trained on data {index.sha256}, and data is {other.sha256}"):
            check_data(begun_on(index), folder, other)


def test_an_index_that_has_lost_its_sha256_is_refused_to_a_run_that_knows_it(index: Index) -> None:
    with pytest.raises(RefusedError, match=rf"and data is of an older version, without SHA-256 \({FIX}\): name the"):
        check_data(begun_on(index), Path("data"), forged(index, sha256=""))


def test_a_start_on_shards_without_sha256_says_how_they_get_it(index: Index) -> None:
    assert lack_of(Path("data"), index) == ""
    lack = lack_of(Path("data"), forged(index, sha256=""))
    assert re.search(rf"^data was prepared .*; to add SHA-256, {FIX}$", lack)


def test_a_run_of_an_older_version_goes_on_by_the_fingerprint_alone(index: Index) -> None:
    older = Restored("key", {"data": {"fingerprint": "f"}})
    for data in (index, forged(index, sha256="")):
        check_data(older, Path("data"), data)
        with pytest.raises(RefusedError, match="trained on data f, and data is g"):
            check_data(older, Path("data"), replace(data, fingerprint="g"))
