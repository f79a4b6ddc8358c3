"""The same images and options give the same bytes, wherever and however they are prepared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import PATIENCE, ROOT
from tests.images import CLASSES, digests, encode, image_folder, photo, prepared
from trainer.data.format import Copies, read_index

# Each is left out, and what is said of it is stored in the shard.
BROKEN = {
    "empty.JPEG": b"",
    "pointer.JPEG": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "page.png": b"<html><title>404</title></html>",
    "cut.JPEG": encode(photo(1))[:-50],
    "cut.png": encode(photo(2), "PNG")[:-50],
    "cut.webp": encode(photo(3), "WEBP")[:-50],
    "head.tif": encode(photo(4), "TIFF")[:6],
    "chunk.png": encode(photo(5), "PNG").replace(b"IDAT", b"I\0AT"),
}
COPIES = Copies((32, 16), (24,), 90)


@pytest.mark.slow
def test_broken_images_included_the_bytes_are_those_of_another_folder_locale_hash_seed_and_thread_count(
    tmp_path: Path,
) -> None:
    folder = image_folder(tmp_path / "photos", train=8)
    for name, content in BROKEN.items():
        (folder / "train" / CLASSES[1] / name).write_bytes(content)
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(folder, elsewhere / "photos", copy_function=shutil.copyfile)
    code = f"import sys; from {__name__} import once; once(*sys.argv[1:])"
    environ = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code, str(elsewhere / "photos"), str(elsewhere / "store"), "1"]
    subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, timeout=PATIENCE)
    once(str(folder), str(tmp_path / "store"), "5")
    assert digests(tmp_path / "store") == digests(elsewhere / "store")
    index = read_index(next((tmp_path / "store").rglob("index.json")).parent)
    assert index.splits["train"].images == 8 * len(CLASSES)


def once(data: str, store: str, workers: str) -> None:
    prepared(data, Path(store), copies=COPIES, workers=int(workers), images_per_shard=9, max_broken_share=0.5)
